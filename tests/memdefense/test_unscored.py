"""The code behind outcomes: what plays counts, what only scores does not."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from memdefense import recipe, registry
from memdefense.recipe import code_of, code_of_run
from memdefense.unscored import unscored

SOURCE = '''
"""A module."""
import math
from pack.base import Base
from pack.playing import ask
from pack.scoring import mean

LIMIT = 3
LEVEL = 0.95

class Thing(Base):
    """A measure."""

    limit: int = LIMIT

    def run(self, target):
        return [self._one(target, n) for n in range(self.limit)]

    def score(self, outcomes):
        return self._average(outcomes) + shift(LEVEL)

    def terms(self, outcomes):
        return outcomes

    def _one(self, target, n):
        return ask(target, n)

    def _average(self, outcomes):
        return mean(outcomes)

    def _hook(self):
        return 1

def shift(level):
    return math.sqrt(level)
'''


class Pack:
    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.write("__init__", "")
        self.write("thing", SOURCE)
        self.write("playing", "def ask(target, n):\n    return n\n")
        self.write("scoring", "def mean(values):\n    return sum(values)\n")
        self.write("base", "class Base:\n    def play(self):\n        return self._hook()\n")

    def write(self, name: str, text: str) -> None:
        (self.folder / f"{name}.py").write_text(text)

    def code(self) -> str:
        for known in [known for known in sys.modules if known.partition(".")[0] == "pack"]:
            del sys.modules[known]
        importlib.invalidate_caches()
        recipe.forget()
        return code_of_run(importlib.import_module("pack.thing").Thing)


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pack]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    made = Pack(tmp_path / "pack")
    yield made
    made.code()
    for known in [known for known in sys.modules if known.partition(".")[0] == "pack"]:
        del sys.modules[known]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return self._average(outcomes) + shift", "return self._average(outcomes) - shift"),
        ("return outcomes\n", "return outcomes[1:]\n"),
        ("return mean(outcomes)", "return 2 * mean(outcomes)"),
        ("return math.sqrt(level)", "return math.exp(level)"),
        ("LEVEL = 0.95", "LEVEL = 0.9"),
    ],
)
def test_what_only_scores_is_not_the_code_of_outcomes(pack: Pack, old: str, new: str) -> None:
    before, whole = pack.code(), code_of("pack.thing")
    assert old in SOURCE
    pack.write("thing", SOURCE.replace(old, new))
    assert pack.code() == before
    assert code_of("pack.thing") != whole


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("for n in range(self.limit)", "for n in range(1 + self.limit)"),
        ("return ask(target, n)", "return ask(target, -n)"),
        ("LIMIT = 3", "LIMIT = 4"),
        ("return 1\n", "return 2\n"),  # called by the base class alone
    ],
)
def test_what_plays_is(pack: Pack, old: str, new: str) -> None:
    before = pack.code()
    assert old in SOURCE
    pack.write("thing", SOURCE.replace(old, new))
    assert pack.code() != before


def test_modules_count_where_what_plays_imports_them(pack: Pack) -> None:
    before = pack.code()
    pack.write("scoring", "def mean(values):\n    return max(values)\n")
    assert pack.code() == before
    pack.write("playing", "def ask(target, n):\n    return n + 1\n")
    played = pack.code()
    assert played != before
    pack.write("base", "class Base:\n    def play(self):\n        return 1 + self._hook()\n")
    assert pack.code() != played


def _left(text: str) -> str:
    return ast.unparse(ast.Module(unscored(ast.parse(text).body, "Thing"), []))


PLAYS = (
    "class Thing:\n    def run(self):\n        {}\n    def score(self):\n        return helper()\n"
    "    def _other(self):\n        return 1\n\ndef helper():\n    return 2\n"
)


@pytest.mark.parametrize(
    "line",
    [
        "return globals()['helper']()",
        "return eval('helper()')",
        "return getattr(self, '_' + 'other')()",
        "return getattr(self, f'_{self.which}')()",
    ],
)
def test_code_that_looks_names_up_keeps_the_whole_module(line: str) -> None:
    assert _left(PLAYS.format(line)) == ast.unparse(ast.parse(PLAYS.format(line)))


def test_scoring_that_a_run_calls_is_part_of_it() -> None:
    assert "helper" in _left(PLAYS.format("return self.score()"))
    assert "_other" in _left(PLAYS.format("return getattr(self, '_other')()"))
    kept = _left(PLAYS.format("return 1"))
    assert "helper" not in kept
    assert "_other" not in kept
    assert "score" not in kept


def test_what_acts_when_it_is_imported_stays() -> None:
    text = (
        "from other import *\n"
        "TABLE = {}\n"
        "TABLE['x'] = 1\n"
        "@register\ndef unnamed():\n    return 3\n"
        "if FLAG:\n    import deep\n"
        "@functools.cache\ndef dropped():\n    return 4\n"
        "class Thing:\n    def run(self):\n        return TABLE\n"
    )
    kept = _left(text)
    for piece in ("import *", "TABLE['x'] = 1", "def unnamed", "import deep", "TABLE = {}"):
        assert piece in kept
    assert "dropped" not in kept


def test_a_measure_typed_or_made_in_a_function_has_its_whole_code() -> None:
    class Local:
        def run(self) -> int:
            return 1

    assert code_of_run(Local()) == code_of(Local())


def test_the_usual_attacks_do_not_rest_on_the_statistics() -> None:
    for name in ("prefix", "mia"):
        owner = type(registry.instances("attacks", name)[0][1][0])
        path = recipe._source(owner.__module__)
        assert path
        body = unscored(ast.parse(path.read_text(encoding="utf-8")).body, owner.__name__)
        closure = set(recipe._closure(owner.__module__, body))
        assert not closure & {"memdefense.score", "memdefense.roc", "memdefense.interval"}
        assert "memdefense.score" in recipe._closure(owner.__module__)
