"""MaxTER over several seeds: each seed's operating point is chosen on the others, so run noise cannot flatter it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from memdefense.errors import DataError
from memdefense.interval import Floats, Ints, mover_ratio, t_quantile
from memdefense.score import Score
from memdefense.selection import (
    NOTHING,
    UNKNOWN,
    CrossEstimate,
    Limits,
    Steps,
    Table,
    as_percent,
    budget_steps,
    cross_estimate,
    cross_read,
    reduction,
)

__all__ = [
    "NOTHING",
    "CrossEstimate",
    "Reading",
    "SeedCurve",
    "cross_seed_aurc",
    "cross_seed_gain",
    "cross_seed_maxter",
]


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """One operating point on one seed.

    Attributes:
        delta: utility cost in percent.
        leakage: over chance, signed.
        low: lower limit of the leakage, with persons as clusters; NaN where not given.
        high: upper limit.
    """

    delta: float
    leakage: float
    low: float = math.nan
    high: float = math.nan


@dataclasses.dataclass(frozen=True, slots=True)
class SeedCurve:
    """One arm on one seed.

    Attributes:
        readings: by label; a label means the same operating point on every seed.
        undefended: the leakage of the seed's undefended run at the end of training.
        low: its lower limit; NaN where not given.
        high: its upper limit.
    """

    readings: Mapping[str, Reading]
    undefended: float
    low: float = math.nan
    high: float = math.nan


def cross_seed_maxter(arm: Sequence[SeedCurve], tau: float, *, level: float = 0.95) -> CrossEstimate:
    """MaxTER(tau) by leaving one seed out.

    Run noise: R = sum a / sum b has the linearised standard error sqrt((var a + R^2 var b) / S) / mean b, and t with
    S - 1 degrees of freedom. The covariance of a and b is not taken off: choosing on the other seeds ties the readings
    together, and the ratio's own residuals then cover too little (simulated with 5 equal points, base rate 10 %, run
    noise 20 %: 89 to 94 % of a nominal 95; this covers 92 to 99 %). Where all seeds agree (no hit anywhere) that is
    narrow, so readings that bring limits add the sample noise: the seeds share their secrets, so limits are summed over
    seeds, and MOVER divides them. Doing nothing on every seed has no width.

    Raises:
        DataError: fewer than two seeds; a seed without an undefended leakage; tau is NaN.
    """
    table, steps = _table(arm), [(tau, 1.0)]
    picks, read = cross_read(table, steps)
    b, sample = table.leakage[0], (0.0, 0.0)
    if picks[0].any():
        ends = [Reading(0.0, curve.undefended, curve.low, curve.high) for curve in arm]
        taken = [
            curve.readings[table.labels[row]] if row else end
            for curve, end, row in zip(arm, ends, picks[0].tolist(), strict=True)
        ]
        sample = as_percent(mover_ratio(_pooled(taken), _pooled(ends)))
    run = _reduction_limits(picks, steps, read, b, level)
    return cross_estimate(table, picks[0], read, run=run, sample=sample, scope="seeds")


def cross_seed_aurc(arm: Sequence[SeedCurve], tau_max: float = 20.0, *, level: float = 0.95) -> Score:
    """The mean of `cross_seed_maxter` over budgets from 0 to ``tau_max``, exact for the step function, in percent.

    Its steps are at the mean deltas of all left-out subsets. Limits are of run noise, as there; n is the number of
    seeds.

    Raises:
        DataError: as `cross_seed_maxter`; ``tau_max`` is not a positive number.
    """
    table = _table(arm)
    steps = budget_steps(table.delta, tau_max)
    picks, read = cross_read(table, steps)
    low, high = _reduction_limits(picks, steps, read, table.leakage[0], level)
    return Score(reduction(read, table.leakage[0]), low, high, len(arm), higher_is_better=True)


def cross_seed_gain(
    arm: Sequence[SeedCurve], baseline: Sequence[SeedCurve], *, tau_max: float = 20.0, level: float = 0.95
) -> Score:
    """What a defense is worth: its `cross_seed_aurc` less that of the undefended run's own checkpoints, seed by seed.

    Raises:
        DataError: as `cross_seed_aurc`; the two are not of the same seeds.
    """
    ours, theirs = _table(arm), _table(baseline)
    b = ours.leakage[0]
    if not np.array_equal(b, theirs.leakage[0]):
        raise DataError("the arm and the undefended run are not of the same seeds: give both in the same order")
    _, kept = cross_read(ours, budget_steps(ours.delta, tau_max))
    _, kept_early = cross_read(theirs, budget_steps(theirs.delta, tau_max))
    saved = kept_early - kept
    low, high = _run_limits(saved, b, level)
    return Score(reduction(b - saved, b), low, high, len(arm), higher_is_better=True)


def _table(arm: Sequence[SeedCurve]) -> Table:
    """The arrays of an arm over seeds, of the labels that are finite on every seed."""
    if len(arm) < 2:
        raise DataError(f"{len(arm)} seeds cannot leave one out: run at least two, or cut the one run into folds")
    for number, curve in enumerate(arm):
        if not math.isfinite(curve.undefended):
            raise DataError(f"seed number {number} has no undefended leakage: measure its undefended run, or drop it")
    usable = [
        label
        for label in arm[0].readings
        if all(
            label in curve.readings
            and math.isfinite(curve.readings[label].leakage)
            and math.isfinite(curve.readings[label].delta)
            for curve in arm
        )
    ]
    rows = [[curve.readings[label] for curve in arm] for label in usable]
    leakage = [[curve.undefended for curve in arm], *([reading.leakage for reading in row] for row in rows)]
    delta = [[0.0] * len(arm), *([reading.delta for reading in row] for row in rows)]
    return Table((NOTHING, *usable), np.asarray(leakage, dtype=np.float64), np.asarray(delta, dtype=np.float64))


def _pooled(readings: Sequence[Reading]) -> Score:
    """The sum of leakages over seeds that share their secrets: limits add up."""
    value, low, high = (math.fsum(getattr(r, side) for r in readings) for side in ("leakage", "low", "high"))
    return Score(value, low, high, len(readings))


def _run_limits(numerator: Floats, undefended: Floats, level: float) -> Limits:
    """Student's limits of 100 * sum x / sum b over seeds, the two taken as independent."""
    seeds, total = len(undefended), float(undefended.sum())
    if total <= 0.0:
        return UNKNOWN
    ratio = float(numerator.sum()) / total
    variance = float(numerator.var(ddof=1)) + ratio**2 * float(undefended.var(ddof=1))
    half = t_quantile(seeds - 1, level) * math.sqrt(variance / seeds) / (total / seeds)
    return 100.0 * (ratio - half), 100.0 * (ratio + half)


def _reduction_limits(picks: Ints, steps: Steps, read: Floats, undefended: Floats, level: float) -> Limits:
    """The limits of 100 (1 - sum a / sum b); the share of b that was left alone is no estimate and adds no width."""
    total = float(undefended.sum())
    if total <= 0.0:
        return UNKNOWN
    weights = np.asarray([weight for _, weight in steps])
    idle = ((picks == 0) * weights[:, np.newaxis]).sum(axis=0)  # (seeds,)
    share = float((idle * undefended).sum()) / total
    low, high = _run_limits(read - share * undefended, undefended, level)
    return 100.0 * (1.0 - share) - high, 100.0 * (1.0 - share) - low
