"""A bootstrap of persons that repeats every choice: how much wider choosing makes an interval."""

from __future__ import annotations

import numpy as np

from memdefense.interval import Draws, Floats, Ints
from memdefense.selection import Read, Steps


def redrawn(net: Floats, homes: Ints, *, resamples: int, seed: int) -> Floats:
    """Leakages with persons drawn anew, shape (K, L, units, resamples).

    A resample's differences between points are those seen plus noise of its own: noise twice. So what was seen is first
    shrunk towards no difference, for points as a whole and for single units apart, by the share of its variance that
    the resamples show of themselves (James & Stein 1961).

    Args:
        net: what each person adds, shape (K, L, units, persons); NaN where a point has no such reading.
        homes: within what each person is drawn anew (a fold), shape (persons,).
        resamples: how many.
        seed: of the draws.
    """
    leakage, draws = np.zeros((*net.shape[:3], resamples)), Draws(seed)
    for home in range(int(homes.max()) + 1):
        inside = np.flatnonzero(homes == home)
        leakage += net[..., inside] @ draws.table(len(inside), resamples)
    return leakage - _noise_seen(net.sum(axis=-1), leakage)[..., np.newaxis]


def _noise_seen(seen: Floats, drawn: Floats) -> Floats:
    """The part of the differences between points that is noise, shape (K, L, units); none for doing nothing."""
    taken = np.zeros(seen.shape)
    if seen.shape[1] > 2:
        whole, single = _apart(seen[:, 1:])
        noise_whole, noise_single = _apart(drawn[:, 1:] - drawn[:, 1:].mean(axis=-1, keepdims=True))
        taken[:, 1:] = _noisy(whole, noise_whole) * whole + _noisy(single, noise_single) * single
    return np.nan_to_num(taken)


def _apart(leakage: Floats) -> tuple[Floats, Floats]:
    """How points differ from the mean point: as a whole, (K, L, 1[, R]), and beyond that on each unit."""
    apart = leakage - _mean(leakage, axis=1)
    whole = _mean(apart, axis=2)
    return whole, apart - whole


def _mean(values: Floats, *, axis: int) -> Floats:
    """The mean of what is there, the axis kept; 0 where nothing is (numpy's nanmean would warn)."""
    there = ~np.isnan(values)
    total = np.nansum(values, axis=axis, keepdims=True)
    return np.asarray(total / np.maximum(there.sum(axis=axis, keepdims=True), 1), dtype=np.float64)


def _noisy(seen: Floats, noise: Floats) -> Floats:
    """The share of the spread seen that noise alone would make, at most 1, by reading, shape (K, 1, 1)."""
    spread, alone = (np.nansum(x**2, axis=(1, 2), keepdims=True) for x in (seen, noise))
    alone = alone.mean(axis=-1)
    return np.asarray(np.minimum(alone / np.where(spread > 0.0, spread, np.inf), 1.0), dtype=np.float64)


def read_again(read: Read, steps: Steps, leakage: Floats) -> Floats:
    """The same points and readings on other leakages, shape (units, resamples), from (K, L, units, resamples)."""
    found = np.zeros(leakage.shape[2:])
    for pick, (_, weight) in zip(read.picks, steps, strict=True):
        for u, row in enumerate(pick.tolist()):
            found[u] += weight * leakage[read.taken[row, u], row, u]
    return found


def base_again(read: Read, leakage: Floats) -> Floats:
    """The same of the undefended run."""
    return np.stack([leakage[read.taken[0, u], 0, u] for u in range(leakage.shape[2])])
