"""Membership scores against labels: AUC with its interval, and the true-positive rate at a low false-positive rate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from memdefense.errors import DataError
from memdefense.interval import Draws, Floats, Ints, Values, clusters, few, normal_quantile

Labels = Sequence[bool] | npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, slots=True)
class OperatingThreshold:
    """What an attacker gets who may accuse at most so many non-members; ``float()`` of it is the true-positive rate.

    Attributes:
        tpr: share of the members with a score at or above the threshold; NaN without members or non-members.
        fpr: the realised false-positive rate, at most the one asked for.
        threshold: the smallest score that keeps to it; infinite where even the highest score does not.
        false_positives: non-members at or above the threshold.
        non_members: how many non-members there were.
        members: how many members there were.
        resolvable: whether the rate asked for times the non-members is at least 10; below, the threshold rests on a
            handful of texts.
    """

    tpr: float
    fpr: float
    threshold: float
    false_positives: int
    non_members: int
    members: int
    resolvable: bool

    def __float__(self) -> float:
        return self.tpr


def auc(scores: Values, labels: Labels) -> float:
    """The chance that a random member scores above a random non-member, ties counting half (Mann-Whitney U / mn).

    Args:
        scores: one per unit; a higher one says "member". Infinite scores are ordered, and tie with their like.
        labels: True for members.

    Returns:
        The exact value; NaN where either class is empty.

    Raises:
        DataError: a score is NaN (dropping it would change who is measured), or the two differ in number.
    """
    places = placements(scores, labels)
    return float(places.mean()) if len(places) else math.nan


def placements(scores: Values, labels: Labels) -> Floats:
    """Per member, in order, the share of non-members that score lower, ties counting half; their mean is the AUC.

    They make a membership leakage a sum over members: the mean of ``2 * placements - 1`` is 2 AUC - 1. Empty where
    there are no non-members. Raises as `auc`.
    """
    members, non_members = _classes(scores, labels)
    if not len(non_members):
        return np.empty(0)
    below, upto = _ranks(members, np.sort(non_members))
    return (below + upto) / (2.0 * len(non_members))


def auc_terms(scores: Values, labels: Labels) -> Floats:
    """What each unit adds to the leakage 2 AUC - 1, members and non-members alike, shape (n,); the mean is the leakage.

    A unit's term is the AUC plus n times its influence, n/m (V10 - AUC) of a member, with V10 its placement among the
    non-members, and n/k (V01 - AUC) of one of k non-members, with V01 the share of members above it; then 2 x - 1. The
    variance of their mean is that of DeLong et al. (1988); the placements of members alone would leave out that
    non-members were drawn too. Empty where a class is. Raises as `auc`.
    """
    flags = np.asarray(labels, dtype=np.bool_)
    mine = placements(scores, labels)
    theirs = placements(-np.asarray(scores, dtype=np.float64), ~flags)
    if not len(mine) or not len(theirs):
        return np.empty(0)
    value, n = float(mine.mean()), len(flags)
    found = np.empty(n)
    found[flags] = value + n / len(mine) * (mine - value)
    found[~flags] = value + n / len(theirs) * (theirs - value)
    return 2.0 * found - 1.0


def auc_interval(
    scores: Values,
    labels: Labels,
    *,
    groups: Sequence[str] | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Limits of the AUC, with persons as clusters; of some width even where the AUC is 0 or 1.

    Newcombe's score limits (2006, part 2, method 5): the theta with ``|AUC - theta| = z * sqrt(deff * V(theta))``, V
    the exponential-model variance of Hanley & McNeil (1982) for units on their own. ``deff`` is the variance of a
    bootstrap of persons over V(AUC), at least 1. Where no resample differs (AUC 0 or 1, or all scores equal), or a
    class is a single person's, the bootstrap says too little, and deff is at least the mean number of units per person,
    of the class where that is larger: a person then counts once.

    z is Student's where the persons of a class are few or hold very different numbers of units (`few`): on the circles
    of `mailbox`, 14 effective ones of members and 5 of others, 96 to 98 % of nominal 95 cover in place of 88 to 93.

    Persons are drawn within three strata (members only, non-members only, both), so no resample lacks a class.

    Args:
        scores: as in `auc`.
        labels: as in `auc`.
        groups: the person of each unit; None where each unit stands alone.
        level: the confidence level.
        resamples: bootstrap resamples.
        seed: of the bootstrap.

    Returns:
        Low and high; (0, 1) where either class is empty.

    Raises:
        DataError: as `auc`; groups of another number; fewer than two resamples.
    """
    normal_quantile(level)
    members, non_members = _classes(scores, labels)
    flags = np.asarray(labels, dtype=np.bool_)
    if resamples < 2:
        raise DataError(f"{resamples} resamples show no spread: ask for at least 2")
    if groups is not None and len(groups) != len(flags):
        raise DataError(f"{len(flags)} scores but {len(groups)} groups: give one group (person) per score")
    if not len(members) or not len(non_members):
        return 0.0, 1.0
    codes, count = (np.arange(len(flags)), len(flags)) if groups is None else clusters(groups)
    of_members, of_others = codes[flags], codes[~flags]

    order = np.argsort(non_members, kind="stable")
    below, upto = _ranks(members, non_members[order])
    of_others = of_others[order]
    has_member = np.bincount(of_members, minlength=count) > 0
    has_other = np.bincount(of_others, minlength=count) > 0
    strata = [np.flatnonzero(has_member & ~has_other), np.flatnonzero(has_other & ~has_member)]
    strata.append(np.flatnonzero(has_member & has_other))

    draws = Draws(seed)
    weight = np.zeros(count, dtype=np.int64)
    drawn = np.empty(resamples)
    cumulative = np.zeros(len(non_members) + 1, dtype=np.int64)
    for i in range(resamples):
        for stratum in strata:
            if len(stratum):
                weight[stratum] = draws.counts(len(stratum), len(stratum))
        np.cumsum(weight[of_others], out=cumulative[1:])
        mine = weight[of_members]
        wins = int(mine @ (cumulative[below] + cumulative[upto]))
        drawn[i] = wins / (2.0 * int(mine.sum()) * int(cumulative[-1]))

    value = float((below + upto).sum()) / (2.0 * len(members) * len(non_members))
    spread, independent = float(drawn.var(ddof=1)), _exponential_variance(value, len(members), len(non_members))
    persons = int(has_member.sum()), int(has_other.sum())
    deff = max(spread / independent, 1.0) if independent > 0.0 else 1.0
    if spread <= 1e-18 or min(persons) < 2:
        deff = max(deff, len(members) / persons[0], len(non_members) / persons[1])
    sizes_of = np.bincount(of_members, minlength=count), np.bincount(of_others, minlength=count)
    reach = normal_quantile(max(few(own, level) for own in sizes_of)) * math.sqrt(deff)
    sizes = (len(members), len(non_members))
    return _score_limit(value, 0.0, reach, sizes), _score_limit(value, 1.0, reach, sizes)


