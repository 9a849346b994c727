from __future__ import annotations

import dataclasses
import sys
import textwrap
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from memdefense import registry
from memdefense.attack import Attack
from memdefense.defense import Defense, Stack
from memdefense.errors import PluginError, SpecError
from memdefense.registry import build, convert, instances, load, names, parse, split_list

HERE = f"{__name__}:Fields"


@dataclasses.dataclass(frozen=True)
class Fields(Defense):
    """One field of each type."""

    name: ClassVar[str] = "fields"
    summary: ClassVar[str] = "One field of each type."

    count: int = 1
    share: float = 0.5
    wanted: bool = False
    word: str = "x"
    kinds: tuple[str, ...] = ()
    sizes: tuple[int, ...] = (1, 2)
    how: Literal["soft-max", "hard"] = "hard"
    seed_of: int | None = None
    inner: Defense | None = None


@dataclasses.dataclass(frozen=True)
class Needy(Defense):
    """A field without a default."""

    name: ClassVar[str] = "needy"
    summary: ClassVar[str] = "A field without a default."

    count: int = dataclasses.field(default=1, kw_only=True)
    path: str = dataclasses.field(kw_only=True)


@pytest.mark.parametrize(
    ("text", "specs"),
    [
        ("none", ["none"]),
        ("none, rmft ,dedup", ["none", "rmft", "dedup"]),
        ("none,rmft:keep=none,kinds=email|phone,dedup", ["none", "rmft:keep=none,kinds=email|phone", "dedup"]),
        ("rmft,keep=none", ["rmft:keep=none"]),
        ("dedup+rmft:keep=none,anchor=part", ["dedup+rmft:keep=none,anchor=part"]),
        ("a.b:C:x=1,y=2,none", ["a.b:C:x=1,y=2", "none"]),
        ("jsonl:data=/a:b/c.jsonl,text-field=t", ["jsonl:data=/a:b/c.jsonl,text-field=t"]),
        (",,", []),
    ],
)
def test_list_of_specs(text: str, specs: list[str]) -> None:
    assert split_list(text) == specs


def test_fields_are_parsed_by_their_types() -> None:
    spec = f"{HERE}:count=3,share=1e-3,wanted=yes,word=a b,kinds=email|phone,sizes=4,how=soft_max,seed-of=7"
    (made,) = build("defenses", spec)
    assert made == Fields(3, 1e-3, True, "a b", ("email", "phone"), (4,), "soft-max", 7)


@pytest.mark.parametrize(
    "made",
    [
        Fields(),
        Fields(count=-2, share=0.1, wanted=True, word="", kinds=("email",), sizes=()),
        Fields(share=float("inf"), how="soft-max", seed_of=3),
    ],
)
def test_spec_builds_the_instance_again(made: Fields) -> None:
    fields = made.spec.partition(":")[2]
    assert build("defenses", f"{HERE}:{fields}" if fields else HERE) == [made]


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ("count=three", "count is 'three'; it takes a whole number"),
        ("count=1.5", "whole number"),
        ("share=half", "takes a number"),
        ("wanted=maybe", "true or false"),
        ("how=hrad", "did you mean 'hard'"),
        ("kind=email", "no field 'kind'; did you mean 'kinds'"),
        ("sizes=1|x", "whole number"),
        ("inner=rmft", "build the object in Python"),
        ("count", "'count' .* is no field: write name=value"),
    ],
)
def test_wrong_field_is_an_error_that_helps(fields: str, complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint):
        build("defenses", f"{HERE}:{fields}")


def test_unknown_name_has_a_hint() -> None:
    with pytest.raises(SpecError, match=r"unknown defense 'rmtf'; did you mean 'rmft'\?"):
        build("defenses", "rmtf")
    with pytest.raises(SpecError, match="unknown utility 'perplexety'; did you mean 'perplexity'"):
        build("utilities", "perplexety")


def test_field_without_a_value_is_not_taken_for_a_class() -> None:
    with pytest.raises(SpecError, match="'keep' in 'rmft:keep' is no field"):
        build("defenses", "rmft:keep")


