"""MaxTER over several seeds: each seed's operating point is chosen on the others, so run noise cannot flatter it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from memdefense.cut import Choice, Cut, Noise
from memdefense.errors import DataError
from memdefense.interval import Floats, t_quantile
from memdefense.layout import Table, tabulate
from memdefense.persons import MINUS, PLUS, WEIGHT, RunTerms, person_mean, person_ratio
from memdefense.selection import UNKNOWN, Limits


class AcrossSeeds(Cut):
    """An arm on two seeds or more; the seeds are the units.

    The seeds share their persons, so a leakage has the noise of both, as in any layout of persons by seeds (Cornfield &
    Tukey 1956). Sample noise: MOVER over persons, a person's terms summed over seeds. Run noise: Student's t over
    seeds with S - 1 degrees of freedom. What seeds differ by holds the noise of single hits too, which the first has
    counted; so both together are the first, and in quadrature t times the root of the variance between seeds beyond
    that which persons within seeds explain.

    Simulated (``scripts/simulate.py``, 250 data sets a cell; base rates of 2 % of 3,000, 10 and 60 % of 300 secrets) a
    nominal 95 covers 90 to 99 % of a true half, but for 3 seeds with 20 % run noise at a base of 60 % (89), and for the
    gain over a baseline without effect at no run noise (up to 100). The form of the interval was chosen on this very
    simulation, so that these figures are no independent check of it, and they are older than Student's quantile over
    persons (`memdefense.interval.few`), which widens sample noise by a hundredth for a hundred persons. Without effect
    it covers 92 to 99, as doing nothing on some seeds is certain. At 2 % of 300 secrets, 3 seeds have 30 events only by
    luck (2 to 4 % of data sets), and what is then divided by is too large: an estimate of such a base is not to be
    trusted, whatever its interval.

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

    def _noise(
        self, numerator: Floats, base: Floats, signed: Sequence[tuple[float, Choice]], level: float, *, twins: bool
    ) -> Noise:
        top, bottom = numerator.sum(axis=1), base.sum(axis=1)
        share = float(top[WEIGHT].sum() / bottom[WEIGHT].sum())
        ratio = float(_net(top).sum() / _net(bottom).sum())
        widened = self._widening(ratio, signed)
        _, low, high = person_ratio(top, bottom, level, twins=twins, widened=widened)
        mean = float(_net(base).sum(axis=1).mean())
        error = (_net(numerator) - ratio * _net(base)) / mean
        return _together(ratio, (share * low, share * high), error, level)

    def _mean_noise(self, parts: Floats, level: float) -> Noise:
        found = person_mean(parts.sum(axis=1), level, twins=self.twins)
        return _together(found.value, (found.low, found.high), _net(parts), level)


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


def _together(value: float, sample: Limits, error: Floats, level: float) -> Noise:
    """Run noise, sample noise and both, from each person's share of the error on each seed, shape (seeds, P)."""
    if not math.isfinite(value):
        return Noise(UNKNOWN, UNKNOWN, UNKNOWN)
    seeds, persons = error.shape
    between = float(error.sum(axis=1).var(ddof=1)) / seeds
    rest = error - error.mean(axis=0) - error.mean(axis=1)[:, np.newaxis] + error.mean()
    within = float((rest * rest).sum()) / ((seeds - 1) * max(persons - 1, 1)) * persons / seeds
    student = t_quantile(seeds - 1, level)
    beyond = student**2 * max(between - within, 0.0)
    half = student * math.sqrt(between)
    low, high = value - sample[0], sample[1] - value
    return Noise(
        run=(value - half, value + half),
        sample=sample,
        both=(value - math.sqrt(low**2 + beyond), value + math.sqrt(high**2 + beyond)),
    )
