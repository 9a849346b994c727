from __future__ import annotations

import math
import time

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve  # type: ignore[import-untyped, unused-ignore]

from memdefense.errors import DataError
from memdefense.roc import auc, auc_interval, auc_terms, placements, tpr_at_fpr


@pytest.mark.parametrize("levels", [2, 7, 10**6])
def test_auc_equals_sklearn_with_ties(levels: int) -> None:
    rng = np.random.default_rng(levels)
    for size in (2, 3, 50, 1000):
        labels = np.arange(size) % 3 == 0
        scores = rng.integers(0, levels, size) / 7.0
        assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_auc_by_hand() -> None:
    # Pairs of member 2 and 1 with non-members 1 and 0: wins 1, 1; half, 1: 3.5 of 4.
    assert auc([2, 1, 1, 0], [True, True, False, False]) == 0.875
    assert placements([2, 1, 1, 0], [True, True, False, False]).tolist() == [1.0, 0.75]
    assert auc([math.inf, -math.inf], [True, False]) == 1.0
    assert auc([-math.inf, -math.inf], [True, False]) == 0.5


def test_auc_of_one_class_or_nothing_is_unknown() -> None:
    for labels in ([True, True], [False, False]):
        assert math.isnan(auc([1.0, 2.0], labels))
        assert auc_interval([1.0, 2.0], labels) == (0.0, 1.0)
    assert math.isnan(auc([], []))


def test_bad_scores_are_refused() -> None:
    with pytest.raises(DataError, match="1 of 2 membership scores are NaN"):
        auc([math.nan, 1.0], [True, False])
    with pytest.raises(DataError, match="one label per score"):
        auc([1.0, 2.0], [True])
    with pytest.raises(DataError, match="one group"):
        auc_interval([1.0, 2.0], [True, False], groups=["a"])
    with pytest.raises(DataError, match="resamples"):
        auc_interval([1.0, 2.0], [True, False], resamples=1)


def test_auc_terms_have_the_leakage_as_mean_and_delongs_variance() -> None:
    rng = np.random.default_rng(3)
    scores, labels = rng.integers(0, 9, 90) / 3.0, np.arange(90) < 30
    terms = auc_terms(scores, labels)
    assert terms.mean() == pytest.approx(2 * roc_auc_score(labels, scores) - 1)
    # DeLong et al. (1988): the variances of both classes' placements, each over its size.
    wins = (np.sign(scores[:30, np.newaxis] - scores[np.newaxis, 30:]) + 1) / 2
    expected = 4 * (wins.mean(axis=1).var(ddof=0) / 30 + wins.mean(axis=0).var(ddof=0) / 60)
    assert terms.var() / 90 == pytest.approx(expected)
    assert len(auc_terms([1.0, 2.0], [True, True])) == 0


def test_auc_interval_has_width_at_the_ends_and_counts_persons() -> None:
    labels = np.arange(40) < 20
    scores = labels.astype(float)
    low, high = auc_interval(scores, labels)
    assert high == 1.0
    assert 0.7 < low < 0.99
    low_0, high_0 = auc_interval(-scores, labels)
    assert (low_0, high_0) == pytest.approx((0.0, 1.0 - low))
    # Four persons of five members each know less than twenty persons.
    assert auc_interval(scores, labels, groups=[f"p{i // 5}" for i in range(40)])[0] < low - 0.05


def test_auc_interval_widens_with_clusters() -> None:
    rng = np.random.default_rng(5)
    person = np.repeat(np.arange(60), 5)
    scores = rng.normal(size=60)[person] + 0.1 * rng.normal(size=300)
    labels = person < 30
    alone = auc_interval(scores, labels)
    together = auc_interval(scores, labels, groups=[f"p{g}" for g in person])
    # Near-identical copies: five times the variance.
    assert (together[1] - together[0]) / (alone[1] - alone[0]) == pytest.approx(math.sqrt(5), rel=0.2)


