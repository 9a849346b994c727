"""MaxTER over several seeds: each seed's operating point is chosen on the others, so run noise cannot flatter it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from memdefense.cut import Choice, Cut, Noise
from memdefense.errors import DataError
from memdefense.interval import Floats, t_quantile
from memdefense.layout import Table, tabulate
from memdefense.maxter import OperatingPoint
from memdefense.persons import MINUS, PLUS, RunTerms, person_mean
from memdefense.selection import UNKNOWN, Limits


class AcrossSeeds(Cut):
    """An arm on two seeds or more; the seeds are the units.

    The seeds share their persons, so a leakage has the noise of both, as in any layout of persons by seeds (Cornfield &
    Tukey 1956). Sample noise: MOVER over persons, a person's terms summed over seeds. Run noise: Student's t over
    seeds with S - 1 degrees of freedom, by the larger of two variances. The readings of the seeds show how leakages
    differ, whatever was chosen; the costs that decide what can be chosen are means over all seeds but one, and such
    means differ S - 1 times less than seeds do. So the second is that of Tukey's pseudo-values (1958) of the same
    number chosen and read on all seeds, which has costs in it and flatters too evenly where points are equal. What
    seeds differ by holds the noise of single hits too, which sample noise has counted; so both together are sample
    noise, and in quadrature t times the root of the variance between seeds beyond that which persons within seeds
    explain; and never less than either alone, since on few seeds what is taken off is itself mostly noise.

    Simulated with known truth (`memdefense.simulation`, ``scripts/simulate.py``). Costs that differ between runs
    (10 with a standard deviation of 3, or 2 with 1; 2, 3 and 5 seeds; 120 data sets a cell; a base of 22 %, 97 %
    taken away): areas and gains of a nominal 95 cover 94 to 100 %. A true half at a constant cost, and no effect, at
    base rates of 2, 10 and 60 %, 0 and 20 % of run noise, 3 and 5 seeds: the tests hold every estimator to 90 %
    less the error of 80 data sets, and their mean to at most 98. The form of the interval was chosen on these very
    simulations, so that they are no independent check of it. At 2 % of 300 secrets, 3 seeds have 30 events only by
    luck, and what is then divided by is too large: an estimate of such a base is not to be trusted, whatever its
    interval.

    Args:
        table: its arrays.

    Raises:
        DataError: fewer than two seeds.
    """

    scope = "seeds"

    def __init__(self, table: Table, *, resamples: int = 1000, seed: int = 0) -> None:
        super().__init__(table, resamples=resamples, seed=seed)
        if table.delta.shape[1] < 2:
            raise DataError(
                f"{table.delta.shape[1]} seeds cannot leave one out: run at least two, or cut the one run into folds"
            )

    @property
    def runs(self) -> int:
        return int(self.leakage.shape[2])

    def _noise(
        self,
        ratio: float,
        sample: Limits,
        numerator: Floats,
        choice: Choice,
        signed: Sequence[tuple[float, Choice]],
        level: float,
    ) -> Noise:
        base = _net(choice.base)
        error = (_net(numerator) - ratio * base) / float(base.sum(axis=1).mean())
        pseudo = np.sum([sign * _pseudo_values(one) / 100.0 for sign, one in signed], axis=0)
        between = max(float(column.var(ddof=1)) for column in (error.sum(axis=1), pseudo))
        return _together(ratio, sample, error, between / len(error), level)

    def _mean_noise(self, parts: Floats, level: float) -> Noise:
        found, error = person_mean(parts.sum(axis=1), level, twins=self.twins), _net(parts)
        between = float(error.sum(axis=1).var(ddof=1)) / len(error)
        noise = _together(found.value, (found.low, found.high), error, between, level)
        # No leakage is above 1, nor below -1.
        return Noise(*((max(low, -1.0), min(high, 1.0)) for low, high in (noise.run, noise.sample, noise.both)))


def across_seeds(runs: Sequence[RunTerms], persons: Sequence[str] = ()) -> AcrossSeeds:
    """An arm on several seeds.

    Args:
        runs: the arm on each seed, in one order for all arms.
        persons: all persons, so that arms can be compared.

    Raises:
        DataError: fewer than two seeds; a seed without an undefended leakage.
    """
    if len(runs) < 2:
        raise DataError(f"{len(runs)} seeds cannot leave one out: run at least two, or cut the one run into folds")
    return AcrossSeeds(tabulate(runs, persons))


def _net(parts: Floats) -> Floats:
    return np.asarray(parts[PLUS] - parts[MINUS])


def _together(value: float, sample: Limits, error: Floats, between: float, level: float) -> Noise:
    """Run noise, sample noise and both.

    Args:
        value: the estimate.
        sample: its limits over persons.
        error: each person's share of it on each seed, shape (seeds, P).
        between: its variance over sets of seeds.
        level: the confidence level.
    """
    if not math.isfinite(value):
        return Noise(UNKNOWN, UNKNOWN, UNKNOWN)
    seeds, persons = error.shape
    rest = error - error.mean(axis=0) - error.mean(axis=1)[:, np.newaxis] + error.mean()
    within = float((rest * rest).sum()) / ((seeds - 1) * max(persons - 1, 1)) * persons / seeds
    student = t_quantile(seeds - 1, level)
    beyond = student**2 * max(between - within, 0.0)
    half = student * math.sqrt(between)
    low, high = (max(half, math.sqrt(side**2 + beyond)) for side in (value - sample[0], sample[1] - value))
    return Noise(run=(value - half, value + half), sample=sample, both=(value - low, value + high))


def _pseudo_values(choice: Choice) -> Floats:
    """Tukey's pseudo-values of the number chosen and read on the same seeds, in percent, shape (seeds,)."""
    seeds = choice.cut.leakage.shape[2]
    whole = np.ones(seeds, dtype=np.bool_)
    value = _plainly(choice, whole)
    return np.array([seeds * value - (seeds - 1) * _plainly(choice, np.arange(seeds) != s) for s in range(seeds)])


def _plainly(choice: Choice, seeds: npt.NDArray[np.bool_]) -> float:
    """The number that some seeds give when points and readings are chosen and read on all of them."""
    sums = choice.cut.leakage[:, :, seeds].sum(axis=-1)
    most = np.where(np.isnan(sums), -math.inf, sums).max(axis=0)
    if not most[0] > 0.0:
        return 0.0
    costs = choice.cut.table.delta[:, seeds].mean(axis=-1)
    reductions = 100.0 * (1.0 - most[1:] / most[0])
    pairs = zip(costs[1:].tolist(), reductions.tolist(), strict=True)
    return choice.plain([OperatingPoint(cost, reduction) for cost, reduction in pairs])
