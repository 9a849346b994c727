"""The bound against scipy's binomial, against a mechanism whose epsilon is known, and against its published ceiling."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from memdefense.attacks.epsilon import ceiling, lower_bound, p_value
from memdefense.errors import DataError


@pytest.mark.parametrize(("correct", "guesses"), [(0, 5), (3, 5), (5, 5), (60, 100), (100, 100), (700, 1000)])
@pytest.mark.parametrize("epsilon", [0.0, 0.7, 3.0])
@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-3])
def test_p_value_equals_the_theorem_written_out(correct: int, guesses: int, epsilon: float, delta: float) -> None:
    canaries = 2 * guesses
    q = math.exp(epsilon) / (1 + math.exp(epsilon))
    law = stats.binom(guesses, q)
    chances = [float(law.pmf(k)) for k in range(guesses + 1)]
    beta = sum(chances[correct:])
    alpha = max((sum(chances[correct - i : correct]) / i for i in range(1, correct + 1)), default=0.0)
    expected = min(1.0, beta + 2 * canaries * delta * alpha)
    assert p_value(correct, guesses, epsilon, canaries=canaries, delta=delta) == pytest.approx(expected, abs=1e-9)


def test_perfect_guesses_certify_what_is_published_and_no_more() -> None:
    for guesses, about in ((100, 3.5), (1000, 5.8)):
        assert ceiling(guesses) == pytest.approx(about, abs=0.05)
        # 0.95 is refuted exactly where q ** n = 0.05.
        q = 0.05 ** (1 / guesses)
        assert ceiling(guesses) == pytest.approx(math.log(q / (1 - q)), abs=1e-5)
        assert ceiling(guesses, canaries=guesses, delta=1e-4) < ceiling(guesses)
    assert ceiling(4) == 0  # four coins are guessed right once in sixteen times


def test_the_bound_is_where_the_p_value_crosses_and_it_crosses_once() -> None:
    grid = np.linspace(0, 8, 161)
    for correct, guesses, delta in ((70, 100, 0.0), (70, 100, 1e-3), (95, 100, 1e-3), (900, 1000, 1e-4)):
        bound = lower_bound(correct, guesses, canaries=2 * guesses, delta=delta)
        refuted = [p_value(correct, guesses, e, canaries=2 * guesses, delta=delta) <= 0.05 for e in grid]
        assert refuted == [e <= bound for e in grid]
    assert lower_bound(50, 100) == 0
    assert math.isnan(lower_bound(0, 0))
    assert lower_bound(80, 100, confidence=0.99) < lower_bound(80, 100) < lower_bound(80, 100, confidence=0.8)


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 4.0])
@pytest.mark.parametrize("canaries", [28, 300, 1000])
def test_the_bound_stays_below_a_known_epsilon(epsilon: float, canaries: int) -> None:
    """Randomised response tells each coin with chance exp(epsilon) / (1 + exp(epsilon)), and is no more private."""
    rng = np.random.default_rng(0)
    runs = 400
    correct = (rng.random((runs, canaries)) < 1 / (1 + math.exp(-epsilon))).sum(1)
    bounds = {int(count): lower_bound(int(count), canaries) for count in set(correct.tolist())}
    found = np.array([bounds[int(count)] for count in correct])
    assert (found <= epsilon).mean() >= 0.9
    if canaries == 1000:  # and no further below than 1.645 standard errors of the log-odds of being right
        q = 1 / (1 + math.exp(-epsilon))
        assert np.median(found) == pytest.approx(epsilon - 1.645 / math.sqrt(canaries * q * (1 - q)), rel=0.1)


def test_nonsense_is_refused() -> None:
    for correct, guesses, epsilon in ((5, 4, 1.0), (1, 4, -1.0)):
        with pytest.raises(DataError):
            p_value(correct, guesses, epsilon)
    with pytest.raises(DataError):
        lower_bound(1, 2, confidence=1.0)
