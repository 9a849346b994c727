"""Defense against defense: permutation over persons, Holm over pairs, and ranks that show ties."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from memdefense.cut import Cut
from memdefense.interval import Floats

FLIPS = 20_000
_LEVEL = 0.05
_CHUNK = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class Standing:
    """One arm among others.

    Attributes:
        rank: the best and the worst place it can have: 1 + how many are better, and how many are not worse.
        versus: by other arm, ``difference`` of AURC in percent with ``low`` and ``high``, ``p`` and ``holm``.
    """

    rank: tuple[int, int]
    versus: dict[str, dict[str, float]]


def compared(cuts: Mapping[str, Cut], *, tau_max: float = 20.0) -> dict[str, Standing]:
    """Compares every pair of arms by their areas under MaxTER.

    One arm is better than another where Holm's p of the permutation is below 5 % and the interval of the difference,
    which knows of run noise too, lies above 0; else the two are tied. The permutation alone speaks of these trained
    models: a lucky run shifts all of its persons together.

    Args:
        cuts: by label, of the same seeds, persons and undefended runs.
        tau_max: end of the budget axis, in percent.
    """
    names = list(cuts)
    pairs = list(itertools.combinations(names, 2))
    if not pairs:
        return {name: Standing((1, 1), {}) for name in names}
    kept = {name: cut.kept(tau_max) for name, cut in cuts.items()}
    chances = sign_flips(np.stack([kept[b] - kept[a] for a, b in pairs]))
    adjusted = holm(chances.tolist())
    versus: dict[str, dict[str, dict[str, float]]] = {name: {} for name in names}
    above: set[tuple[str, str]] = set()
    for (a, b), p, corrected in zip(pairs, chances.tolist(), adjusted, strict=True):
        found = cuts[a].gain(cuts[b], tau_max)
        both = {"p": p, "holm": corrected}
        versus[a][b] = {"difference": found.value, "low": found.low, "high": found.high, **both}
        versus[b][a] = {"difference": -found.value, "low": -found.high, "high": -found.low, **both}
        above |= {(x, y) for x, y in ((a, b), (b, a)) if corrected < _LEVEL and versus[x][y]["low"] > 0.0}
    return {
        name: Standing(
            (1 + sum(y == name for _, y in above), len(names) - sum(x == name for x, _ in above)), versus[name]
        )
        for name in names
    }


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