def tpr_at_fpr(scores: Values, labels: Labels, fpr: float) -> OperatingThreshold:
    """The largest true-positive rate at a false-positive rate of at most ``fpr``: "member" if score >= threshold.

    Equal scores are accused together or not at all, so the realised rate can lie below the one asked for. For an
    interval, take the `rate` of members at or above the threshold.

    Raises:
        DataError: as `auc`; a rate outside [0, 1].
    """
    if not 0.0 <= fpr <= 1.0:
        raise DataError(f"a false-positive rate of {fpr} cannot be: give one between 0 and 1, such as 0.01 for 1 %")
    members, non_members = _classes(scores, labels)
    # In exact arithmetic: 0.1 * 100 must count as 10.
    resolvable = fpr * len(non_members) >= 10.0 - 1e-9
    if not len(non_members):
        return OperatingThreshold(math.nan, math.nan, math.inf, 0, 0, len(members), False)
    candidates = np.append(np.unique(np.concatenate([members, non_members])), math.inf)
    accused = len(non_members) - np.searchsorted(np.sort(non_members), candidates, side="left")
    # An infinite score would be accused at the infinite threshold too; the last candidate means "nobody".
    accused[-1] = 0
    first = int(np.argmax(accused / len(non_members) <= fpr))
    nobody = first == len(candidates) - 1
    hits = 0 if nobody else int(np.count_nonzero(members >= candidates[first]))
    return OperatingThreshold(
        tpr=hits / len(members) if len(members) else math.nan,
        fpr=int(accused[first]) / len(non_members),
        threshold=float(candidates[first]),
        false_positives=int(accused[first]),
        non_members=len(non_members),
        members=len(members),
        resolvable=resolvable,
    )


def _classes(scores: Values, labels: Labels) -> tuple[Floats, Floats]:
    """The scores of members and of non-members, checked."""
    values = np.asarray(scores, dtype=np.float64)
    flags = np.asarray(labels, dtype=np.bool_)
    if values.shape != flags.shape or values.ndim != 1:
        raise DataError(f"scores of shape {values.shape} and labels of shape {flags.shape}: give one label per score")
    broken = int(np.count_nonzero(np.isnan(values)))
    if broken:
        raise DataError(f"{broken} of {len(values)} membership scores are NaN: leave those texts out or mend the score")
    return values[flags], values[~flags]


def _ranks(values: Floats, ordered: Floats) -> tuple[Ints, Ints]:
    """Per value, how many of the ordered ones are below it, and how many are at most as large."""
    below = np.searchsorted(ordered, values, side="left").astype(np.int64)
    upto = np.searchsorted(ordered, values, side="right").astype(np.int64)
    return below, upto


def _exponential_variance(theta: float, members: int, non_members: int) -> float:
    """The variance of an AUC under exponential scores, symmetric in the classes (Newcombe 2006, method 5)."""
    pairs = (members + non_members) / 2.0 - 1.0
    shared = (1.0 - theta) / (2.0 - theta) + theta / (1.0 + theta)
    return theta * (1.0 - theta) * (1.0 + pairs * shared) / (members * non_members)


def _score_limit(value: float, end: float, reach: float, sizes: tuple[int, int]) -> float:
    """The theta between value and end that is ``reach`` of its own standard errors away (bisection)."""
    near, far = value, end
    for _ in range(60):
        theta = (near + far) / 2.0
        if abs(value - theta) <= reach * math.sqrt(_exponential_variance(theta, *sizes)):
            near = theta
        else:
            far = theta
    return far
