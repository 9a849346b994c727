"""Entries against numbers worked by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest

from memdefense.attack import Term
from memdefense.entries import Arm, Measured, entry_of
from memdefense.score import Score, Scores


def measured(
    seed: int, label: str, delta: float, leakage: float, *, ter: float | None = None, events: int = 40, units: int = 60
) -> Measured:
    head = Score(leakage, leakage - 0.05, leakage + 0.05, units, False, events)
    terms = [Term(f"u{n}", f"p{n}", leakage) for n in range(units)]
    beside = {} if ter is None else {"ter": Score(ter, ter, ter, units)}
    return Measured(seed, label, delta, Scores(head, beside), terms, 10 * (1 + delta / 100))


NONE = [
    measured(0, "0.5", 10, 0.25),
    measured(0, "1.0", 0, 0.5),
    measured(1, "0.5", 10, 0.2),
    measured(1, "1.0", 0, 0.4),
]
ARM = [
    measured(0, "0.5", 4, 0.1),
    measured(0, "1.0", 0.5, 0.2),
    measured(1, "0.5", 4, 0.1),
    measured(1, "1.0", 0.5, 0.05),
]


def entry(points: Sequence[Measured], undefended: Sequence[Measured]) -> Mapping[str, Any]:
    return cast(Mapping[str, Any], entry_of(Arm(points, undefended)))


def test_two_seeds_by_hand() -> None:
    found = entry(ARM, NONE)
    assert found["resolvable"]
    assert (found["seeds"], found["scope"]) == ([0, 1], "seeds")
    # Each seed is read at the label the other chose: at most 1 %, "1.0" on both, 0.2 + 0.05 of 0.5 + 0.4.
    assert found["maxter"]["1"]["value"] == pytest.approx(100 * (1 - 0.25 / 0.9))
    assert found["maxter"]["1"]["chosen"] == ("1.0", "1.0")
    # At most 5 %: seed 0 would choose "0.5", which seed 1 is read at (0.1); seed 1 chooses "1.0" for seed 0 (0.2).
    assert found["maxter"]["5"]["value"] == pytest.approx(100 * (1 - 0.3 / 0.9))
    assert found["maxter"]["5"]["chosen"] == ("1.0", "0.5")
    area = (3.5 * 100 * (1 - 0.25 / 0.9) + 16 * 100 * (1 - 0.3 / 0.9)) / 20
    assert found["aurc"]["value"] == pytest.approx(area)
    # Stopping early takes half at 10 %, so on half of the range.
    assert found["gain"]["value"] == pytest.approx(area - 25)
    assert found["undefended"]["value"] == pytest.approx(0.45)
    assert found["plain"]["maxter"] == pytest.approx({"1": (60 + 87.5) / 2, "5": (80 + 75) / 2, "20": (80 + 75) / 2})


def test_the_undefended_run_gains_nothing_over_itself() -> None:
    found = entry(NONE, NONE)
    assert found["gain"]["value"] == pytest.approx(0)
    assert found["maxter"]["5"]["value"] == 0
    assert found["aurc"]["value"] == pytest.approx(25)


def test_one_seed_by_hand() -> None:
    found = entry([measured(3, "1.0", 3, 0.2)], [measured(3, "1.0", 0, 0.8)])
    assert found["scope"] == "this model only"
    assert found["maxter"]["1"]["value"] == 0
    assert found["maxter"]["5"]["value"] == pytest.approx(75)
    assert found["aurc"]["value"] == pytest.approx(75 * 17 / 20)
    assert found["gain"]["value"] == pytest.approx(75 * 17 / 20)
    assert found["maxter"]["5"]["low"] < 75 < found["maxter"]["5"]["high"]


def test_few_events_or_an_interval_that_reaches_chance_are_not_resolvable() -> None:
    few = [measured(0, "1.0", 0, 0.5, events=29)]
    weak = [measured(0, "1.0", 0, 0.04)]
    for undefended in (few, weak):
        found = entry([measured(0, "1.0", 0, 0.1)], undefended)
        assert not found["resolvable"]
        assert "not resolvable" in found["note"]
        assert "maxter" not in found
    # Events are pooled over seeds.
    pooled = [measured(0, "1.0", 0, 0.5, events=15), measured(1, "1.0", 0, 0.5, events=15)]
    assert entry(pooled, pooled)["resolvable"]


def test_too_few_persons_for_folds_are_not_resolvable() -> None:
    found = entry([measured(0, "1.0", 0, 0.1, units=4)], [measured(0, "1.0", 0, 0.5, units=4)])
    assert not found["resolvable"]
    assert "persons" in found["note"]


def test_no_seed_in_common() -> None:
    assert entry([], NONE)["resolvable"] is False
    assert entry([measured(7, "1.0", 0, 0.1)], NONE)["seeds"] == []


def test_a_label_that_a_seed_lacks_cannot_be_chosen() -> None:
    extra = [*ARM, measured(0, "1.0/repair-1", 0, 0.0)]
    assert entry(extra, NONE)["maxter"] == entry(ARM, NONE)["maxter"]
    assert "1.0/repair-1" not in entry(extra, NONE)["plain"]["points"]
    # A seed without the arm is left out, and the other is taken for itself.
    assert entry(ARM[:2], NONE)["seeds"] == [0]


def test_a_cost_that_is_unknown_cannot_be_chosen() -> None:
    unknown = [measured(seed, "1.0", math.nan, 0.0) for seed in (0, 1)]
    assert entry(unknown, NONE)["maxter"]["20"]["value"] == 0


def test_the_papers_figures_by_hand() -> None:
    base = [measured(0, "0.5", 0, 0.4, ter=0.2), measured(0, "1.0", 0, 0.5, ter=0.4)]
    mine = [measured(0, "0.5", 2, 0.1, ter=0.1), measured(0, "1.0", 8, 0.1, ter=0.05)]
    rival = [measured(0, "0.5", 16, 0.1, ter=0.1), measured(0, "1.0", 16, 0.1, ter=0.1)]
    arms = [Arm(points, base) for points in (base, mine, rival)]
    paper = cast(Mapping[str, Any], entry_of(arms[1])["paper"])
    assert paper["ter_mean"] == pytest.approx(100 * (1 - 0.15 / 0.6))
    assert paper["maxter_paper"] == pytest.approx(87.5)
    assert paper["aurc_paper"] == pytest.approx(50 * 6 / 8)  # its own largest cost, 8 %, ends the range
    paper = cast(Mapping[str, Any], entry_of(arms[1], arms)["paper"])
    assert paper["aurc_paper"] == pytest.approx((50 * 6 + 87.5 * 8) / 16)  # a rival's 16 % does
    assert entry_of(Arm([measured(0, "other", 2, 0.1, ter=0.1)], base))["paper"] is None
    assert entry(ARM, NONE)["paper"] is None  # no TER
