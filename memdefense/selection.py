"""MaxTER without the optimism of a maximum: an operating point is chosen on some units and read on another.

A unit is a seed (`memdefense.crossfit`) or a fold of one run's persons (`memdefense.folds`). For unit u the label is
chosen on the *other* units, as the largest 1 - sum a / sum b among labels of mean delta <= tau, and its leakage a_u is
read on u, unclamped; doing nothing (a = b, delta = 0) can always be chosen. MaxTER = 100 (1 - sum_u a_u / sum_u b_u),
with b the undefended leakage at the end of training.

Labels that are not finite in every unit cannot be chosen. Equal reductions go to doing nothing, then to the smaller
mean delta, then to the label named first. Where the other units' undefended leakage sums to 0 or less, nothing is done.
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


@dataclasses.dataclass(frozen=True, slots=True)
class CrossEstimate:
    """MaxTER at one budget, each unit read at the label that the other units chose.

    Attributes:
        value: reduction in percent, unclamped; NaN where the undefended leakage sums to 0 or less.
        low: lower 95 % limit: the wider of run noise and sample noise, of those that are known.
        high: upper limit.
        chosen: the label read on each unit, or ``do nothing``.
        deltas: the realised utility cost of each unit, which may exceed the budget.
        reductions: of each unit alone, in percent; NaN where its undefended leakage is not above 0.
        run_limits: of run noise, from the spread between seeds; NaN within one run.
        sample_limits: of sample noise, from the persons drawn; NaN where the readings came without limits.
        scope: what the estimate speaks of, ``seeds`` or ``this model only``.
    """

    value: float
    low: float
    high: float
    chosen: tuple[str, ...]
    deltas: tuple[float, ...]
    reductions: tuple[float, ...]
    run_limits: Limits
    sample_limits: Limits
    scope: str


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Table:
    """An arm as arrays; row 0 is doing nothing, so ``leakage[0]`` is the undefended leakage b.

    Attributes:
        labels: of the L rows.
        leakage: a, shape (L, units) or (L, units, resamples).
        delta: utility costs, shape (L, units).
    """

    labels: tuple[str, ...]
    leakage: Floats
    delta: Floats


def cross_read(table: Table, steps: Steps) -> tuple[Ints, Floats]:
    """Chooses on all units but one and reads on that one, for each budget.

    Args:
        table: of two units or more.
        steps: budgets tau in percent, each with its weight; the weights sum to 1.

    Returns:
        The row chosen, shape (steps, units[, resamples]), and the weighted leakage read, shape (units[, resamples]).

    Raises:
        DataError: a budget is NaN.
    """
    if any(math.isnan(tau) for tau, _ in steps):
        raise DataError("a utility budget of NaN allows nothing: give tau in percent, such as 5")
    leakage = table.leakage
    others = _others(leakage)
    delta = _others(table.delta) / (leakage.shape[1] - 1)
    delta = delta.reshape(delta.shape + (1,) * (leakage.ndim - 2))
    known = others[0] > 0.0
    reductions = 1.0 - others / np.where(known, others[0], 1.0)
    picks = []
    for tau, _ in steps:
        allowed = known & (delta <= tau + _EQUAL)
        allowed[0] = True
        gains = np.where(allowed, reductions, -np.inf)
        gains[0] = 0.0
        # Among the best, doing nothing comes first, then the cheapest; argmin keeps the first of equals.
        prices = np.where(gains >= gains.max(axis=0) - _EQUAL, np.round(delta, 9), np.inf)
        prices[0] = np.where(gains.max(axis=0) <= _EQUAL, -np.inf, np.inf)
        picks.append(prices.argmin(axis=0))
    read = np.zeros(leakage.shape[1:])
    for pick, (_, weight) in zip(picks, steps, strict=True):
        read += weight * np.take_along_axis(leakage, pick[np.newaxis], axis=0)[0]
    return np.asarray(picks, dtype=np.int64), read


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


def as_percent(ratio: tuple[float, float, float]) -> Limits:
    """The limits of a reduction in percent, from a ratio of leakages and its limits."""
    return 100.0 * (1.0 - ratio[2]), 100.0 * (1.0 - ratio[1])


def cross_estimate(table: Table, pick: Ints, read: Floats, *, run: Limits, sample: Limits, scope: str) -> CrossEstimate:
    """Puts an estimate together from the rows chosen and the leakage read, one per unit."""
    units = range(len(pick))
    known = [limits for limits in (run, sample) if not math.isnan(limits[0])]
    return CrossEstimate(
        value=reduction(read, table.leakage[0]),
        low=min((low for low, _ in known), default=math.nan),
        high=max((high for _, high in known), default=math.nan),
        chosen=tuple(table.labels[row] for row in pick.tolist()),
        deltas=tuple(float(table.delta[pick[u], u]) for u in units),
        reductions=tuple(reduction(read[u : u + 1], table.leakage[0, u : u + 1]) for u in units),
        run_limits=run,
        sample_limits=sample,
        scope=scope,
    )


def _others(values: Floats) -> Floats:
    """Per unit, the sum over the other units, shape as given; term by term, so that no machine adds differently."""
    sums = np.zeros(values.shape)
    for u in range(values.shape[1]):
        for v in range(values.shape[1]):
            if v != u:
                sums[:, u] += values[:, v]
    return sums
