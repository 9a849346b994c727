from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped, unused-ignore]

from memdefense.crossfit import NOTHING, Reading, SeedCurve, cross_seed_aurc, cross_seed_gain, cross_seed_maxter
from memdefense.errors import DataError
from memdefense.maxter import OperatingPoint, aurc, maxter

NAN = math.nan


def random_arm(rng: np.random.Generator, seeds: int = 3, labels: int = 4) -> list[SeedCurve]:
    # Rounded, so that leakages and costs tie.
    return [
        SeedCurve(
            {f"p{i}": Reading(*rng.uniform([-2, -0.1], [25, 0.5]).round(1).tolist()) for i in range(labels)},
            round(rng.uniform(0.1, 0.6), 1),
        )
        for _ in range(seeds)
    ]


def one_seed_out(arm: list[SeedCurve], tau: float) -> tuple[float, list[str]]:
    """The definition, word for word, in plain Python."""
    total, chosen = 0.0, []
    for s, curve in enumerate(arm):
        others = [other for t, other in enumerate(arm) if t != s]
        options = []
        for label in arm[0].readings:
            if float(np.mean([other.readings[label].delta for other in others])) <= tau + 1e-9:
                kept = sum(other.readings[label].leakage for other in others) / sum(o.undefended for o in others)
                cost = float(np.mean([other.readings[label].delta for other in others]))
                options.append((round(1 - kept, 9), -round(cost, 9), label))
        best = max(options, key=lambda option: option[:2], default=(0.0, 0.0, ""))
        if best[0] > 0:
            chosen.append(best[2])
            total += curve.readings[best[2]].leakage
        else:
            chosen.append(NOTHING)
            total += curve.undefended
    return 100 * (1 - total / sum(curve.undefended for curve in arm)), chosen


def test_maxter_equals_the_definition() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        arm = random_arm(rng, int(rng.integers(2, 6)), int(rng.integers(0, 6)))
        for tau in (0.0, 1.0, 5.05, 20.0):
            value, chosen = one_seed_out(arm, tau)
            found = cross_seed_maxter(arm, tau)
            assert found.value == pytest.approx(value)
            assert list(found.chosen) == chosen


def test_aurc_equals_a_fine_grid() -> None:
    rng = np.random.default_rng(2)
    for _ in range(8):
        arm = random_arm(rng, seeds=3, labels=3)
        # Mean costs of two seeds are multiples of 0.05, so midpoints of this grid meet no step.
        grid = (np.arange(400) + 0.5) / 20
        expected = np.mean([one_seed_out(arm, float(tau))[0] for tau in grid])
        assert cross_seed_aurc(arm).value == pytest.approx(expected)


def test_an_estimate_by_hand() -> None:
    arm = [
        SeedCurve({"a": Reading(1.0, 0.1), "b": Reading(4.0, 0.0)}, 0.4),
        SeedCurve({"a": Reading(3.0, 0.2), "b": Reading(8.0, 0.1)}, 0.5),
    ]
    # Within 5 %: seed 0 sees b cost 8 and takes a; seed 1 sees b cost 4 and takes it, at a realised cost of 8.
    found = cross_seed_maxter(arm, 5.0)
    assert found.chosen == ("a", "b")
    assert found.deltas == (1.0, 8.0)
    assert found.value == pytest.approx(100 * (1 - 0.2 / 0.9))
    assert found.reductions == pytest.approx((75.0, 80.0))
    assert found.scope == "seeds"
    # a = 0.1 twice has no variance, b = 0.4, 0.5 has 0.005; R = 2/9, so se = R sqrt(0.005 / 2) / 0.45.
    half = 100 * stats.t.ppf(0.975, 1) * (2 / 9) * 0.05 / 0.45
    assert found.run_limits == pytest.approx((found.value - half, found.value + half))
    assert (found.low, found.high) == found.run_limits
    assert all(math.isnan(x) for x in found.sample_limits)


def test_a_reading_is_not_clamped() -> None:
    arm = [SeedCurve({"a": Reading(1.0, a)}, 0.5) for a in (0.7, 0.3)]
    # Seed 0 sees a fall and meets a rise; seed 1 sees a rise and does nothing.
    found = cross_seed_maxter(arm, 5.0)
    assert found.chosen == ("a", NOTHING)
    assert found.value == pytest.approx(-20.0)
    assert found.reductions == pytest.approx((-40.0, 0.0))
    assert found.deltas == (1.0, 0.0)


def test_no_hit_on_any_seed_still_has_width() -> None:
    def arm(low: float, high: float) -> list[SeedCurve]:
        return [SeedCurve({"a": Reading(1.0, 0.0, low, high)}, 0.4, 0.35, 0.45) for _ in range(3)]

    bare = cross_seed_maxter(arm(NAN, NAN), 5.0)
    assert (bare.value, bare.low, bare.high) == (100.0, 100.0, 100.0)
    wide = cross_seed_maxter(arm(-0.01, 0.02), 5.0)
    assert wide.run_limits == (100.0, 100.0)
    assert wide.low == wide.sample_limits[0] < 100 * (1 - 0.02 / 0.4)
    assert 100.0 < wide.high < 104.0


def test_doing_nothing_is_certain() -> None:
    arm = [SeedCurve({"a": Reading(9.0, 0.0)}, b, 0.1, 0.9) for b in (0.4, 0.5)]
    found = cross_seed_maxter(arm, 5.0)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)
    assert found.chosen == (NOTHING, NOTHING)


