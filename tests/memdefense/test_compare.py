from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped, unused-ignore]

from memdefense.compare import Standing, better, compared, holm, sign_flips
from memdefense.crossfit import AcrossSeeds
from memdefense.cut import Cut
from memdefense.folds import WithinRun
from memdefense.interval import Floats
from memdefense.persons import PLUS
from memdefense.simulation import Truth, arms


def test_sign_flips_equal_all_permutations() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(0.4, 1.0, (5, 10)).round(1)
    found = sign_flips(rows, flips=40_000)
    for row, p in zip(rows, found, strict=True):
        sums = [abs(float(np.dot(signs, row))) for signs in itertools.product((1, -1), repeat=10)]
        exact = np.mean([total >= abs(row.sum()) - 1e-9 for total in sums])
        assert p == pytest.approx(exact, abs=0.012)


def test_sign_flips_of_many_persons_equal_scipy() -> None:
    rng = np.random.default_rng(2)
    row = rng.normal(0.08, 1.0, 500)
    theirs = stats.permutation_test(
        (row,), np.sum, permutation_type="samples", n_resamples=9999, rng=np.random.default_rng(3), vectorized=True
    )
    assert sign_flips(row[np.newaxis]) == pytest.approx([theirs.pvalue], abs=0.02)
    assert sign_flips(np.zeros((1, 40))) == pytest.approx([1.0])
    assert sign_flips(np.ones((1, 100)), flips=999) == pytest.approx([0.001])


def test_sign_flips_keep_their_level() -> None:
    rng = np.random.default_rng(4)
    # A person's differences repeat on three seeds; as 300 units of their own they would look like evidence.
    persons = rng.normal(size=(1000, 100))
    assert (sign_flips(3 * persons, flips=999) < 0.05).mean() == pytest.approx(0.05, abs=0.02)