def test_missing_field_is_named() -> None:
    with pytest.raises(PluginError, match="path"):
        build("defenses", f"{__name__}:Needy:count=2")
    assert build("defenses", f"{__name__}:Needy", path="p") == [Needy(path="p")]


def test_wrong_kind_and_wrong_path() -> None:
    with pytest.raises(PluginError, match=r"is not a Attack|is not an Attack"):
        load("attacks", HERE)
    with pytest.raises(PluginError, match=r"No module named 'nowhere'.*PYTHONPATH"):
        load("defenses", "nowhere.at.all:Thing")
    with pytest.raises(PluginError, match="Nothing"):
        load("defenses", f"{__name__}:Nothing")


def test_class_of_a_top_level_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
        import dataclasses
        from memdefense.defense import Defense

        @dataclasses.dataclass(frozen=True)
        class Mine(Defense):
            name = "mine"
            count: int = 1
    """
    (tmp_path / "loose_plugin.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(str(tmp_path))
    (made,) = build("defenses", "loose_plugin:Mine:count=4")
    assert made.spec == "mine:count=4"
    del sys.modules["loose_plugin"]


def test_stack_keeps_the_order_and_the_fields() -> None:
    (stack,) = build("defenses", "dedup:level=exact+rmft:keep=none,kinds=email")
    assert isinstance(stack, Stack)
    assert [part.name for part in stack.parts] == ["dedup", "rmft"]
    assert stack.parts[1].fields["kinds"] == ("email",)
    (again,) = build("defenses", stack.spec)
    assert again == stack


def test_stack_of_two_trainings_is_refused() -> None:
    with pytest.raises(SpecError, match="both train"):
        build("defenses", "never-trained+never-trained")


def test_plus_inside_a_value_is_no_stack() -> None:
    (made,) = build("attacks", "mia:headline=min-k++")
    assert made.fields["headline"] == "min-k++"


def test_all_is_everything_installed_once() -> None:
    assert [label for label, _ in parse("attacks", "mia,all,mia")] == [
        "mia",
        *(n for n in names("attacks") if n != "mia"),
    ]


def test_instances_takes_texts_objects_and_mixes() -> None:
    assert [label for label, _ in instances("defenses", ["none,rmft", Fields(count=2)])] == [
        "none",
        "rmft",
        "fields:count=2",
    ]
    with pytest.raises(SpecError, match="is a class; pass an instance"):
        instances("defenses", Fields)


def _entries(monkeypatch: pytest.MonkeyPatch, *values: tuple[str, str]) -> None:
    made = [EntryPoint(name, value, "memdefense.defenses") for name, value in values]

    def entry_points(*, group: str, name: str = "") -> list[EntryPoint]:
        return [entry for entry in made if group == "memdefense.defenses" and name in ("", entry.name)]

    monkeypatch.setattr(registry, "entry_points", entry_points)


def test_broken_plugin_breaks_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    _entries(monkeypatch, ("broken", "no.such.module:X"), ("fields", HERE), ("function", "os.path:join"))
    assert list(names("defenses")) == ["broken", "fields", "function"]
    assert load("defenses", "fields") is Fields
    with pytest.raises(PluginError, match=r"broken .*ModuleNotFoundError"):
        load("defenses", "broken")
    with pytest.raises(PluginError, match="'function' is not a"):
        load("defenses", "function")


def test_two_owners_of_a_name_are_both_named_and_harm_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    _entries(monkeypatch, ("twice", HERE), ("twice", "other.module:Y"), ("same", HERE), ("same", HERE))
    with pytest.raises(PluginError, match=rf"two plugins are called 'twice'.*{HERE}.*other\.module:Y"):
        load("defenses", "twice")
    assert load("defenses", "same") is Fields


def test_optional_field_can_be_none() -> None:
    assert convert("none", int | None, "here") is None
    assert convert("3", int | None, "here") == 3


def test_built_ins_are_entry_points_like_any_other() -> None:
    assert issubclass(load("attacks", "prefix"), Attack)
    assert load("defenses", "never_trained") is load("defenses", "never-trained")
