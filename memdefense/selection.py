"""MaxTER without the optimism of a maximum: whatever is chosen is chosen on some units and read on another.

A unit is a seed (`memdefense.crossfit`) or a fold of one run's persons (`memdefense.folds`). Two things are chosen for
unit u, both on the *other* units. The attacker takes the reading k of each operating point i (which score, which sign,
which attack) that leaks most there, so that L_i = sum over the others of a_ki is a maximum over k. The defender takes
the point of the largest 1 - L_i / L_0 among those of mean delta <= tau, with L_0 the undefended run at the end of
training; doing nothing (i = 0, delta = 0) can always be taken. Then a_u and b_u, the leakages of that point and of the
undefended run, are read on u with these choices, unclamped, and MaxTER = 100 (1 - sum_u a_u / sum_u b_u).

Seeds share their persons. So a choice among readings, made on other seeds, is free of run noise and not of the noise of
who was drawn: where nothing leaks, half of what a maximum over scores and signs flatters remains (simulated with two
scores and 200 documents: 0.05 instead of 0.09), and nine tenths where documents come in a few circles of persons (14
and 5 circles of ten: 0.16 of 0.18). The lower limit over persons allows for it by the number of scores (Bonferroni; see
`Cut.leakage_at`). With six independent ones and circles of eight the interval then covers 0 in 93 % of the sets, and a
leakage of 0.1 and 0.2 in 100 and 97 % (400 documents, 60 sets each; 77, 95 and 95 % without); in 8 % of the sets of
nothing is a leakage told from chance, in place of three in ten. To choose on other folds of persons as well was tried:
of nothing it reads nothing (0.009), but of 0.1 it reads 0.045 and of 0.2 it reads 0.137, covered in 85 and 80 %. An
attacker who errs to the safe side is preferred: a small membership leakage told by many scores may be none.

Equal leakages go to the reading named first. Equal reductions go to doing nothing, then to the smaller mean delta, then
to the point named first. Where the other units' undefended leakage sums to 0 or less, nothing is done.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from memdefense.errors import DataError
from memdefense.interval import Floats, Ints
from memdefense.maxter import check_budget

NOTHING = "do nothing"
Limits = tuple[float, float]
Steps = Sequence[tuple[float, float]]
UNKNOWN: Limits = (math.nan, math.nan)
# Sums that differ by rounding alone are equal: a budget of 5 allows a mean cost of 5.
_EQUAL = 1e-9


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Read:
    """What was chosen on the other units, and what stood on each unit itself.

    Attributes:
        picks: the point chosen, shape (steps, units[, resamples]).
        taken: the attacker's reading of each point, shape (points, units[, resamples]).
        leakage: read, weighted over the steps, shape (units[, resamples]).
        undefended: the leakage of doing nothing, shape (units[, resamples]).
    """

    picks: Ints
    taken: Ints
    leakage: Floats
    undefended: Floats


def attacked(leakage: Floats) -> tuple[Ints, Floats, Floats]:
    """The attacker's choice among readings, made on all units but one.

    Args:
        leakage: shape (readings, points, units[, resamples]); NaN where a point has no such reading.

    Returns:
        The reading taken, its sum over the others, and the leakage read; each of shape (points, units[, resamples]).
    """
    others = _others(leakage)
    sums = np.where(np.isnan(others), -np.inf, others)
    # The first of equals: rounding decides nothing.
    taken = (sums >= sums.max(axis=0) - _EQUAL).argmax(axis=0)[np.newaxis]
    found = (np.take_along_axis(values, taken, axis=0)[0] for values in (others, leakage))
    return taken[0].astype(np.int64), *found


def cross_read(leakage: Floats, delta: Floats, steps: Steps) -> Read:
    """Chooses on all units but one and reads on that one, for each budget.

    Args:
        leakage: shape (readings, points, units[, resamples]), of two units or more; point 0 is doing nothing.
        delta: utility costs, shape (points, units).
        steps: budgets tau in percent, each with its weight; the weights sum to 1.

    Raises:
        DataError: a budget is NaN.
    """
    if any(math.isnan(tau) for tau, _ in steps):
        raise DataError("a utility budget of NaN allows nothing: give tau in percent, such as 5")
    taken, others, own = attacked(leakage)
    cost = _others(delta) / (leakage.shape[2] - 1)
    cost = cost.reshape(cost.shape + (1,) * (leakage.ndim - 3))
    known = others[0] > 0.0
    reductions = 1.0 - others / np.where(known, others[0], 1.0)
    picks = []
    for tau, _ in steps:
        allowed = known & (cost <= tau + _EQUAL)
        allowed[0] = True
        gains = np.where(allowed, reductions, -np.inf)
        gains[0] = 0.0
        # Among the best, doing nothing comes first, then the cheapest; argmin keeps the first of equals.
        prices = np.where(gains >= gains.max(axis=0) - _EQUAL, np.round(cost, 9), np.inf)
        prices[0] = np.where(gains.max(axis=0) <= _EQUAL, -np.inf, np.inf)
        picks.append(prices.argmin(axis=0))
    read = np.zeros(own.shape[1:])
    for pick, (_, weight) in zip(picks, steps, strict=True):
        read += weight * np.take_along_axis(own, pick[np.newaxis], axis=0)[0]
    return Read(np.asarray(picks, dtype=np.int64), taken, read, own[0])


def budget_steps(delta: Floats, tau_max: float) -> list[tuple[float, float]]:
    """The budgets from 0 to ``tau_max`` at which a choice can change, each with its share of the range.

    Raises:
        DataError: ``tau_max`` is not a positive number.
    """
    check_budget(tau_max)
    means = _others(delta) / (delta.shape[1] - 1)
    starts = [0.0, *np.unique(means[(means > 0.0) & (means < tau_max)]).tolist()]
    return [(start, (end - start) / tau_max) for start, end in zip(starts, [*starts[1:], tau_max], strict=True)]


def reduction(read: Floats, undefended: Floats) -> float:
    """100 (1 - sum a / sum b); NaN where the undefended leakage sums to 0 or less."""
    total = math.fsum(undefended.tolist())
    return 100.0 * (1.0 - math.fsum(read.tolist()) / total) if total > 0.0 else math.nan


def _others(values: Floats) -> Floats:
    """Per unit (the last axis but resamples), the sum over the others; term by term, so every machine adds alike."""
    axis = 1 if values.ndim == 2 else 2
    units = np.moveaxis(values, axis, 0)
    sums = np.zeros(units.shape)
    for u in range(len(units)):
        for v in range(len(units)):
            if v != u:
                sums[u] += units[v]
    return np.moveaxis(sums, 0, axis)
