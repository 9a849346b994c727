from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped, unused-ignore]

from memdefense.errors import DataError
from memdefense.interval import (
    Draws,
    cluster_correlation,
    clustered_error,
    clusters,
    design_effect,
    few,
    mean_interval,
    mover_ratio,
    wilson,
)


@dataclasses.dataclass(frozen=True)
class Limits:
    value: float
    low: float
    high: float


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 40), (40, 40), (3, 17), (500, 20000)])
def test_wilson_equals_scipy(successes: int, n: int, level: float) -> None:
    expected = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    assert wilson(successes, n, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_takes_fractions_and_nothing_at_all() -> None:
    # The limits are where the score statistic (p - limit) / sqrt(limit (1 - limit) / n) is +-1.96.
    low, high = wilson(1.25, 2.5)
    assert (0.5 - low) / math.sqrt(low * (1 - low) / 2.5) == pytest.approx(1.959963985)
    assert (0.5 - high) / math.sqrt(high * (1 - high) / 2.5) == pytest.approx(-1.959963985)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 5)[0] == 0.0
    assert wilson(5, 5)[1] == 1.0


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (1, -1), (math.nan, 5), (0, math.inf)])
def test_wilson_refuses_what_is_no_proportion(successes: float, n: float) -> None:
    with pytest.raises(DataError, match="no proportion"):
        wilson(successes, n)


def test_any_level_between_0_and_1_is_one() -> None:
    low, high = wilson(3, 10, 0.05)
    assert (low, high) == pytest.approx(tuple(stats.binomtest(3, 10).proportion_ci(0.05, method="wilson")))


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0, math.nan])
def test_a_level_lies_between_0_and_1(level: float) -> None:
    with pytest.raises(DataError, match="confidence level"):
        wilson(1, 2, level)


def test_clusters_keep_unknown_persons_apart() -> None:
    codes, count = clusters(["b", "", "a", "b", ""])
    assert count == 4
    assert codes[0] == codes[3]
    assert len(set(codes.tolist())) == 4
    assert clusters([])[1] == 0


def test_design_effect_by_hand() -> None:
    # Two persons of two units with mean 1/2: e = (1/2, 1/2, -1/2, -1/2), cluster sums +-1.
    # [2/1 * (1 + 1)] / [4/3 * 4 * 1/4] = 4 / (4/3) = 3.
    assert design_effect([1, 1, 0, 0], ["a", "a", "b", "b"]) == pytest.approx(3.0)
    # Sums 0 and 0: below 1 is floored.
    assert design_effect([1, 0, 1, 0], ["a", "a", "b", "b"]) == 1.0


def test_design_effect_of_unclustered_constant_and_lone_units() -> None:
    assert design_effect([1, 0, 1], ["a", "b", "c"]) == 1.0
    assert design_effect([1, 0, 1], ["", "", ""]) == 1.0
    assert design_effect([0, 0, 0], ["a", "a", "b"]) == 1.0
    assert design_effect([], []) == 1.0
    assert design_effect([1, 0, 1], ["a", "a", "a"]) == 3.0
    with pytest.raises(DataError, match="3 values but 1 groups"):
        design_effect([1, 0, 1], ["a"])


def test_design_effect_predicts_the_variance_of_a_clustered_mean() -> None:
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(400), 5)
    names = [f"p{g}" for g in groups]
    means, effects = [], []
    for _ in range(300):
        rates = rng.beta(0.5, 0.5, size=400)[groups]
        hits = (rng.random(2000) < rates).astype(float)
        means.append(hits.mean())
        effects.append(design_effect(hits, names))
    # Intraclass correlation 1 / (0.5 + 0.5 + 1) = 1/2, so the truth is 1 + (5 - 1) / 2 = 3.
    assert np.mean(effects) == pytest.approx(3.0, rel=0.03)
    assert np.var(means) * 2000 / 0.25 == pytest.approx(3.0, rel=0.25)


def test_the_error_of_a_sum_is_that_of_its_persons_totals() -> None:
    # Totals 3, -1 and -2 (of someone unknown): sqrt(3 / 2 * 14).
    assert clustered_error([1, 2, -1, -2], ["a", "a", "b", ""]) == pytest.approx(math.sqrt(21))
    assert clustered_error([1, -1], ["a", "a"]) == 0.0
    assert clustered_error([], []) == 0.0
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(60), 4)
    drawn = rng.normal(size=(400, 60))[:, groups] + rng.normal(size=(400, 240))
    means = drawn.mean(1)
    errors = [clustered_error((row - row.mean()) / 240, [str(g) for g in groups]) for row in drawn]
    assert np.mean(errors) == pytest.approx(means.std(), rel=0.1)


def test_cluster_correlation_is_that_of_person_totals() -> None:
    rng = np.random.default_rng(2)
    groups = [f"p{i // 4}" for i in range(40)]
    a, b = rng.random(40), rng.random(40)
    totals_a, totals_b = a.reshape(10, 4).sum(1), b.reshape(10, 4).sum(1)
    assert cluster_correlation(a, b, groups) == pytest.approx(np.corrcoef(totals_a, totals_b)[0, 1])
    assert cluster_correlation(a, a, groups) == pytest.approx(1.0)
    assert cluster_correlation(a, np.zeros(40), groups) == 0.0
    assert cluster_correlation(a, -a, groups) == pytest.approx(-1.0)