@pytest.mark.parametrize(("shift", "per"), [(0.0, 1), (1.5, 1), (0.5, 4)])
def test_auc_interval_covers(shift: float, per: int) -> None:
    rng = np.random.default_rng(6)
    truth = 0.5 * (1 + math.erf(shift / 2))
    person = np.repeat(np.arange(60), per)
    groups = [f"p{g}" for g in person]
    labels = person % 2 == 0
    covered = 0
    for i in range(200):
        noise = math.sqrt(0.5) * (rng.normal(size=60)[person] + rng.normal(size=len(person)))
        low, high = auc_interval(noise + shift * labels, labels, groups=groups, resamples=100, seed=i)
        covered += low <= truth <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_auc_interval_is_fast_and_repeats() -> None:
    rng = np.random.default_rng(7)
    scores, labels = rng.normal(size=20_000), rng.random(20_000) < 0.5
    start = time.perf_counter()
    first = auc_interval(scores, labels, groups=[f"p{i // 4}" for i in range(20_000)])
    assert time.perf_counter() - start < 2.0
    assert first == auc_interval(scores, labels, groups=[f"p{i // 4}" for i in range(20_000)])
    assert first != auc_interval(scores, labels, groups=[f"p{i // 4}" for i in range(20_000)], seed=1)


@pytest.mark.parametrize("levels", [3, 20, 10**6])
@pytest.mark.parametrize("fpr", [0.0, 0.001, 0.01, 0.1, 0.29, 1.0])
def test_tpr_at_fpr_equals_sklearns_curve(levels: int, fpr: float) -> None:
    rng = np.random.default_rng(levels)
    scores = rng.integers(0, levels, 500).astype(float)
    labels = rng.random(500) < 0.4
    point = tpr_at_fpr(scores, labels, fpr)
    rates, hits, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    best = int(np.flatnonzero(rates <= fpr)[-1])
    assert float(point) == point.tpr == pytest.approx(hits[best])
    assert point.fpr == pytest.approx(rates[best])
    assert point.threshold == thresholds[best]
    assert point.false_positives == round(rates[best] * point.non_members)
    assert (point.members, point.non_members) == (labels.sum(), 500 - labels.sum())


def test_persons_on_both_sides_are_drawn_with_both() -> None:
    rng = np.random.default_rng(12)
    persons = 60
    own = 3.0 * rng.standard_normal(persons)  # which a person's member and non-member share
    scores = np.concatenate([own + 0.6 + 0.5 * rng.standard_normal(persons), own + 0.5 * rng.standard_normal(persons)])
    labels, groups = np.arange(2 * persons) < persons, [f"p{i}" for i in [*range(persons), *range(persons)]]
    low, high = auc_interval(scores, labels, groups=groups)
    drawn = []
    for _ in range(600):
        taken = rng.integers(0, persons, persons)
        rows = np.concatenate([taken, taken + persons])
        drawn.append(roc_auc_score(labels[rows], scores[rows]))
    # That a person's two texts resemble each other makes the difference surer than apart; the interval is never
    # narrower than of texts on their own.
    apart = auc_interval(scores, labels)
    assert high - low >= apart[1] - apart[0] - 1e-9 > 3.9 * np.std(drawn)
    # A stranger with texts on one side alone is drawn among such strangers, never in the place of another kind: a lone
    # one is always there, and makes nothing unsure.
    scores = np.concatenate([own[:40] / 3 + 0.8, own[:20] / 3, 2.0 + 0.3 * rng.standard_normal(40)])
    labels, groups = np.arange(100) < 40, [*(f"p{i}" for i in range(40)), *(f"p{i}" for i in range(20)), *["q"] * 40]
    low, high = auc_interval(scores, labels, groups=groups)
    plain = _by_strata(scores, labels, groups)
    # Not 8 times as wide, as if it could stay away: Student's quantile of one such stranger is 4.3 for 2.0, and texts
    # are never taken to be surer than on their own.
    assert plain[1] - plain[0] < high - low < 5 * (plain[1] - plain[0])