def test_holm_by_hand() -> None:
    # 0.01 * 4, 0.02 * 3, 0.03 * 2 (kept at 0.06), 0.5.
    assert holm([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def of(rng: np.random.Generator, effects: list[float], noise: float, seeds: int = 3) -> dict[str, Standing]:
    found = arms(rng, Truth(base=0.6, noise=noise, seeds=seeds, points=2), effects)
    cuts: dict[str, Cut] = {f"arm {i}": AcrossSeeds(table, resamples=50) for i, table in enumerate(found)}
    return compared(list(cuts), lambda a, b: (cuts[a], cuts[b]))


def test_arms_far_apart_are_ranked_and_equal_ones_are_ties() -> None:
    found = of(np.random.default_rng(5), [0.0, 0.5, 0.5, 0.95], noise=0.0, seeds=5)
    assert found["arm 3"].rank == (1, 1)
    assert found["arm 1"].rank == found["arm 2"].rank == (2, 3)
    assert found["arm 0"].rank == (4, 4)
    versus = found["arm 3"].versus["arm 0"]
    assert versus["difference"] == -found["arm 0"].versus["arm 3"]["difference"] > 80
    assert versus["holm"] < 0.05 < found["arm 1"].versus["arm 2"]["holm"]
    assert versus["seeds"] == 5
    other = found["arm 0"].versus["arm 3"]
    assert 0 < versus["low"] < versus["difference"] < versus["high"]
    assert (other["low"], other["high"]) == (-versus["high"], -versus["low"])
    assert of(np.random.default_rng(6), [0.1], 0.0)["arm 0"].rank == (1, 1)


def test_a_lucky_run_ranks_nobody() -> None:
    rng = np.random.default_rng(7)
    permuted, ranked = [], []
    for _ in range(60):
        found = of(rng, [0.5, 0.5], noise=0.2)
        permuted.append(found["arm 0"].versus["arm 1"]["p"] < 0.05)
        ranked.append(found["arm 0"].rank != (1, 2))
    # The permutation speaks of these trained models; the interval between seeds knows that others would differ.
    assert np.mean(permuted) > 0.2
    assert np.mean(ranked) <= 0.12


@pytest.mark.parametrize("seeds", [2, 3])
def test_among_many_equal_arms_hardly_any_order_is_shown(seeds: int) -> None:
    rng = np.random.default_rng(8)
    found = [of(rng, [0.5] * 6, noise=0.3, seeds=seeds) for _ in range(25)]
    false = [any(standing.rank != (1, 6) for standing in one.values()) for one in found]
    # Persons alone would order them almost always, and runs pair by pair far too often.
    by_persons = [
        any(v["p"] < 0.05 / 15 for standing in one.values() for v in standing.versus.values()) for one in found
    ]
    by_pairs = [any(v["run_p"] < 0.05 for standing in one.values() for v in standing.versus.values()) for one in found]
    assert np.mean(by_persons) > 0.5
    assert np.mean(by_pairs) > 0.1
    assert np.mean(false) <= 0.12


def test_the_chance_over_runs_is_students() -> None:
    rng = np.random.default_rng(9)
    standing = of(rng, [0.0, 0.9], noise=0.1, seeds=4)["arm 1"].versus["arm 0"]
    cuts = [AcrossSeeds(table) for table in arms(np.random.default_rng(9), Truth(0.6, 0.1, 4, points=2), [0.0, 0.9])]
    gain = cuts[1].gain(cuts[0])
    error = (gain.run_limits[1] - gain.value) / stats.t.ppf(0.975, 3)
    assert standing["run_p"] == pytest.approx(2 * stats.t.sf(gain.value / error, 3), rel=1e-6)


def test_arms_of_one_run_are_ordered_among_themselves_and_not_beside_arms_of_several() -> None:
    rng = np.random.default_rng(10)
    single: dict[str, Cut] = {
        f"arm {i}": WithinRun(table) for i, table in enumerate(arms(rng, Truth(0.6, 0.0, 1, points=2), [0.0, 0.9]))
    }
    alone = compared(list(single), lambda a, b: (single[a], single[b]))
    versus = alone["arm 1"].versus["arm 0"]
    assert (versus["seeds"], versus["run_p"]) == (1, 0.0), "of one run nothing is known beyond it"
    assert versus["holm"] == versus["p"] < 0.05
    assert alone["arm 1"].rank == (1, 1)

    several = [AcrossSeeds(table) for table in arms(rng, Truth(0.6, 0.0, 3, points=2), [0.0, 0.9])]

    def cuts(a: str, b: str) -> tuple[Cut, Cut]:
        return (several[0], several[1]) if {a, b} == {"x", "y"} else (single["arm 0"], single["arm 1"])

    mixed = compared(["x", "y", "z"], cuts)
    assert mixed["y"].versus["x"]["run_p"] < 0.05
    assert mixed["y"].versus["x"]["seeds"] == 3
    for other in ("x", "y"):
        assert mixed["z"].versus[other]["run_p"] == mixed["z"].versus[other]["holm"] == 1.0


def test_runs_that_agree_to_the_last_digit() -> None:
    table = arms(np.random.default_rng(11), Truth(0.6, 0.0, 3, points=2), [0.4])[0]
    same = compared(["a", "b"], lambda *_: (AcrossSeeds(table), AcrossSeeds(table)))["a"]
    assert same.versus["b"]["run_p"] == same.versus["b"]["p"] == 1.0
    assert same.rank == (1, 2)
    # At a cost of 1 % all is taken away on every run: 19 twentieths of the area, each time, which is no chance.
    none, everything = (
        AcrossSeeds(dataclasses.replace(table, parts=_scaled(table.parts, scale))) for scale in (1.0, 0.0)
    )
    told = compared(["a", "b"], lambda *_: (everything, none))["a"].versus["b"]
    assert told["difference"] == pytest.approx(95.0)
    assert told["run_p"] < 1e-9
    assert told["holm"] < 0.05


def _scaled(parts: Floats, scale: float) -> Floats:
    """Points that leak this share of the undefended run, person by person and run by run."""
    found = parts.copy()
    found[PLUS, :, 1:] = scale * found[PLUS, :, :1]
    return found


def test_an_order_needs_both_a_small_chance_and_an_interval_above_nothing() -> None:
    assert better({"holm": 0.049, "low": 0.1})
    for holm_p, low in ((0.05, 0.1), (0.06, 0.1), (0.01, 0.0), (0.01, -0.1)):
        assert not better({"holm": holm_p, "low": low})


def test_arms_that_share_no_run_are_ties() -> None:
    assert compared(["a", "b"], lambda *_: None)["a"].rank == (1, 2)
    assert compared([], lambda *_: None) == {}