def donner_zou(a: Limits, b: Limits) -> tuple[float, float]:
    """Equation 9 of Donner & Zou (2012), for positive estimates."""
    product = a.value * b.value
    upper_b, lower_b = b.high * (2 * b.value - b.high), b.low * (2 * b.value - b.low)
    low = (product - math.sqrt(product**2 - a.low * (2 * a.value - a.low) * upper_b)) / upper_b
    high = (product + math.sqrt(product**2 - a.high * (2 * a.value - a.high) * lower_b)) / lower_b
    return low, high


def test_mover_ratio_equals_the_published_formula() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        a, b = (Limits(v, v * rng.uniform(0.1, 0.99), v * rng.uniform(1.01, 1.9)) for v in rng.uniform(0.1, 2, 2))
        assert mover_ratio(a, b)[1:] == pytest.approx(donner_zou(a, b))


@pytest.mark.parametrize("correlation", [-0.9, 0.0, 0.6, 1.0])
def test_mover_ratio_limits_make_the_difference_touch_zero(correlation: float) -> None:
    rng = np.random.default_rng(4)
    for _ in range(300):
        value = rng.uniform(-1, 1)
        a = Limits(value, value - rng.uniform(0.01, 1), value + rng.uniform(0.01, 1))
        size = rng.uniform(0.1, 1)
        b = Limits(size, size * rng.uniform(0.05, 0.95), size * rng.uniform(1.05, 4))
        ratio, low, high = mover_ratio(a, b, correlation=correlation)
        assert ratio == a.value / b.value
        assert low <= ratio <= high
        for limit, end, sign in ((low, a.low, 1.0), (high, a.high, -1.0)):
            reach = abs(a.value - end)
            # The lower limit of a - R b takes the upper limit of b where R > 0, and the lower where R < 0.
            width = b.high - b.value if (limit >= 0) == (sign > 0) else b.value - b.low
            inside = reach**2 + (limit * width) ** 2 - 2 * correlation * limit * reach * width
            assert (a.value - limit * b.value) * sign == pytest.approx(math.sqrt(max(inside, 0)), abs=1e-6)


def test_mover_ratio_has_width_at_zero_and_none_where_the_denominator_is_unknown() -> None:
    b = Limits(0.5, 0.4, 0.6)
    ratio, low, high = mover_ratio(Limits(0.0, 0.0, 0.04), b)
    assert (ratio, low) == (0.0, 0.0)
    assert high > 0.04 / 0.5
    assert mover_ratio(b, Limits(0.1, 0.0, 0.2)) == (5.0, -math.inf, math.inf)
    assert all(math.isnan(x) for x in mover_ratio(b, Limits(0.0, -0.1, 0.1)))
    assert all(math.isnan(x) for x in mover_ratio(Limits(math.nan, 0.0, 1.0), b))
    # An upper limit of more than twice the denominator: the published fraction changes sign, the root stays.
    assert 0.0 < mover_ratio(Limits(0.5, 0.4, 0.6), Limits(0.5, 0.4, 1.2))[1] < 1.0


def test_mean_interval_equals_scipy() -> None:
    values = [3.0, 5.0, 4.5]
    expected = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert mean_interval(values) == pytest.approx(expected)
    assert all(math.isnan(x) for x in mean_interval([3.0]))
    assert all(math.isnan(x) for x in mean_interval([]))


def test_draws_are_pinned_and_uniform() -> None:
    assert Draws(0).counts(5, 20).tolist() == [5, 2, 3, 4, 6]
    counts = Draws(1).counts(10, 100_000)
    assert counts.sum() == 100_000
    assert stats.chisquare(counts).pvalue > 0.001
    # A table is the same stream cut into resamples.
    draws = Draws(2)
    assert Draws(2).table(7, 3).T.tolist() == [draws.counts(7, 7).tolist() for _ in range(3)]


def test_few_or_unequal_clusters_have_students_quantile() -> None:
    def student(freedom: float, level: float) -> float:
        return float(2 * stats.norm.cdf(stats.t.ppf(0.5 + level / 2, freedom)) - 1)

    assert few([3.0] * 10, 0.95) == pytest.approx(student(9, 0.95))
    assert few([1.0] * 1_000_000, 0.95) == pytest.approx(0.95, abs=1e-6)
    assert few([9.0, 8.0, 8.0, 8.0, 0.0], 0.9) == pytest.approx(student(33**2 / (81 + 192) - 1, 0.9))
    assert few([9.0, 1.0, 0.0], 0.9) == pytest.approx(student(2, 0.9))  # 100 / 82 of one size; two degrees are left
    assert few([1.0], 0.9999) < 1.0
    assert few([], 0.95) == 0.95
