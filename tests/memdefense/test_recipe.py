from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from memdefense import recipe
from memdefense.recipe import code_of, digest

SOURCE = '''"""A module."""
from pack.sibling import helper

class Thing:
    """A class."""

    def act(self) -> int:
        """A method."""
        return helper(2)
'''


class Pack:
    """A package on the path, whose files can be changed and its code asked for anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write("__init__", "")
        self.write("thing", SOURCE)
        self.write("sibling", "from . import deeper\n\ndef helper(x):\n    return deeper.twice(x)\n")
        self.write("deeper", "def twice(x):\n    return 2 * x\n")
        self.write("stranger", "def other():\n    return 0\n")

    def write(self, name: str, text: str) -> None:
        self.folder.mkdir(exist_ok=True)
        (self.folder / f"{name}.py").write_text(text)

    def code(self, name: str = "pack.thing") -> str:
        for known in [known for known in sys.modules if known.partition(".")[0] == "pack"]:
            del sys.modules[known]
        importlib.invalidate_caches()
        recipe.forget()
        return code_of(name)


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pack]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    made = Pack(tmp_path / "pack")
    yield made
    made.code()
    for known in [known for known in sys.modules if known.partition(".")[0] == "pack"]:
        del sys.modules[known]


def test_digest_knows_values_and_not_their_order() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1, "b": [1, 2]}) != digest({"a": 1, "b": [2, 1]})
    assert digest({"a": "1"}) != digest({"a": 1})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""A module."""', '"""Another docstring."""'),
        ('"""A method."""', "# now a comment"),
        ("return helper(2)", "return helper( 2 )  # layout"),
        ("class Thing", "\n\n\nclass Thing"),
    ],
)
def test_comments_docstrings_and_layout_are_not_code(pack: Pack, old: str, new: str) -> None:
    before = pack.code()
    assert old in SOURCE
    pack.write("thing", SOURCE.replace(old, new))
    assert pack.code() == before


@pytest.mark.parametrize(("old", "new"), [("helper(2)", "helper(3)"), ("def act", "def do"), ("Thing", "Other")])
def test_code_is(pack: Pack, old: str, new: str) -> None:
    before = pack.code()
    pack.write("thing", SOURCE.replace(old, new))
    assert pack.code() != before


def test_a_field_that_a_newer_python_adds_is_not_code(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    before = pack.code()
    fields = (*(name for name in ast.FunctionDef._fields if name != "added"), "added")
    monkeypatch.setattr(ast.FunctionDef, "_fields", fields)
    monkeypatch.setattr(ast.FunctionDef, "added", [], raising=False)  # as type_params, which came with 3.12
    assert pack.code() == before


def test_a_text_that_is_no_docstring_is_code(pack: Pack) -> None:
    pack.write("thing", 'NAME = "one"\n')
    before = pack.code()
    pack.write("thing", 'NAME = "two"\n')
    assert pack.code() != before


def test_imports_of_the_same_distribution_are_followed(pack: Pack) -> None:
    before = pack.code()
    pack.write("deeper", "def twice(x):\n    return x + x\n")
    assert pack.code() != before


def test_modules_that_are_not_imported_are_not_followed(pack: Pack) -> None:
    before = pack.code()
    pack.write("stranger", "def other():\n    return 1\n")
    assert pack.code() == before


@pytest.mark.parametrize("test", ["TYPE_CHECKING", "typing.TYPE_CHECKING"])
def test_imports_for_types_alone_are_not_followed(pack: Pack, test: str) -> None:
    head = f"import typing\nfrom typing import TYPE_CHECKING\nif {test}:\n    from pack.stranger import other\n"
    pack.write("thing", head + SOURCE)
    before = pack.code()
    pack.write("stranger", "def other():\n    return 1\n")
    assert pack.code() == before


def test_the_other_branch_of_such_an_import_runs(pack: Pack) -> None:
    head = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    pass\nelse:\n    from pack.stranger import other\n"
    pack.write("thing", head + SOURCE)
    before = pack.code()
    pack.write("stranger", "def other():\n    return 1\n")
    assert pack.code() != before


def test_loose_modules_side_by_side_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Pack) -> None:
    pack.write("../loose_one", "import loose_two\n")
    pack.write("../loose_two", "VALUE = 1\n")
    before = pack.code("loose_one")
    pack.write("../loose_two", "VALUE = 2\n")
    assert pack.code("loose_one") != before


def test_public_names_lead_to_the_module_that_defines_them() -> None:
    closure = recipe._closure("memdefense.defenses.rmft")
    assert {"memdefense.defense", "memdefense.pii", "memdefense.corpus"} <= set(closure)
    assert "memdefense.runner" not in closure
    assert "memdefense.cli" not in closure


def test_instance_class_and_module_have_one_code(pack: Pack) -> None:
    pack.code()
    kind = importlib.import_module("pack.thing").Thing
    assert code_of(kind) == code_of(kind()) == code_of(kind.act) == pack.code()


def _run(tmp_path: Path, text: str) -> str:
    script = tmp_path / "script.py"
    script.write_text("from memdefense.recipe import code_of\n" + text + "\nprint(code_of(Thing))\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    return done.stdout


def test_class_of_a_script_has_the_code_of_the_script(tmp_path: Path) -> None:
    body = "class Thing:\n    def act(self):\n        return {}\n"
    one = _run(tmp_path, body.format(1))
    assert _run(tmp_path, "# a comment\n" + body.format(1)) == one
    assert _run(tmp_path, body.format(2)) != one


def _typed(body: str) -> str:
    done = subprocess.run(
        [sys.executable, "-"],
        input=f"from memdefense.recipe import code_of\n{body}\nprint(code_of(Thing))\n",
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_class_typed_into_an_interpreter_has_the_code_of_its_functions() -> None:
    body = "class Thing:\n    def act(self):\n        return [{} for _ in range(3)]\n"
    one = _typed(body.format(1))
    assert len(one) == 65
    assert _typed(body.format(1)) == one
    assert _typed(body.format(2)) != one


def test_what_a_typed_class_uses_is_its_code_too() -> None:
    body = (
        "def helper(x):\n    return x + {}\n"
        "class Base:\n    rate = {}\n"
        "class Thing(Base):\n    def act(self):\n        return [helper(x) for x in range(3)]\n"
    )
    codes = {_typed(body.format(*values)) for values in ((1, 1), (2, 1), (1, 2), (1, 1))}
    assert len(codes) == 3
