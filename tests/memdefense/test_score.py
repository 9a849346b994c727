from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats  # type: ignore[import-untyped, unused-ignore]

from memdefense import score
from memdefense.errors import DataError
from memdefense.score import (
    Score,
    excess,
    excess_terms,
    mover_ratio,
    paired_excess,
    precision,
    rate,
    standardised_chance,
    ter,
    wilson,
)


def known(value: float, low: float, high: float) -> Score:
    return Score(value, low, high, 100, events=7)


def test_names_others_rely_on_live_here() -> None:
    assert {"wilson", "auc", "tpr_at_fpr"} <= set(score.__all__)
    assert all(hasattr(score, name) for name in score.__all__)


def test_rate_of_unclustered_units_is_wilsons() -> None:
    hits = [1] * 7 + [0] * 33
    found = rate(hits, [f"p{i}" for i in range(40)])
    expected = stats.binomtest(7, 40).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert (found.value, found.n, found.events, found.higher_is_better) == (7 / 40, 40, 7, False)


def test_rate_divides_n_by_the_design_effect() -> None:
    # Two persons of two: the design effect is 3 (worked in test_interval).
    found = rate([1, 1, 0, 0], ["a", "a", "b", "b"])
    assert (found.low, found.high) == pytest.approx(wilson(2 / 3, 4 / 3))
    lent = rate([0] * 10, ["a"] * 5 + ["b"] * 5, deff=2.5)
    assert (lent.low, lent.high) == pytest.approx(wilson(0, 4))
    assert rate([0] * 10, ["a"] * 5 + ["b"] * 5).high == pytest.approx(wilson(0, 10)[1])


def test_rate_of_nothing_and_of_bad_hits() -> None:
    empty = rate([], [])
    assert math.isnan(empty.value)
    assert (empty.low, empty.high, empty.n, empty.events) == (0.0, 1.0, 0, 0)
    for wrong in (2.0, 1.1, -0.1):
        with pytest.raises(DataError, match="1 of 2 hits"):
            rate([wrong, 0.0], ["a", "b"])
    with pytest.raises(DataError, match="1 of 2 hits"):
        rate([math.nan, 0.0], ["a", "b"])
    with pytest.raises(DataError, match="groups"):
        rate([1.0, 0.0], ["a"])
    with pytest.raises(DataError, match="design effect"):
        rate([1.0], ["a"], deff=0.5)


def test_excess_by_hand() -> None:
    found = excess(known(0.6, 0.5, 0.7), known(0.2, 0.1, 0.3))
    ratio, low, high = mover_ratio(known(0.4, 0.3, 0.5), known(0.8, 0.7, 0.9))
    assert found.value == pytest.approx(0.5) == 1 - ratio
    assert (found.low, found.high) == (1 - high, 1 - low)
    assert (found.n, found.events, found.higher_is_better) == (100, 7, False)


def test_excess_is_signed_and_knows_its_ends() -> None:
    assert excess(known(0.1, 0.05, 0.2), known(0.4, 0.3, 0.5)).value == pytest.approx(-0.5)
    zero = excess(known(0.0, 0.0, 0.04), known(0.0, 0.0, 0.04))
    assert zero.value == 0.0
    assert zero.low < -0.03 < 0.03 < zero.high
    full = excess(known(1.0, 0.96, 1.0), known(0.1, 0.05, 0.2))
    assert (full.value, full.high) == (1.0, 1.0)
    assert 0.9 < full.low < 0.96
    assert math.isnan(excess(known(0.3, 0.2, 0.4), Score(math.nan, 0.0, 1.0, 0)).value)
    assert math.isnan(excess(known(0.3, 0.2, 0.4), known(1.0, 0.9, 1.0)).value)
    vague = excess(known(0.3, 0.2, 0.4), known(0.5, 0.1, 1.0))
    assert (vague.low, vague.high) == (-1.0, 1.0)
    below = excess(known(0.0, 0.0, 0.04), known(0.6, 0.5, 0.7))  # others' values come out more often than not
    assert below.low == below.value == pytest.approx(-1.5)


def clustered(
    rng: np.random.Generator, p: float, c: float, together: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], list[str]]:
    """Hits at rate p and twin hits at rate c of 80 persons with 4 units each, of intraclass correlation 1/4."""

    def draw(rate: float) -> npt.NDArray[np.float64]:
        return stats.beta.ppf(shared, 3 * rate, 3 * (1 - rate)) if rate else np.zeros(80)

    shared = rng.random(80)
    ours = draw(p)
    if rng.random() >= together:
        shared = rng.random(80)
    twins = draw(c)
    hits = (rng.random((80, 4)) < ours[:, np.newaxis]).astype(float).ravel()
    twin_hits = (rng.random((80, 4)) < twins[:, np.newaxis]).astype(float).ravel()
    return hits, twin_hits, [f"p{i // 4}" for i in range(320)]


