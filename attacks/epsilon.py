"""The least epsilon that correct guesses about coin flips leave possible (Steinke et al. 2023)."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import bdtr, bdtrc, expit  # type: ignore[import-untyped, unused-ignore]

from memdefense import DataError


def p_value(correct: int, guesses: int, epsilon: float, *, canaries: int = 0, delta: float = 0.0) -> float:
    """How likely an (epsilon, delta)-private model lets somebody guess so many coins right, at most (theorem 5.2).

    With pure privacy each guess is right with a chance of at most q = 1 / (1 + exp(-epsilon)), whatever the others are,
    so W, how many are, lies below a binomial(guesses, q). Delta adds 2 m delta max_i P[correct > W >= correct - i] / i.

    Args:
        correct: guesses that were right.
        guesses: coins that were guessed; how many was fixed before anybody looked.
        epsilon: the claim that is tested.
        canaries: m, all coins, guessed or not; it counts only where delta does.
        delta: the other half of the claim; 0 is pure privacy.

    Raises:
        DataError: more correct guesses than guesses, or a claim that is none.
    """
    if not 0 <= correct <= guesses or epsilon < 0 or not 0 <= delta < 1:
        raise DataError(
            f"{correct} of {guesses} guesses right, epsilon {epsilon}, delta {delta}: not a test of a claim"
        )
    q = float(expit(epsilon))
    beta = float(bdtrc(correct - 1, guesses, q)) if correct else 1.0
    if not delta or not correct:
        return beta
    steps = np.arange(1, correct + 1)
    below = np.append(bdtr(np.arange(correct - 2, -1, -1), guesses, q), 0.0)  # P[W < correct - i]
    alpha = float(((bdtr(correct - 1, guesses, q) - below) / steps).max())
    return min(1.0, beta + 2.0 * max(canaries, guesses) * delta * alpha)


def lower_bound(
    correct: int, guesses: int, *, canaries: int = 0, delta: float = 0.0, confidence: float = 0.95
) -> float:
    """The largest epsilon that is rejected at a confidence, by bisection; 0 where none is, NaN without guesses.

    Raises:
        DataError: as `p_value`; a confidence that is not strictly between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise DataError(f"a confidence of {confidence} rejects everything or nothing: give one such as 0.95")
    if not guesses:
        return math.nan

    def rejected(epsilon: float) -> bool:
        return p_value(correct, guesses, epsilon, canaries=canaries, delta=delta) <= 1 - confidence

    if not rejected(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while rejected(high):
        low, high = high, 2 * high
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) else (low, middle)
    return low


def ceiling(guesses: int, *, canaries: int = 0, delta: float = 0.0, confidence: float = 0.95) -> float:
    """What perfect guesses would certify: no audit of so many coins can say more."""
    return lower_bound(guesses, guesses, canaries=canaries, delta=delta, confidence=confidence)


__all__ = ["ceiling", "lower_bound", "p_value"]