def test_budgets_at_which_nothing_is_done_add_no_width() -> None:
    # Only above 19 % can anything be done: 1/20 of the range, in which a tenth of the leakage is left on average.
    arm = [SeedCurve({"a": Reading(19.0, a)}, b) for a, b in ((0.04, 0.4), (0.05, 0.6), (0.06, 0.5))]
    area = cross_seed_aurc(arm)
    assert area.value == pytest.approx(90.0 / 20)
    above = cross_seed_maxter(arm, 20.0)
    assert area.high - area.low == pytest.approx((above.high - above.low) / 20)
    never = cross_seed_aurc([SeedCurve({"a": Reading(50.0, 0.0)}, b) for b in (0.1, 0.7, 0.3)])
    assert (never.value, never.low, never.high) == pytest.approx((0.0, 0.0, 0.0), abs=1e-9)


def test_labels_that_some_seed_lacks_cannot_be_chosen() -> None:
    good, bad = Reading(1.0, 0.1), Reading(1.0, NAN)
    for second in ({"b": good}, {"a": bad, "b": good}, {"a": Reading(math.inf, 0.0), "b": good}):
        arm = [SeedCurve({"a": Reading(1.0, 0.0), "b": good}, 0.4), SeedCurve(second, 0.4)]
        assert cross_seed_maxter(arm, 5.0).chosen == ("b", "b")


def test_bad_arms_are_refused() -> None:
    curve = SeedCurve({"a": Reading(1.0, 0.1)}, 0.4)
    with pytest.raises(DataError, match="1 seeds cannot leave one out"):
        cross_seed_maxter([curve], 5.0)
    with pytest.raises(DataError, match="seed number 1 has no undefended leakage"):
        cross_seed_maxter([curve, SeedCurve({}, NAN)], 5.0)
    with pytest.raises(DataError, match="NaN"):
        cross_seed_maxter([curve, curve], NAN)
    with pytest.raises(DataError, match="no range"):
        cross_seed_aurc([curve, curve], 0.0)
    with pytest.raises(DataError, match="same seeds"):
        cross_seed_gain([curve, curve], [curve, SeedCurve({}, 0.5)])
    assert math.isnan(cross_seed_maxter([SeedCurve({}, 0.0)] * 2, 5.0).value)


def test_seeds_that_agree_give_the_plain_figures() -> None:
    readings = {"a": Reading(2.0, 0.28), "b": Reading(10.0, 0.08)}
    points = [OperatingPoint(2.0, 30.0), OperatingPoint(10.0, 80.0)]
    arm = [SeedCurve(readings, 0.4)] * 3
    for tau in (1.0, 2.0, 5.0, 10.0):
        assert cross_seed_maxter(arm, tau).value == pytest.approx(maxter(points, tau))
    assert cross_seed_aurc(arm).value == pytest.approx(aurc(points))


def test_gain_is_the_difference_of_areas_with_paired_limits() -> None:
    rng = np.random.default_rng(3)
    arm = random_arm(rng, 4)
    baseline = [
        SeedCurve(other.readings, curve.undefended) for curve, other in zip(arm, random_arm(rng, 4), strict=True)
    ]
    found = cross_seed_gain(arm, baseline)
    assert found.value == pytest.approx(cross_seed_aurc(arm).value - cross_seed_aurc(baseline).value)
    assert found.low < found.value < found.high
    same = cross_seed_gain(arm, arm)
    assert (same.value, same.low, same.high) == pytest.approx((0.0, 0.0, 0.0), abs=1e-9)


def noisy_arm(rng: np.random.Generator, seeds: int, effect: float) -> list[SeedCurve]:
    """Five points within budget; base rate 10 % of 200 secrets, run noise 20 %; ``effect`` taken away by each."""

    def leakage(kept: float) -> float:
        return float(rng.binomial(200, min(0.1 * kept * math.exp(0.2 * rng.normal()), 1.0))) / 200

    return [
        SeedCurve({f"p{i}": Reading(1.0, leakage(1 - effect)) for i in range(5)}, leakage(1.0)) for _ in range(seeds)
    ]


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_plain_maximum_flatters_and_leaving_a_seed_out_does_not(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    plain, left_out = [], []
    for _ in range(300):
        arm = noisy_arm(rng, seeds, 0.0)
        for curve in arm:
            points = [
                OperatingPoint(r.delta, 100 * (1 - r.leakage / curve.undefended)) for r in curve.readings.values()
            ]
            plain.append(maxter(points, 5.0))
        left_out.append(cross_seed_maxter(arm, 5.0).value)
    assert np.mean(plain) > 25.0
    assert abs(np.mean(left_out)) < 4.0


@pytest.mark.parametrize("seeds", [3, 5])
def test_limits_cover_a_true_half(seeds: int) -> None:
    rng = np.random.default_rng(10 + seeds)
    found = [cross_seed_maxter(noisy_arm(rng, seeds, 0.5), 5.0) for _ in range(800)]
    assert np.mean([estimate.value for estimate in found]) == pytest.approx(50.0, abs=3.0)
    assert 0.90 <= np.mean([estimate.low <= 50.0 <= estimate.high for estimate in found]) <= 0.99
