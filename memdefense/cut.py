"""MaxTER, its area and gain, and their limits, from one arm cut into units: the steps that seeds and folds share."""

from __future__ import annotations

import dataclasses
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np

from memdefense.errors import DataError
from memdefense.interval import Floats, Ints
from memdefense.layout import Table
from memdefense.maxter import OperatingPoint, aurc, maxter
from memdefense.persons import MINUS, PLUS, WEIGHT, Bounded, person_mean, person_ratio
from memdefense.redraw import base_again, read_again, redrawn
from memdefense.selection import UNKNOWN, Limits, Read, Steps, attacked, budget_steps, cross_read, reduction


@dataclasses.dataclass(frozen=True, slots=True)
class Estimated:
    """A number with its two kinds of noise apart.

    Attributes:
        value: the estimate.
        low: lower 95 % limit, of both kinds of noise together.
        high: upper limit.
        run_limits: of run noise alone, Student's t over seeds; NaN within one run.
        sample_limits: of sample noise alone, over the persons drawn.
        n: how many persons it rests on.
    """

    value: float
    low: float
    high: float
    run_limits: Limits
    sample_limits: Limits
    n: int


@dataclasses.dataclass(frozen=True, slots=True)
class CrossEstimate(Estimated):
    """MaxTER at one budget, in percent, unclamped; NaN where the undefended leakage sums to 0 or less.

    Attributes:
        chosen: the label read on each unit, or ``do nothing``.
        readings: the attacker's reading on each unit.
        deltas: the realised utility cost of each unit, which may exceed the budget.
        reductions: of each unit alone, in percent; NaN where its undefended leakage is not above 0.
        scope: what the estimate speaks of, ``seeds`` or ``this model only``.
    """

    chosen: tuple[str, ...]
    readings: tuple[str, ...]
    deltas: tuple[float, ...]
    reductions: tuple[float, ...]
    scope: str


Plain = Callable[[Sequence[OperatingPoint]], float]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Noise:
    """Limits of a ratio or of a mean, by what they allow for."""

    run: Limits
    sample: Limits
    both: Limits


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """One arm, read at some budgets.

    Attributes:
        cut: the arm.
        steps: the budgets.
        read: what was chosen and read.
        plain: the number itself of points as they are, in percent: MaxTER at the budget, or its area.
    """

    cut: Cut
    steps: Steps
    read: Read
    plain: Plain

    @property
    def parts(self) -> Floats:
        """What was read of each person on each unit, shape (4, units, P)."""
        return _parts(self)

    @property
    def base(self) -> Floats:
        """The same of the undefended run."""
        table, taken = self.cut.table.parts, self.read.taken
        return np.stack([table[:, taken[0, u], 0, u] for u in range(table.shape[3])], axis=1)