@pytest.mark.parametrize("together", [0.0, 1.0])
@pytest.mark.parametrize(("p", "c"), [(0.02, 0.0), (0.02, 0.02), (0.10, 0.02), (0.60, 0.10)])
def test_excess_over_twins_covers(p: float, c: float, together: float) -> None:
    rng = np.random.default_rng(round(100 * p + 10 * c + together))
    truth, covered, values = (p - c) / (1 - c), 0, []
    for _ in range(300):
        found = paired_excess(*clustered(rng, p, c, together))
        covered += found.low <= truth <= found.high
        values.append(found.value)
    assert 0.90 <= covered / 300 <= 0.99
    assert np.mean(values) == pytest.approx(truth, abs=0.008)


@pytest.mark.parametrize("p", [0.02, 0.10, 0.60])
def test_a_ratio_of_rates_covers(p: float) -> None:
    rng = np.random.default_rng(round(100 * p))
    covered = 0
    for _ in range(400):
        a, b = (rate(rng.random(500) < q, [""] * 500) for q in (p / 2, p))
        _, low, high = mover_ratio(a, b)
        covered += low <= 0.5 <= high
    assert 0.90 <= covered / 400 <= 0.99


def test_paired_excess_uses_that_twins_share_prompts() -> None:
    rng = np.random.default_rng(8)
    hits, twin_hits, groups = clustered(rng, 0.5, 0.45, 1.0)
    paired = paired_excess(hits, twin_hits, groups)
    apart = excess(rate(hits, groups), rate(twin_hits, groups))
    assert paired.value == apart.value
    assert paired.high - paired.low < 0.9 * (apart.high - apart.low)
    nothing = paired_excess(np.zeros(320), np.zeros(320), groups)
    assert nothing.value == 0.0
    assert nothing.low < 0.0 < nothing.high
    assert math.isnan(paired_excess([], [], []).value)
    with pytest.raises(DataError, match="320 hits but 1 twin hits"):
        paired_excess(hits, [1.0], groups)


def test_excess_terms_have_the_leakage_as_mean() -> None:
    rng = np.random.default_rng(9)
    hits, twin_hits, groups = clustered(rng, 0.5, 0.2, 0.0)
    assert excess_terms(hits, twin_hits).mean() == pytest.approx(paired_excess(hits, twin_hits, groups).value)
    assert excess_terms([1, 0, 0, 0], 0.2).tolist() == pytest.approx([1.0, -0.25, -0.25, -0.25])
    assert excess_terms([1, 0], 0.95).tolist() == pytest.approx([1.0, -19.0])
    assert excess_terms([], []).shape == (0,)
    with pytest.raises(DataError, match="chance rate is 1"):
        excess_terms([1.0], 1.0)
    with pytest.raises(DataError, match="3 hits but 2 chance rates"):
        excess_terms([1, 0, 0], [0, 0])


def test_chance_is_spread_over_strata_as_the_members_are() -> None:
    # Members 3:1; non-members' rates 1/2 and 0: chance = 3/4 * 1/2. Weights 3/8 twice and 1/8 twice.
    found = standardised_chance(["a", "a", "a", "b"], [1, 0, 0, 0], ["a", "a", "b", "b"])
    assert found.value == pytest.approx(0.375)
    effective = 1 / (2 * (3 / 8) ** 2 + 2 * (1 / 8) ** 2)
    assert (found.low, found.high) == pytest.approx(wilson(0.375 * effective, effective))
    assert (found.n, found.events) == (4, 1)


def test_chance_of_equal_strata_is_the_plain_rate() -> None:
    hits, strata = [1, 0, 0, 1, 0, 0], ["a", "a", "a", "b", "b", "b"]
    found = standardised_chance(["a", "b"], hits, strata)
    plain = rate(hits, [""] * 6)
    assert (found.value, found.low, found.high) == pytest.approx((plain.value, plain.low, plain.high))
    persons = standardised_chance(["a", "b"], hits, strata, groups=["p", "p", "q", "p", "q", "q"])
    assert persons.high > found.high


@pytest.mark.parametrize(
    ("member", "expected"),
    [
        ("email/free/5-16", 1.0),  # as it stands
        ("email/free/>16", 0.75),  # all of email/free: 1, 1, 1, 0
        ("email/guessable/1", 0.6),  # all of email: those and 0
        ("phone/free/1", 0.5),  # everybody: 3 of 6
        ("", 0.5),
    ],
)
def test_a_stratum_without_non_members_backs_off(member: str, expected: float) -> None:
    strata = ["email/free/5-16", "email/free/5-16", "email/free/1", "email/free/1", "email/odd/1", "account/free/1"]
    assert standardised_chance([member], [1, 1, 1, 0, 0, 0], strata).value == pytest.approx(expected)


def test_chance_without_either_side_is_unknown() -> None:
    for found in (standardised_chance([], [1.0], ["a"]), standardised_chance(["a"], [], [])):
        assert math.isnan(found.value)
        assert (found.low, found.high) == (0.0, 1.0)
    with pytest.raises(DataError, match="strata of non-members"):
        standardised_chance(["a"], [1.0], [])


def test_ter_and_precision_name_their_denominators() -> None:
    generated, originals = {"a", "b", "c"}, {"b", "c", "d", "e", "f"}
    assert ter(generated, originals) == 2 / 5
    assert precision(generated, originals) == 2 / 3
    assert math.isnan(ter(generated, set()))
    assert math.isnan(precision(set(), originals))
    assert ter(set(), originals) == 0.0
