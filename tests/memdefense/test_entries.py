"""Entries against numbers worked by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest

from memdefense.attack import Term
from memdefense.entries import Arm, Measured, entries_of, entry_of
from memdefense.score import Score, Scores


def measured(
    seed: int,
    label: str,
    delta: float,
    leakage: float,
    *,
    ter: float | None = None,
    events: int = 40,
    units: int = 60,
    attack: str = "",
) -> Measured:
    head = Score(leakage, leakage - 0.05, leakage + 0.05, units, False, events)
    hits = round(leakage * units)  # of persons by turns, so that points are not of the same ones
    terms = [Term(f"u{n}", f"p{n}", float((7 * n + 3 * seed) % units < hits)) for n in range(units)]
    beside = {} if ter is None else {"ter": Score(ter, ter, ter, units)}
    return Measured(seed, label, delta, Scores(head, beside), terms, 10 * (1 + delta / 100), attack=attack)


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
    weak = [measured(0, "1.0", 0, 0.0)]
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
    assert "1.0/repair-1" not in entry(extra, NONE)["deltas"]
    assert entry(extra, NONE)["left_out"] == ["1.0/repair-1"]
    # What is left at the end is no number where seeds end at different points.
    assert entry(extra, NONE)["leakage"] is None
    assert entry(ARM, NONE)["leakage"]["value"] == pytest.approx(0.125)
    # A seed without the arm is left out, and the other is taken for itself.
    assert entry(ARM[:2], NONE)["seeds"] == [0]


def test_points_of_which_no_seed_has_another_s_resolve_nothing() -> None:
    perfect = [measured(0, "edits-961", 0, 0.0), measured(1, "edits-929", 0, 0.0)]
    found = entry(perfect, NONE)
    assert not found["resolvable"]
    assert "no operating point was measured on every seed (edits-961, edits-929)" in found["note"]
    assert found["leakage"] is None


def test_a_cost_without_bound_on_one_seed_decides_for_the_others_alone() -> None:
    arm = [measured(0, "1.0", math.inf, 0.0), measured(1, "1.0", 1.0, 0.0)]
    found = entry(arm, NONE)
    # Seed 0 is read at what seed 1 chose; seed 1, of which seed 0 knows that it may end in ruin, is left alone.
    assert found["maxter"]["5"]["chosen"] == ("1.0", "do nothing")
    assert found["maxter"]["5"]["value"] == pytest.approx(100 * 0.5 / 0.9)


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


def test_the_worst_attack_of_a_family_by_hand() -> None:
    def both(label: str, delta: float, a: float, b: float) -> list[Measured]:
        return [
            measured(seed, label, delta, leakage, attack=attack)
            for seed in (0, 1)
            for attack, leakage in (("a", a), ("b", b))
        ]

    none = both("1.0", 0, 0.5, 0.3)
    # The defense stops a and not b: what is left of the worst is 0.3 of 0.5, though of a alone a tenth is.
    found = entry(both("1.0", 2, 0.05, 0.3), none)
    assert found["maxter"]["5"]["value"] == pytest.approx(40)
    assert found["maxter"]["5"]["readings"] == ("b/", "b/")
    assert found["leakage"]["value"] == pytest.approx(0.3)
    assert found["leakage"]["readings"] == ("b/", "b/")
    assert found["undefended"]["readings"] == ("a/", "a/")
    assert found["plain"]["maxter"]["5"] == pytest.approx(40)
    assert found["paper"] is None
    # One that makes no sense against the defense is left out; what it found undefended stays.
    alone = [point for point in both("1.0", 2, 0.05, 0.3) if point.attack == "a"]
    assert entry(alone, none)["maxter"]["5"]["value"] == pytest.approx(90)


def test_a_score_and_its_sign_are_chosen_on_other_seeds() -> None:
    def point(seed: int, loss: float, zlib: float) -> Measured:
        head = Score(loss, loss - 0.05, loss + 0.05, 60, False)
        terms = [
            Term(f"u{n}", f"p{n}", value + 0.2 * (-1) ** n, reading)
            for reading, value in (("", loss), ("zlib", zlib))
            for n in range(60)
        ]
        return Measured(seed, "1.0", 0.0, Scores(head, {}), terms, 10.0, two_sided=True)

    none = [point(seed, 0.1, -0.6) for seed in (0, 1, 2)]
    found = entry([point(seed, -0.3, 0.0) for seed in (0, 1, 2)], none)
    assert found["undefended"]["readings"] == ("-zlib",) * 3
    assert found["leakage"]["readings"] == ("-",) * 3
    assert found["maxter"]["1"]["value"] == pytest.approx(50)
    # Seed 0 leaks the other way than the others: read with their sign it is below 0, and shown as no leakage.
    turned = entry([point(0, -0.9, 0.0), point(1, 0.1, 0.0), point(2, 0.1, 0.0)], none)["leakage"]
    assert (turned["value"], turned["low"]) == (0.0, 0.0)


def test_an_entry_holds_what_its_values_are_made_of() -> None:
    found = entry(ARM, NONE)
    leakage, deltas = found["readings"][""], found["deltas"]
    for tau, estimate in found["maxter"].items():
        read = [leakage[label][seed] for seed, label in enumerate(estimate["chosen"])]
        assert estimate["value"] == pytest.approx(100 * (1 - sum(read) / sum(leakage["do nothing"])))
        assert [deltas[label][seed] for seed, label in enumerate(estimate["chosen"])] == list(estimate["deltas"])
        others = [deltas[label][1 - seed] for seed, label in enumerate(estimate["chosen"])]
        assert max(others) <= float(tau)
    for name in ("low", "high", "run_limits", "sample_limits"):
        assert name in found["gain"]


def test_arms_of_a_run_are_ranked_with_ties_shown() -> None:
    weak = [measured(seed, "1.0", 1, 0.5) for seed in (0, 1)]
    found = entries_of(
        {"none": Arm(NONE, NONE), "arm": Arm(ARM, NONE), "again": Arm(ARM, NONE), "weak": Arm(weak, NONE)}
    )
    ranks = {label: entry["rank"] for label, entry in found.items()}
    assert ranks["arm"] == ranks["again"]
    assert found["arm"]["of"] == 4
    versus = cast(Mapping[str, Any], found["arm"]["versus"])
    assert versus["again"]["p"] == 1.0
    assert versus["none"]["difference"] == pytest.approx(cast(Mapping[str, Any], found["arm"]["gain"])["value"])
    assert "rank" not in entry_of(Arm(ARM, NONE))
    # An arm on one seed is compared with the others there, and changes nothing between those of two.
    more = entries_of({"none": Arm(NONE, NONE), "arm": Arm(ARM, NONE), "one": Arm(ARM[:2], NONE)})
    theirs = cast(Mapping[str, Any], more["arm"]["versus"])
    assert (theirs["none"]["seeds"], theirs["one"]["seeds"]) == (2, 1)
    assert theirs["none"]["difference"] == pytest.approx(versus["none"]["difference"])
    assert theirs["one"]["difference"] == pytest.approx(0.0)
    # What one run shows is no order among arms of several.
    one = cast(Mapping[str, Any], more["one"]["versus"])
    assert one["none"]["run_p"] == one["none"]["holm"] == 1.0
    alone = entries_of({"none": Arm(NONE[:2], NONE[:2]), "arm": Arm(ARM[:2], NONE[:2])})
    assert cast(Mapping[str, Any], alone["arm"]["versus"])["none"]["run_p"] == 0.0
    few = [measured(seed, "1.0", 0, 0.5, events=3) for seed in (0, 1)]
    assert "rank" not in entries_of({"none": Arm(few, few)})["none"]


def test_a_leakage_below_chance_takes_no_more_than_all_away() -> None:
    none = [measured(seed, "1.0", 0.0, 0.4) for seed in (0, 1)]
    ours = [measured(0, "1.0", 3.0, -0.3), measured(1, "1.0", 3.0, -0.1), measured(0, "0.5", 2.0, -0.2)]
    ours.append(measured(1, "0.5", 2.0, 0.3))
    plain = entry(ours, none)["plain"]
    assert plain["points"]["1.0"]["reduction"] == 100.0
    # Averaged over seeds before it is cut off: 150 and 25.
    assert plain["points"]["0.5"]["reduction"] == pytest.approx(87.5)
    assert plain["maxter"]["5"] == 100.0


def test_where_nothing_leaks_undefended_no_share_of_it_is_taken_away() -> None:
    none = [measured(seed, "1.0", 0.0, leakage) for seed, leakage in ((0, 0.0), (1, -0.1))]
    plain = entry([measured(seed, "1.0", 1.0, 0.1) for seed in (0, 1)], none)["plain"]
    assert math.isnan(plain["points"]["1.0"]["reduction"])
    assert plain["maxter"] == {"1": 0.0, "5": 0.0, "20": 0.0}
    assert plain["front"] == [{"delta": 0.0, "reduction": 0.0}]