class Cut(ABC):
    """One arm cut into units, each of which is read at what the other units chose.

    Attributes:
        table: its arrays.
        leakage: shape (K, L, units).
    """

    scope: str

    def __init__(self, table: Table, *, resamples: int, seed: int) -> None:
        if resamples < 2:
            raise DataError(f"{resamples} resamples show no spread: ask for at least 2")
        self.table, self._resamples, self._seed = table, resamples, seed
        self.leakage: Floats = table.parts[PLUS].sum(axis=-1) - table.parts[MINUS].sum(axis=-1)
        self.twins = bool(np.nanmax(table.parts[MINUS], initial=0.0) > 0.0)

    @property
    @abstractmethod
    def runs(self) -> int:
        """How many training runs it rests on."""

    def maxter(self, tau: float, *, level: float = 0.95) -> CrossEstimate:
        """MaxTER(tau), in percent.

        Args:
            tau: utility budget in percent.
            level: the confidence level.

        Raises:
            DataError: tau is NaN.
        """
        choice = self._choice([(tau, 1.0)], lambda points: maxter(points, tau))
        read, units = choice.read, range(self.leakage.shape[2])
        whole = self._reduced(choice, level)
        pick = read.picks[0].tolist()
        return CrossEstimate(
            **{field.name: getattr(whole, field.name) for field in dataclasses.fields(Estimated)},
            chosen=tuple(self.table.labels[row] for row in pick),
            readings=tuple(self.table.readings[read.taken[row, u]] for u, row in enumerate(pick)),
            deltas=tuple(float(self.table.delta[row, u]) for u, row in enumerate(pick)),
            reductions=tuple(reduction(read.leakage[u : u + 1], read.undefended[u : u + 1]) for u in units),
            scope=self.scope,
        )

    def aurc(self, tau_max: float = 20.0, *, level: float = 0.95) -> Estimated:
        """The mean of `maxter` over budgets from 0 to ``tau_max``, exact for the step function, in percent.

        Raises:
            DataError: ``tau_max`` is not a positive number.
        """
        return self._reduced(self._area(tau_max), level)

    def gain(self, other: Cut, tau_max: float = 20.0, *, level: float = 0.95) -> Estimated:
        """Its `aurc` less that of another arm; against the undefended run's own checkpoints, what a defense is worth.

        Raises:
            DataError: as `aurc`; the two are not of the same units, persons and undefended runs.
        """
        self._check_paired(other)
        ours, theirs = (cut._area(tau_max) for cut in (self, other))
        total = math.fsum(ours.read.undefended.tolist())
        if total <= 0.0:
            return self._nothing_known()
        value = (math.fsum(theirs.read.leakage.tolist()) - math.fsum(ours.read.leakage.tolist())) / total
        signed = [(1.0, theirs), (-1.0, ours)]
        numerator = _netted(theirs.parts, ours.parts)
        sample: Limits = (value, value)
        same = all(
            np.array_equal(a, b, equal_nan=True)
            for a, b in ((self.table.parts, other.table.parts), (self.table.delta, other.table.delta))
        )
        if not same and (ours.read.picks.any() or theirs.read.picks.any()):
            widened = self._widening(value, signed)
            _, *limits = person_ratio(numerator.sum(1), ours.base.sum(1), level, twins=True, widened=widened)
            sample = (limits[0], limits[1])
        return self._estimated(value, self._noise(value, sample, numerator, ours, signed, level))

    def kept(self, tau_max: float = 20.0) -> Floats:
        """The leakage that is left per person, averaged over budgets and summed over units, shape (P,)."""
        parts = self._area(tau_max).parts
        net: Floats = (parts[PLUS] - parts[MINUS]).sum(axis=0)
        return net

    @property
    def excess(self) -> Bounded:
        """The undefended leakage of these runs with its limits over persons: whether it can be told from chance.

        That other runs would leak more or less is no doubt about these; it is in the limits of what is divided by it.
        """
        found = self.undefended()
        return Bounded(found.value, *found.sample_limits)

    def undefended(self, *, level: float = 0.95) -> Estimated:
        """The undefended leakage at the end of training, its mean over units, signed."""
        return self.leakage_at(0, level=level)

    def leakage_at(self, point: int, *, level: float = 0.95) -> Estimated:
        """The leakage of one point, with the reading that the other units chose; its mean over units, signed.

        The lower limit allows for as many scores as there were to choose among (Bonferroni): runs share their persons,
        so that the best of several which tell nothing looks on every run as if it told something. No choice makes a
        leakage look too small.
        """
        taken, _, own = attacked(self.leakage)
        parts = self.table.parts
        read = np.stack([parts[:, k, point, u] for u, k in enumerate(taken[point].tolist())], axis=1)  # (4, units, P)
        noise = self._mean_noise(read, level)
        if (scores := self._scores(point)) > 1:
            strict = self._mean_noise(read, 1.0 - (1.0 - level) / scores)
            noise = Noise(noise.run, (strict.sample[0], noise.sample[1]), (strict.both[0], noise.both[1]))
        persons = int(np.count_nonzero(read[WEIGHT].sum(axis=0)))
        value = math.fsum(own[point].tolist()) / float(read[WEIGHT].sum())
        return Estimated(value, *noise.both, noise.run, noise.sample, persons)

    def _scores(self, point: int) -> int:
        """How many scores a point has, whichever way they are turned."""
        known = np.flatnonzero(~np.isnan(self.leakage[:, point, 0])).tolist()
        names = {self.table.readings[k].rpartition("/") for k in known}
        return len({(attack, name.removeprefix("-")) for attack, _, name in names})

    def readings_at(self, point: int) -> tuple[str, ...]:
        """The attacker's reading of one point, by unit."""
        taken = attacked(self.leakage)[0][point].tolist()
        return tuple(self.table.readings[k] for k in taken)

    @functools.cached_property
    def drawn(self) -> Floats:
        """Leakages with persons drawn anew within each of their `_homes`, shape (K, L, units, resamples)."""
        net = self.table.parts[PLUS] - self.table.parts[MINUS]
        return redrawn(net, self._homes(), resamples=self._resamples, seed=self._seed)

    def _homes(self) -> Ints:
        """Within what each person is drawn anew: nothing, or a fold; shape (P,)."""
        return np.zeros(len(self.table.persons), dtype=np.int64)

    def _widening(self, ratio: float, signed: Sequence[tuple[float, Choice]]) -> float:
        """The root of the design effect of choosing; the read's leakage is compared with ``ratio`` times its base."""
        again, kept = np.zeros(self._resamples), np.zeros(self._resamples)
        for sign, choice in signed:
            cut = choice.cut
            fresh = cross_read(cut.drawn, cut.table.delta, choice.steps)
            again += sign * fresh.leakage.sum(axis=0)
            kept += sign * read_again(choice.read, choice.steps, cut.drawn).sum(axis=0)
            if cut is self:
                again -= ratio * fresh.undefended.sum(axis=0)
                kept -= ratio * base_again(choice.read, cut.drawn).sum(axis=0)
        before, after = float(kept.var()), float(again.var())
        return max(after / before, 1.0) ** 0.5 if before > 1e-18 else 1.0

    @abstractmethod
    def _noise(
        self,
        ratio: float,
        sample: Limits,
        numerator: Floats,
        choice: Choice,
        signed: Sequence[tuple[float, Choice]],
        level: float,
    ) -> Noise:
        """Both kinds of noise of a ratio of leakages.

        Args:
            ratio: the estimate.
            sample: its limits over persons.
            numerator: what each person adds to it on each unit, shape (4, units, P).
            choice: whose undefended run the denominator is.
            signed: the reads whose sum, with these signs, the numerator is.
            level: the confidence level.
        """

    def _mean_noise(self, parts: Floats, level: float) -> Noise:
        """Limits of a mean leakage, parts of shape (4, units, P)."""
        found = person_mean(parts.sum(axis=1), level, twins=self.twins)
        return Noise(UNKNOWN, (found.low, found.high), (found.low, found.high))

    def _choice(self, steps: Steps, plain: Plain) -> Choice:
        return Choice(self, steps, cross_read(self.leakage, self.table.delta, steps), plain)

    def _area(self, tau_max: float) -> Choice:
        return self._choice(budget_steps(self.table.delta, tau_max), lambda points: aurc(points, tau_max))

    def _reduced(self, choice: Choice, level: float) -> Estimated:
        """100 (1 - sum a / sum b), of a read."""
        read = choice.read
        total = math.fsum(read.undefended.tolist())
        if total <= 0.0:
            return self._nothing_known()
        left = math.fsum(read.leakage.tolist()) / total
        noise = self._noise(left, self._left(choice, left, level), choice.parts, choice, [(1.0, choice)], level)
        # Less than nothing cannot be left on average, since the attacker takes the sign; a reading of it may be less.
        least = min(left, 0.0)
        kept = ((max(low, least), high) for low, high in (noise.run, noise.sample, noise.both))
        return self._estimated(1.0 - left, Noise(*((1.0 - high, 1.0 - low) for low, high in kept)))

    def _left(self, choice: Choice, left: float, level: float) -> Limits:
        """Limits over persons of what is left. Of what was left alone all is, for certain."""
        active, under = (_parts(choice, idle=False, undefended=undefended) for undefended in (False, True))
        if not active[WEIGHT].any():
            return left, left
        share = float((under[PLUS] - under[MINUS]).sum() / (choice.base[PLUS] - choice.base[MINUS]).sum())
        widened = self._widening(left, [(1.0, choice)])
        _, low, high = person_ratio(active.sum(1), under.sum(1), level, twins=self.twins, widened=widened)
        return 1.0 - share * (1.0 - low), 1.0 - share * (1.0 - high)

    def _estimated(self, value: float, noise: Noise) -> Estimated:
        run, sample, both = map(_percent, (noise.run, noise.sample, noise.both))
        return Estimated(100.0 * value, *both, run, sample, len(self.table.persons))

    def _nothing_known(self) -> Estimated:
        return Estimated(math.nan, *UNKNOWN, UNKNOWN, UNKNOWN, len(self.table.persons))

    def _check_paired(self, other: Cut) -> None:
        mine, theirs = self.table, other.table
        same = mine.persons == theirs.persons and mine.readings == theirs.readings
        if not same or not np.array_equal(self.leakage[:, 0], other.leakage[:, 0], equal_nan=True):
            raise DataError("the two arms are not of the same seeds and units: give both in the same order")


def _parts(choice: Choice, *, idle: bool = True, undefended: bool = False) -> Floats:
    """What was read of each person on each unit, shape (4, units, P).

    Args:
        choice: the read.
        idle: with what was left alone.
        undefended: of the undefended run, over the budgets and units of the read.
    """
    parts, read = choice.cut.table.parts, choice.read
    found = np.zeros(parts.shape[:1] + parts.shape[3:])
    for pick, (_, weight) in zip(read.picks, choice.steps, strict=True):
        for u, row in enumerate(pick.tolist()):
            if row or idle:
                point = 0 if undefended else row
                found[:, u] += weight * parts[:, read.taken[point, u], point, u]
    return found


def _netted(added: Floats, taken: Floats) -> Floats:
    """A difference of parts, person by person, split again into what is added and what is taken off."""
    net = (added[PLUS] - added[MINUS]) - (taken[PLUS] - taken[MINUS])
    return np.stack([np.maximum(net, 0.0), np.maximum(-net, 0.0), *taken[WEIGHT:]])


def _percent(limits: Limits) -> Limits:
    return 100.0 * limits[0], 100.0 * limits[1]
