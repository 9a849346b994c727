"""What each person adds to a leakage, and the limits that follow: persons are what was drawn.

A leakage is a mean over units; a person's units leak together, and leak again on the next seed. So units are summed per
person, over seeds too, and every interval is one over persons.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from memdefense.attack import Term
from memdefense.errors import DataError
from memdefense.interval import Floats, Values, few, mover_ratio, normal_quantile, wilson

PLUS, MINUS, WEIGHT, FEW = range(4)
"""Rows of a person's parts: what its units add, what they take off, its share of the units, and its share of those
units whose persons are fewest (all of them, but where a leakage compares two sides)."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Column:
    """What each unit adds to one leakage, their mean.

    Attributes:
        values: the terms (`memdefense.score.excess_terms`, `memdefense.roc.auc_terms`), shape (n,).
        persons: whose each unit is, shape (n,); the empty name is a person of its own.
        sides: which of two samples each unit is of, shape (n,); empty where there is one.
    """

    values: Values
    persons: Sequence[str]
    sides: Sequence[str] = ()


Readings = Mapping[str, Column]
"""What an attacker may read off one operating point, by name: scores, signs, attacks."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class RunTerms:
    """One arm on one seed, unit by unit.

    Attributes:
        points: by label, the readings of an operating point; a label means the same point on every seed.
        deltas: by label, the utility cost in percent.
        undefended: the readings of the undefended run at the end of training.
    """

    points: Mapping[str, Readings]
    deltas: Mapping[str, float]
    undefended: Readings


@dataclasses.dataclass(frozen=True, slots=True)
class Bounded:
    """An estimate with its limits."""

    value: float
    low: float
    high: float


def readings(terms: Sequence[Term], *, two_sided: bool = False, prefix: str = "") -> dict[str, Column]:
    """The terms of an attack by reading; of a two-sided attack each also with its sign turned, named ``-reading``.

    Args:
        terms: of one point.
        two_sided: whether a leakage below chance tells as much as one above.
        prefix: put before every name, so that several attacks can stand together.
    """
    found: dict[str, list[Term]] = {}
    for term in terms:
        found.setdefault(term.reading, []).append(term)
    columns: dict[str, Column] = {}
    for name, some in found.items():
        values, persons, sides = (np.asarray([t.value for t in some]), [t.person for t in some], [t.side for t in some])
        columns[f"{prefix}{name}"] = Column(values, persons, sides)
        if two_sided:
            columns[f"{prefix}-{name}"] = Column(-values, persons, sides)
    return columns


def names_of(columns: Sequence[Column]) -> list[str]:
    """All persons of some columns, in order; one without a name is known by its place among them."""
    return sorted({name for column in columns for name in _named(column.persons)})


def parts_of(column: Column, persons: Mapping[str, int]) -> Floats:
    """A column summed per person, shape (4, persons); all NaN where a term is not finite.

    Args:
        column: the terms.
        persons: the place of each person.

    Raises:
        DataError: terms and persons differ in number, or there are none.
    """
    values, n = np.asarray(column.values, dtype=np.float64), len(column.persons)
    if len(values) != n or not n:
        raise DataError(f"{len(values)} terms of {n} persons do not fit each other: give one person per term")
    if not np.isfinite(values).all():
        return np.full((4, len(persons)), math.nan)
    place = np.fromiter((persons[name] for name in _named(column.persons)), dtype=np.int64, count=n)
    rows = [np.maximum(values, 0.0), np.maximum(-values, 0.0), np.ones(n)]
    sides = np.asarray(column.sides or [""] * n)
    of_sides = [np.asarray(sides == side, dtype=np.float64) for side in sorted(set(sides.tolist()))]
    rows.append(max(of_sides, key=lambda row: few(np.bincount(place, weights=row), 0.95)))
    return np.stack([np.bincount(place, weights=row / n, minlength=len(persons)) for row in rows])


def person_mean(parts: Floats, level: float, *, twins: bool, lent: float = math.nan) -> Bounded:
    """A mean over persons with its limits.

    The mean is of what is added less what is taken off (twins that came out, non-members that rank above). Each of the
    two has Wilson's limits, with the n for which a proportion of that size has the variance found over persons, and
    Student's quantile where persons are few or hold very different numbers of units (`few`); MOVER joins them with
    their correlation over persons. Wilson's limits have width where nothing leaked.

    Args:
        parts: shape (4, persons).
        level: the confidence level.
        twins: whether anything is taken off anywhere; if not, 0 is taken off for certain.
        lent: the n to use where nothing varies: that of the undefended run.
    """
    added = _share(PLUS, parts, level, lent)
    if not twins:
        return added
    off = _share(MINUS, parts, level, lent)
    together = _correlation(*(_residuals(parts[row], parts[WEIGHT]) for row in (PLUS, MINUS)))
    value = added.value - off.value

    def reach(mine: float, theirs: float) -> float:
        return math.sqrt(max(mine**2 + theirs**2 - 2.0 * together * mine * theirs, 0.0))

    low = value - reach(added.value - added.low, off.high - off.value)
    return Bounded(value, low, value + reach(added.high - added.value, off.value - off.low))


def independent_units(parts: Floats) -> float:
    """The n for which a proportion of the size found varies as much as persons do; the persons where nothing varies."""
    value, variance = _moments(parts[PLUS], parts[WEIGHT])
    persons = float(np.count_nonzero(parts[WEIGHT]))
    return value * (1.0 - value) / variance if variance > 0.0 and 0.0 < value < 1.0 else persons


def person_ratio(
    numerator: Floats, denominator: Floats, level: float, *, twins: bool, widened: float = 1.0
) -> tuple[float, float, float]:
    """The ratio of two means over the same persons with MOVER's limits.

    Args:
        numerator: shape (4, persons).
        denominator: likewise.
        level: the confidence level.
        twins: as `person_mean`.
        widened: how many times as far the numerator's limits reach, where it was chosen from others.

    Returns:
        Ratio, low, high, as `mover_ratio`.
    """
    lent = independent_units(denominator)
    top, bottom = (person_mean(parts, level, twins=twins, lent=lent) for parts in (numerator, denominator))
    top = Bounded(top.value, top.value - widened * (top.value - top.low), top.value + widened * (top.high - top.value))
    together = _correlation(*(net_residuals(parts) for parts in (numerator, denominator)))
    return mover_ratio(top, bottom, correlation=together)


def net_residuals(parts: Floats) -> Floats:
    """What each person adds beyond its share of the units, shape (persons,)."""
    return _residuals(parts[PLUS] - parts[MINUS], parts[WEIGHT])


def _share(row: int, parts: Floats, level: float, lent: float) -> Bounded:
    weights = parts[WEIGHT]
    value, variance = _moments(parts[row], weights)
    if variance > 0.0:
        level = few(parts[FEW], level)
    if variance > 0.0 and 0.0 < value < 1.0:
        n = value * (1.0 - value) / variance
    elif 0.0 <= value <= 1.0 + 1e-9:
        n = lent if math.isfinite(lent) else float(np.count_nonzero(weights))
    else:  # no proportion
        half = normal_quantile(level) * math.sqrt(variance)
        return Bounded(value, value - half, value + half)
    return Bounded(value, *wilson(min(value, 1.0) * n, n, level))


def _moments(values: Floats, weights: Floats) -> tuple[float, float]:
    """A mean over units and its variance, persons as clusters (a ratio estimator, Kish 1965)."""
    whole, residuals = float(weights.sum()), _residuals(values, weights)
    count = int(np.count_nonzero(weights))
    square = float(residuals @ residuals)
    variance = count / (count - 1) * square / whole**2 if count > 1 and square > 1e-18 else 0.0
    return float(values.sum()) / whole, variance


def _residuals(values: Floats, weights: Floats) -> Floats:
    return np.asarray(values - values.sum() / weights.sum() * weights)


def _correlation(first: Floats, second: Floats) -> float:
    scale = math.sqrt(float(first @ first) * float(second @ second))
    return float(np.clip(float(first @ second) / scale, -1.0, 1.0)) if scale > 1e-18 else 0.0


def _named(persons: Sequence[str]) -> list[str]:
    """Names that tell apart whom the empty name does not."""
    return [name or f"\0{place}" for place, name in enumerate(persons)]
