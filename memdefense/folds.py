"""MaxTER of a single run: five folds of persons stand in for seeds, and the result holds for this model only."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np

from memdefense.errors import DataError
from memdefense.interval import (
    Draws,
    Floats,
    Ints,
    Values,
    cluster_correlation,
    clusters,
    design_effect,
    mover_ratio,
    normal_quantile,
    wilson,
)
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


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class RunTerms:
    """One arm on one seed, unit by unit, so that it can be cut into folds of persons.

    Attributes:
        terms: by label, what each unit adds to the leakage (`score.excess_terms`, or 2 placement - 1), shape (n,).
        deltas: by label, the utility cost in percent.
        undefended: the same as ``terms`` for the undefended run at the end of training, shape (n,).
        persons: whose each unit is, shape (n,); the empty name is a person of its own.
    """

    terms: Mapping[str, Values]
    deltas: Mapping[str, float]
    undefended: Values
    persons: Sequence[str]


def person_folds(persons: Sequence[str], folds: int = 5) -> Ints:
    """The fold of each unit, 0 to folds - 1: persons in the order of a hash are dealt out in turn, shape (n,).

    Raises:
        DataError: fewer persons than folds, or fewer than two folds.
    """
    codes, count = clusters(persons)
    if not 2 <= folds <= count:
        raise DataError(
            f"{count} persons cannot be cut into {folds} folds: bring more persons, or ask for 2 to {count}"
        )
    # A unit without a person is known by its place alone.
    names = {int(code): name or f"\0{place}" for place, (code, name) in enumerate(zip(codes, persons, strict=True))}
    dealt = sorted(names, key=lambda code: hashlib.sha256(names[code].encode()).digest())
    fold = np.empty(count, dtype=np.int64)
    fold[dealt] = np.arange(count) % folds
    return fold[codes]


def folded_maxter(
    run: RunTerms, tau: float, *, folds: int = 5, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> CrossEstimate:
    """MaxTER(tau) of one run: chosen on all folds of persons but one, and read on that one.

    The limits are the wider of two: a percentile bootstrap of persons within the fixed folds, which repeats the choice
    (a resample whose undefended leakage is not above 0 counts as minus infinity); and MOVER's, of the read over the
    undefended leakage, which has width where nothing leaked. Simulated with 4 equal points and base rates of 2, 10 and
    60 %, MOVER alone covers 86 to 92 % of a nominal 95, since it does not know of the choice; the two together 99 % or
    more, so they err on the wide side.

    Args:
        run: the arm.
        tau: utility budget in percent.
        folds: how many folds.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        level: the confidence level.

    Raises:
        DataError: fewer persons than folds; terms that differ in number or are not finite in the undefended run; tau is
            NaN.
    """
    cut = _Cut(run, folds)
    steps = [(tau, 1.0)]
    picks, read = cross_read(cut.table, steps)
    drawn = _drawn_reductions(cut.resampled(resamples, seed), steps)
    sample = _wider(_percentiles(drawn, level), cut.mover_limits(picks, steps, level))
    return cross_estimate(cut.table, picks[0], read, run=UNKNOWN, sample=sample, scope="this model only")


def folded_aurc(
    run: RunTerms,
    tau_max: float = 20.0,
    *,
    folds: int = 5,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Score:
    """The mean of `folded_maxter` over budgets from 0 to ``tau_max``, exact, in percent; n is the number of persons.

    Limits and errors are as there.
    """
    cut = _Cut(run, folds)
    steps = budget_steps(cut.table.delta, tau_max)
    picks, read = cross_read(cut.table, steps)
    drawn = _drawn_reductions(cut.resampled(resamples, seed), steps)
    low, high = _wider(_percentiles(drawn, level), cut.mover_limits(picks, steps, level))
    return Score(reduction(read, cut.table.leakage[0]), low, high, cut.persons, higher_is_better=True)


def folded_gain(
    arm: RunTerms,
    baseline: RunTerms,
    *,
    tau_max: float = 20.0,
    folds: int = 5,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Score:
    """`folded_aurc` of an arm less that of the undefended run's own checkpoints, on the same folds and resamples.

    Raises:
        DataError: as `folded_maxter`; the two are not of the same units.
    """
    if list(arm.persons) != list(baseline.persons) or not np.array_equal(arm.undefended, baseline.undefended):
        raise DataError("the arm and the undefended run are not of the same units: give both in the same order")
    values, draws = [], []
    for run in (arm, baseline):
        cut = _Cut(run, folds)
        steps = budget_steps(cut.table.delta, tau_max)
        values.append(reduction(cross_read(cut.table, steps)[1], cut.table.leakage[0]))
        draws.append(_drawn_reductions(cut.resampled(resamples, seed), steps))
    both = np.isfinite(draws[0]) & np.isfinite(draws[1])
    gains = np.where(both, np.where(both, draws[0], 0.0) - np.where(both, draws[1], 0.0), -np.inf)
    low, high = _percentiles(gains, level)
    return Score(values[0] - values[1], low, high, cut.persons, higher_is_better=True)


class _Cut:
    """A run cut into folds.

    Attributes:
        table: sums per fold, shape (L, folds).
        persons: how many persons there are.
    """

    def __init__(self, run: RunTerms, folds: int) -> None:
        undefended = np.asarray(run.undefended, dtype=np.float64)
        if not np.isfinite(undefended).all():
            raise DataError("the undefended run has terms that are not finite: measure it on every unit, or drop those")
        lengths = {len(undefended), len(run.persons), *(len(column) for column in run.terms.values())}
        if len(lengths) != 1 or set(run.terms) != set(run.deltas):
            raise DataError(
                "terms, deltas and persons do not fit each other: give one term per unit and one delta per label"
            )
        columns = {label: np.asarray(column, dtype=np.float64) for label, column in run.terms.items()}
        usable = [label for label in columns if np.isfinite(columns[label]).all() and math.isfinite(run.deltas[label])]
        self._names = run.persons
        self._rows = np.stack([undefended, *(columns[label] for label in usable)])  # (L, n)
        self._fold = person_folds(run.persons, folds)
        self._codes, self.persons = clusters(run.persons)
        cost = np.asarray([0.0, *(run.deltas[label] for label in usable)])
        sums = np.stack([np.bincount(self._fold, weights=row, minlength=folds) for row in self._rows]).astype(
            np.float64
        )
        self.table = Table((NOTHING, *usable), sums, np.repeat(cost[:, np.newaxis], folds, axis=1))

    def resampled(self, resamples: int, seed: int) -> Table:
        """The table with persons drawn anew within each fold, leakage of shape (L, folds, resamples)."""
        if resamples < 2:
            raise DataError(f"{resamples} resamples show no spread: ask for at least 2")
        per_person = np.stack([np.bincount(self._codes, weights=row, minlength=self.persons) for row in self._rows])
        home = np.zeros(self.persons, dtype=np.int64)
        home[self._codes] = self._fold
        draws = Draws(seed)
        leakage = np.empty((*self.table.leakage.shape, resamples))
        for fold in range(self.table.leakage.shape[1]):
            here = per_person[:, home == fold]  # (L, persons of the fold)
            for i in range(resamples):
                leakage[:, fold, i] = here @ draws.counts(here.shape[1], here.shape[1])
        return Table(self.table.labels, leakage, self.table.delta)

    def mover_limits(self, picks: Ints, steps: Steps, level: float) -> Limits:
        """MOVER's limits of the reduction that was read, with the two leakages correlated over persons."""
        if not picks.any():
            return 0.0, 0.0
        units = np.arange(self._rows.shape[1])
        read = np.zeros(len(units))
        for pick, (_, weight) in zip(picks, steps, strict=True):
            read += weight * self._rows[pick[self._fold], units]
        together = cluster_correlation(read, self._rows[0], self._names)
        return as_percent(mover_ratio(self._mean(read, level), self._mean(self._rows[0], level), correlation=together))

    def _mean(self, terms: Floats, level: float) -> Score:
        """A mean term with the width of Wilson's interval for a rate of that size, persons as clusters."""
        mean, n = float(terms.mean()), len(terms) / design_effect(terms, self._names)
        share = min(max(mean, 0.0), 1.0)
        low, high = wilson(share * n, n, level)
        return Score(mean, mean - (share - low), mean + (high - share), len(terms))


def _drawn_reductions(resampled: Table, steps: Steps) -> Floats:
    """The reduction in percent of every resample, the choice repeated; shape (resamples,)."""
    read = cross_read(resampled, steps)[1].sum(axis=0)
    total = resampled.leakage[0].sum(axis=0)
    return np.where(total > 0.0, 100.0 * (1.0 - read / np.where(total > 0.0, total, 1.0)), -np.inf)


def _percentiles(drawn: Floats, level: float) -> Limits:
    """The middle ``level`` of the resamples; order statistics, since minus infinity cannot be interpolated."""
    normal_quantile(level)
    ordered, outside = np.sort(drawn), (1.0 - level) / 2.0 * len(drawn)
    return float(ordered[math.floor(outside)]), float(ordered[len(drawn) - 1 - math.floor(outside)])


def _wider(first: Limits, second: Limits) -> Limits:
    """The hull of two intervals, of those that are known."""
    known = [limits for limits in (first, second) if not math.isnan(limits[0])]
    return min(low for low, _ in known), max(high for _, high in known)
