"""Intervals: how far an estimate can be trusted when persons, not values, are what was drawn.

A person's secrets leak together, so persons are the clusters of every interval here. Limits come from score methods and
from combining them (MOVER), because a normal or bootstrap interval of zero hits has no width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri, stdtrit  # type: ignore[import-untyped, unused-ignore]

from memdefense.errors import DataError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Values = Sequence[float] | npt.NDArray[np.floating | np.integer | np.bool_]


class Estimate(Protocol):
    """Anything with a value and two limits, such as a `Score`."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def normal_quantile(level: float) -> float:
    """The two-sided standard normal quantile, 1.96 for a level of 0.95.

    Raises:
        DataError: the level is not strictly between 0 and 1.
    """
    if not 0.0 < level < 1.0:
        raise DataError(f"a confidence level of {level} makes no interval: give one between 0 and 1, such as 0.95")
    return float(ndtri(0.5 + level / 2.0))


def wilson(successes: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score limits of a proportion (Wilson 1927), without continuity correction.

    Args:
        successes: how many succeeded; a fraction where ``n`` was divided by a design effect.
        n: how many there were; 0 gives (0, 1).
        level: the confidence level.

    Raises:
        DataError: a negative or non-finite count, or more successes than units.
    """
    z = normal_quantile(level)
    if not (math.isfinite(n) and n >= 0.0 and -1e-9 <= successes <= n * (1.0 + 1e-9) + 1e-9):
        raise DataError(f"{successes} successes among {n} units are no proportion: give 0 <= successes <= n")
    if n == 0:
        return 0.0, 1.0
    p = min(max(successes / n, 0.0), 1.0)
    centre = p + z * z / (2.0 * n)
    half = z * math.sqrt(p * (1.0 - p) / n + (z / (2.0 * n)) ** 2)
    scale = 1.0 + z * z / n
    # At the two ends the limit is exact; rounding would leave 1e-17 there.
    low = 0.0 if p == 0.0 else max((centre - half) / scale, 0.0)
    high = 1.0 if p == 1.0 else min((centre + half) / scale, 1.0)
    return low, high


def clusters(groups: Sequence[str]) -> tuple[Ints, int]:
    """Numbers the clusters: one code per unit, and how many clusters there are.

    An empty name is an unknown person, and makes a cluster of its own.
    """
    names = np.asarray(groups, dtype=np.str_)
    known = names != ""
    codes = np.zeros(len(names), dtype=np.int64)
    distinct, inverse = np.unique(names[known], return_inverse=True)
    codes[known] = inverse
    codes[~known] = len(distinct) + np.arange(np.count_nonzero(~known))
    return codes, len(distinct) + int(np.count_nonzero(~known))


def cluster_residuals(values: Values, groups: Sequence[str]) -> tuple[Floats, Floats]:
    """The residuals about the mean: per unit, shape (n,), and summed per cluster, shape (clusters,).

    Raises:
        DataError: values and groups differ in number.
    """
    units = np.asarray(values, dtype=np.float64)
    if len(units) != len(groups):
        raise DataError(f"{len(units)} values but {len(groups)} groups: give one group (person) per value")
    codes, count = clusters(groups)
    residuals = units - units.mean() if len(units) else units
    return residuals, np.bincount(codes, weights=residuals, minlength=count).astype(np.float64)


def clustered_error(residuals: Values, groups: Sequence[str]) -> float:
    """The standard error of a sum whose residuals are given, where units of one cluster belong together.

    sqrt(G / (G - 1) * sum_g e_g^2), with e_g the sums of G clusters (Cochran 1977, chapter 6). Of a ratio of two sums,
    the residuals are those of the linearised ratio.
    """
    codes, count = clusters(groups)
    sums = np.bincount(codes, weights=np.asarray(residuals, dtype=np.float64), minlength=count)
    return math.sqrt(float(sums @ sums) * count / max(count - 1, 1))


def design_effect(values: Values, groups: Sequence[str]) -> float:
    """How many times the variance of a mean grows because its units come in persons.

    With e_i = y_i - mean(y), n units and G clusters of sums e_g::

        deff = [G / (G - 1) * sum_g e_g^2] / [n / (n - 1) * sum_i e_i^2]

    the variance of the mean as a ratio estimator over clusters, over its variance as if units were independent (Kish
    1965, 5.4 and 8.2). It is never less than 1, and 1 where every unit is its own cluster or all values are equal.
    Where all units come from one person nothing is known of another, and it is n: one independent observation.

    Raises:
        DataError: values and groups differ in number.
    """
    units, sums = cluster_residuals(values, groups)
    n, count = len(units), len(sums)
    if n == count:
        return 1.0
    if count == 1:
        return float(n)
    spread = float(units @ units) * n / (n - 1)
    if spread <= 1e-12 * n:
        return 1.0
    return max(float(sums @ sums) * count / (count - 1) / spread, 1.0)


def cluster_correlation(first: Values, second: Values, groups: Sequence[str]) -> float:
    """The correlation of two means taken over the same units in the same clusters; 0 where either does not vary."""
    _, a = cluster_residuals(first, groups)
    _, b = cluster_residuals(second, groups)
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(np.clip(float(a @ b) / scale, -1.0, 1.0)) if scale > 1e-12 else 0.0


def mover_ratio(a: Estimate, b: Estimate, *, correlation: float = 0.0) -> tuple[float, float, float]:
    """The ratio a / b and its limits, from the limits of a and of b (MOVER-R, Donner & Zou 2012, eq. 9).

    The limits are the R at which the MOVER limits of ``a - R b`` touch zero. ``a`` may be negative; the side of b's
    interval that counts then changes with the sign of R, which the published formula leaves out.

    Args:
        a: numerator.
        b: denominator; where its interval reaches 0 or below, the ratio can be anything: (ratio, -inf, inf).
        correlation: of the two estimates (Zou & Donner 2008); 0 for independent ones.

    Returns:
        Ratio, low, high; all NaN where a value is NaN or b is 0.
    """
    known = all(math.isfinite(x) for x in (a.value, a.low, a.high, b.value, b.low, b.high))
    if not known or b.value == 0.0:
        return math.nan, math.nan, math.nan
    ratio = a.value / b.value
    if b.low <= 0.0:
        return ratio, -math.inf, math.inf
    # Mirroring the numerator turns its upper limit into a lower one.
    low = _ratio_limit(a.value, a.low, b, correlation)
    high = -_ratio_limit(-a.value, -a.high, b, -correlation)
    return ratio, min(low, ratio), max(high, ratio)


def _ratio_limit(value: float, low: float, b: Estimate, correlation: float) -> float:
    """The R that solves ``value - R b = sqrt(A^2 + R^2 w^2 - 2 rho R A w)``; A and w are distances to limits."""
    reach = value - low  # A
    width = b.high - b.value if low >= 0.0 else b.value - b.low  # w: the root has the sign of `low`
    square = b.value**2 - width**2
    middle = value * b.value - correlation * reach * width
    constant = value**2 - reach**2
    root = math.sqrt(max(middle**2 - square * constant, 0.0))
    if low < 0.0:
        return (middle - root) / square
    # The other form of the same root, which stands where `square` is zero or negative (b.high >= 2 b).
    return constant / (middle + root) if middle + root > 0.0 else 0.0


def mean_interval(values: Values, level: float = 0.95) -> tuple[float, float]:
    """Student's t limits of a mean, with one degree of freedom less than values; NaN for fewer than two values."""
    normal_quantile(level)
    units = np.asarray(values, dtype=np.float64)
    if len(units) < 2:
        return math.nan, math.nan
    half = t_quantile(len(units) - 1, level) * float(units.std(ddof=1)) / math.sqrt(len(units))
    mean = float(units.mean())
    return mean - half, mean + half


def t_quantile(freedom: float, level: float) -> float:
    """The two-sided quantile of Student's t."""
    return float(stdtrit(freedom, 0.5 + level / 2.0))


def few(sizes: Values, level: float) -> float:
    """The level at which normal limits are Student's at ``level``, where clusters are few or of unequal size.

    A cluster of many units decides much of the mean and of its variance, so the variance is known as well as that of
    (sum n)^2 / sum n^2 clusters of one size (Kish 1965), less one degree of freedom; at least two are left, for next to
    nothing is known of one cluster's like, and Student's quantile would say so without end.

    Args:
        sizes: units of each cluster; those without any do not count.
        level: the confidence level.
    """
    units = np.asarray(sizes, dtype=np.float64)
    square = float(units @ units)
    if square <= 0.0:
        return level
    freedom = max(float(units.sum()) ** 2 / square - 1.0, 2.0)
    return min(float(2.0 * ndtr(t_quantile(freedom, level)) - 1.0), 1.0 - 1e-12)


class Draws:
    """Draws with replacement from a bit stream that no library version changes (numpy keeps PCG64's raw output)."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def counts(self, size: int, draws: int) -> Ints:
        """How often each of ``size`` things came in ``draws`` draws, shape (size,)."""
        raw = np.asarray(self._bits.random_raw(draws), dtype=np.uint64)
        picked = ((raw >> np.uint64(32)) * np.uint64(size)) >> np.uint64(32)
        return np.bincount(picked.astype(np.int64), minlength=size)

    def table(self, size: int, resamples: int) -> Ints:
        """`counts` of ``size`` draws, time and again, shape (size, resamples)."""
        raw = np.asarray(self._bits.random_raw(size * resamples), dtype=np.uint64)
        picked = ((raw >> np.uint64(32)) * np.uint64(size)) >> np.uint64(32)
        row = np.repeat(np.arange(resamples, dtype=np.int64) * size, size)
        return np.bincount(row + picked.astype(np.int64), minlength=size * resamples).reshape(resamples, size).T