def _by_strata(scores: np.ndarray, labels: np.ndarray, groups: list[str]) -> tuple[float, float]:
    """Limits by a plain bootstrap of persons, those of members, of others and of both apart."""
    rng = np.random.default_rng(1)
    rows: dict[str, list[int]] = {}
    for row, person in enumerate(groups):
        rows.setdefault(person, []).append(row)
    kinds: dict[tuple[bool, ...], list[str]] = {}
    for person, own in rows.items():
        kinds.setdefault(tuple(sorted({bool(labels[row]) for row in own})), []).append(person)
    assert len(kinds) == 3
    drawn = []
    for _ in range(600):
        taken = [p for kind in kinds.values() for p in rng.choice(kind, len(kind)).tolist()]
        whole = [row for person in taken for row in rows[person]]
        drawn.append(roc_auc_score(labels[whole], scores[whole]))
    value = roc_auc_score(labels, scores)
    return value - 1.96 * float(np.std(drawn)), value + 1.96 * float(np.std(drawn))


def test_tpr_at_fpr_keeps_ties_together() -> None:
    # Two non-members share the best member's score: at 10 % of 10, neither may be accused, so nobody at that score is.
    scores = [5.0, 4.0, 5.0, 5.0] + [0.0] * 8
    labels = [True, True] + [False] * 10
    point = tpr_at_fpr(scores, labels, 0.1)
    assert (point.tpr, point.fpr, point.threshold) == (0.0, 0.0, math.inf)
    assert tpr_at_fpr(scores, labels, 0.2).tpr == 1.0
    assert tpr_at_fpr(scores, labels, 0.2).threshold == 4.0


def test_tpr_at_fpr_says_what_it_can_resolve() -> None:
    labels = [True] + [False] * 100
    scores = [0.5] * 101
    assert tpr_at_fpr(scores, labels, 0.1).resolvable
    assert not tpr_at_fpr(scores, labels, 0.09).resolvable
    assert tpr_at_fpr(np.zeros(10_001), np.arange(10_001) == 0, 0.001).resolvable


@pytest.mark.parametrize("fpr", [-0.01, 1.1, math.nan])
def test_a_false_positive_rate_is_a_rate(fpr: float) -> None:
    with pytest.raises(DataError, match="cannot be"):
        tpr_at_fpr([1.0, 0.0], [True, False], fpr)


def test_tpr_at_fpr_without_a_class_and_with_infinite_scores() -> None:
    lone = tpr_at_fpr([1.0], [True], 0.1)
    assert math.isnan(lone.tpr)
    assert math.isnan(lone.fpr)
    assert math.isnan(tpr_at_fpr([1.0], [False], 0.1).tpr)
    assert tpr_at_fpr([], [], 0.1).non_members == 0
    tied = tpr_at_fpr([math.inf, math.inf], [True, False], 0.0)
    assert (tied.tpr, tied.fpr) == (0.0, 0.0)
    with pytest.raises(DataError, match="false-positive rate of 10"):
        tpr_at_fpr([1.0], [True], 10)


def test_limits_cover_where_some_persons_hold_most_of_a_class() -> None:
    rng = np.random.default_rng(4)
    sizes = [*[90, 60, 40, 20], *[5] * 30, *[70, 30, 15], *[4] * 8]  # of 34 members and of 11 others
    groups = [f"p{person}" for person, size in enumerate(sizes) for _ in range(size)]
    labels = np.repeat([person < 34 for person in range(len(sizes))], sizes)
    covered = 0
    for seed in range(200):
        scores = np.repeat(rng.normal(size=len(sizes)), sizes) + 0.5 * rng.normal(size=len(labels))
        low, high = auc_interval(scores, labels, groups=groups, resamples=60, seed=seed)
        covered += low <= 0.5 <= high
    assert covered >= 182  # 182 of 200 is two standard errors below 95 %
