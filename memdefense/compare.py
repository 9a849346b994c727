"""Defense against defense: persons permuted, runs by Student's t, Holm over pairs, and ranks that show ties."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr  # type: ignore[import-untyped, unused-ignore]

from memdefense.cut import Cut, Estimated
from memdefense.interval import Floats, t_quantile

FLIPS = 20_000
_LEVEL = 0.05
_CHUNK = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class Standing:
    """One arm among others.

    Attributes:
        rank: the best and the worst place it can have: 1 + how many are better, and how many are not worse.
        versus: by other arm, ``difference`` of AURC in percent with ``low`` and ``high``, ``p`` over persons, ``run_p``
            over runs (of one run 0, or 1 beside arms of several), ``holm``, the larger of the two adjusted for all
            pairs, and ``seeds``, how many runs both were measured on.
    """

    rank: tuple[int, int]
    versus: dict[str, dict[str, float]]


def compared(
    names: Sequence[str], cuts: Callable[[str, str], tuple[Cut, Cut] | None], *, tau_max: float = 20.0
) -> dict[str, Standing]:
    """Compares every pair of arms by their areas under MaxTER.

    One arm is better than another where Holm's p is below 5 % and the interval of the difference lies above 0; else
    the two are tied. The p of a pair is the larger of two: that of a permutation over persons, which speaks of these
    trained models alone, for a lucky run shifts all of its persons together; and that of Student's t over runs. So the
    chance that any false order is shown among equal arms is at most about 5 %, and few runs leave most pairs tied.

    Args:
        names: of the arms.
        cuts: of two arms, both on the same seeds and persons; None where they share no seed.
        tau_max: end of the budget axis, in percent.
    """
    pairs = {pair: found for pair in itertools.combinations(names, 2) if (found := cuts(*pair)) is not None}
    kept: dict[int, Floats] = {id(cut): cut.kept(tau_max) for found in pairs.values() for cut in found}
    flips = max(FLIPS, 80 * len(pairs))  # enough for the smallest p there is to outlive Holm
    differences = [kept[id(theirs)] - kept[id(ours)] for ours, theirs in pairs.values()]
    persons = sign_flips(np.stack(differences), flips=flips).tolist() if pairs else []
    gains = [ours.gain(theirs, tau_max) for ours, theirs in pairs.values()]
    seeds = [ours.runs for ours, _ in pairs.values()]
    most = max(seeds, default=1)
    # Beside arms of several runs, of a single one it is not known what another would give.
    runs = [_run_chance(gain, n) if n > 1 or most == 1 else 1.0 for gain, n in zip(gains, seeds, strict=True)]
    adjusted = holm(list(map(max, persons, runs)))
    versus: dict[str, dict[str, dict[str, float]]] = {name: {} for name in names}
    above: set[tuple[str, str]] = set()
    for (a, b), gain, p, run_p, corrected, count in zip(pairs, gains, persons, runs, adjusted, seeds, strict=True):
        beside = {"p": p, "run_p": run_p, "holm": corrected, "seeds": count}
        versus[a][b] = {"difference": gain.value, "low": gain.low, "high": gain.high, **beside}
        versus[b][a] = {"difference": -gain.value, "low": -gain.high, "high": -gain.low, **beside}
        above |= {(x, y) for x, y in ((a, b), (b, a)) if better(versus[x][y])}
    return {
        name: Standing(
            (1 + sum(y == name for _, y in above), len(names) - sum(x == name for x, _ in above)), versus[name]
        )
        for name in names
    }


def better(versus: Mapping[str, float]) -> bool:
    """Whether a comparison, as `Standing.versus` holds it, says that the arm is better than the other."""
    return versus["holm"] < _LEVEL and versus["low"] > 0.0


def _run_chance(difference: Estimated, seeds: int) -> float:
    """The two-sided p of no difference, by Student's t over runs; 0 of one run, whose numbers are of it alone."""
    half = difference.run_limits[1] - difference.value
    if seeds < 2 or math.isnan(half):
        return 0.0
    if half <= 0.0:
        return float(difference.value == 0.0)
    return float(2.0 * stdtr(seeds - 1, -abs(difference.value) / half * t_quantile(seeds - 1, 0.95)))


def sign_flips(differences: Floats, *, flips: int = FLIPS, seed: int = 0) -> Floats:
    """The two-sided p of each row's sum being 0, by flipping the signs of persons (Fisher 1935).

    Under the null hypothesis a person's outcomes under the two arms could as well be exchanged. Deviates [ours]: a
    person's sign is the same on all seeds, since the seeds share their persons, and a person whom one arm protects and
    the other does not is one piece of evidence however many seeds repeat it.

    Args:
        differences: of two arms, per person, shape (pairs, persons).
        flips: how many permutations are drawn, the same for all pairs.
        seed: of the draws.

    Returns:
        Shape (pairs,); the observed signs count as one draw, so never 0.
    """
    persons = differences.shape[1]
    seen = np.abs(differences.sum(axis=1))
    scale = np.abs(differences).sum(axis=1) * 1e-9  # sums that differ by rounding are equal
    bits = np.random.PCG64(seed)
    words = -(-persons // 64)
    reached = np.ones(len(differences))
    for start in range(0, flips, _CHUNK):
        rows = min(_CHUNK, flips - start)
        raw = np.asarray(bits.random_raw(rows * words), dtype=np.uint64).reshape(rows, words)
        signs = 1.0 - 2.0 * _bits(raw)[:, :persons]
        reached += (np.abs(signs @ differences.T) >= seen - scale).sum(axis=0)
    return np.asarray(reached / (flips + 1), dtype=np.float64)


def holm(chances: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979): the k-th smallest of m times m - k + 1, never falling, at most 1."""
    order = sorted(range(len(chances)), key=lambda i: chances[i])
    found, highest = [0.0] * len(chances), 0.0
    for step, i in enumerate(order):
        highest = max(highest, min(1.0, (len(chances) - step) * chances[i]))
        found[i] = highest
    return found


def _bits(words: npt.NDArray[np.uint64]) -> Floats:
    """The bits of 64-bit words, lowest first on every machine, shape (rows, 64 words)."""
    octets = words.astype("<u8").view(np.uint8)
    return np.unpackbits(octets, axis=1, bitorder="little").astype(np.float64)
