"""What the built-in attacks say of themselves, against a table and against what they do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from memdefense import registry
from memdefense.attack import Attack
from memdefense.corpus import Benchmark
from memdefense.defense import Defense
from memdefense.pipeline import defend, measure
from memdefense.runner import Settings, prepare
from memdefense.target import LocalTarget

ADAPTIVE_TO = {
    "audit": ("generation",),
    "compression": ("weights",),
    "discoverable": ("generation",),
    "exposure": ("generation",),
    "inference": ("generation",),
    "mia": ("generation",),
    "paraphrase-prefix": ("weights",),
    "prefix": ("data",),  # by the contexts that are left
    "quantise": ("weights",),
    "reconstruction": (),  # a filter of text takes its candidates away
    "relearn": ("weights",),
    "sampling": (),
    "shadow": ("data", "training", "weights", "generation"),
    "verbatim": ("generation",),
}
ROUND = [name for name, families in ADAPTIVE_TO.items() if families == ("generation",)]


def built_in() -> list[str]:
    entries = registry.names("attacks")
    return sorted(name for name, entry in entries.items() if entry.dist and entry.dist.name == "memdefense")


def test_which_defenses_an_attacker_knows_of() -> None:
    assert {name: registry.load("attacks", name).adaptive_to for name in built_in()} == ADAPTIVE_TO  # type: ignore[attr-defined, unused-ignore]


@pytest.mark.parametrize("name", ADAPTIVE_TO)
def test_the_base_model_is_among_the_needs_of_what_loses_by_its_absence(name: str) -> None:
    (made,) = registry.build("attacks", name)
    attack = cast(Attack, made)
    if not attack.shadows:  # which starts from it, and says that it needs the defense again
        assert ("base model" in attack.needs) == (attack.without_base() is not attack)


def test_what_goes_around_filters_of_text_never_asks_for_text(
    tmp_path: Path, planted_benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = prepare(planted_benchmark, Settings(store=str(tmp_path), device="cpu"))
    defended = defend(work, Defense(), 0)
    point = defended.points[-1]
    model = point.load("cpu")

    class Asked(Exception):  # noqa: N818
        pass

    def generate(self: LocalTarget, prompts: Sequence[str], **rest: object) -> list[str]:
        raise Asked

    monkeypatch.setattr(LocalTarget, "generate", generate)
    for name in ROUND:
        (attack,) = registry.build("attacks", "verbatim:prefix=8,length=8" if name == "verbatim" else name)
        assert measure(defended, point, cast(Attack, attack), lambda: model)[0], name
    for name in ("prefix", "reconstruction", "sampling"):
        (attack,) = registry.build("attacks", name)
        with pytest.raises(Exception) as told:
            measure(defended, point, cast(Attack, attack), lambda: model)
        assert isinstance(told.value, Asked) or isinstance(told.value.__cause__, Asked), name
