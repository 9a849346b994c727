"""Each score against its formula, written out by hand on log-probabilities drawn at random; directions on the side."""

from __future__ import annotations

import math
import zlib

import numpy as np
import numpy.typing as npt
import pytest

from memdefense.attacks import membership_scores as scores

RNG = np.random.default_rng(5)
LENGTHS = (1, 2, 7, 40)
Floats = npt.NDArray[np.float32]


def drawn(length: int) -> Floats:
    return -RNG.gamma(2.0, 1.0, length).astype(np.float32)


def average(values: Floats) -> float:
    return math.fsum(map(float, values)) / len(values)


@pytest.mark.parametrize("length", LENGTHS)
def test_one_pass_scores_by_hand(length: int) -> None:
    own, lower, before = drawn(length), drawn(length + 1), drawn(length)
    mean, std = -RNG.gamma(3.0, 1.0, length), RNG.gamma(2.0, 0.5, length) + 0.1
    text = "Ünïcode and more " * length
    assert scores.loss(own) == pytest.approx(average(own))
    packed = len(zlib.compress(text.encode()))
    assert scores.zlib(own, text) == pytest.approx(-(-average(own) / packed))  # minus entropy over bytes
    # -log ppl(x) / log ppl(lower x), with log ppl = -LL
    assert scores.lowercase(own, lower) == pytest.approx(-(average(own) / average(lower)))
    assert scores.reference(own, before) == pytest.approx(average(own) - average(before))
    for k in (0.01, 0.2, 0.5, 1.0):
        count = max(1, math.floor(k * length))
        assert scores.min_k(own, k) == pytest.approx(math.fsum(sorted(map(float, own))[:count]) / count)
        standard = sorted((float(p) - float(m)) / float(s) for p, m, s in zip(own, mean, std, strict=True))
        assert scores.min_k_plus_plus(own, mean, std, k) == pytest.approx(math.fsum(standard[:count]) / count, rel=1e-5)


def test_min_k_of_a_short_text_is_of_one_token() -> None:
    own = np.array([-1, -4], np.float32)
    assert scores.min_k(own, 0.01) == -4
    assert scores.min_k_plus_plus(own, np.array([-2, -2.0]), np.ones(2), 0.01) == -2


@pytest.mark.parametrize("length", LENGTHS)
def test_prefixed_scores_by_hand(length: int) -> None:
    own, others, members = drawn(length), drawn(length), drawn(length)
    assert scores.recall(own, others) == pytest.approx(average(others) / average(own))
    expected = (average(others) - 0.3 * average(members)) / average(own)
    assert scores.con_recall(own, others, members, 0.3) == pytest.approx(expected)
    # Behind a prefix the text's first token is predicted too; without one it is not, and must not be compared.
    longer = np.concatenate([np.array([-50], np.float32), others])
    assert scores.recall(own, longer) == pytest.approx(average(others) / average(own))


def test_directions_of_the_prefixed_scores() -> None:
    """A prefix of non-members takes much from a member and little from a non-member; one of members takes nothing."""
    own = np.full(10, -2.0, np.float32)
    member = scores.recall(own, own - 1.0), scores.con_recall(own, own - 1.0, own, 0.5)
    other = scores.recall(own, own - 0.1), scores.con_recall(own, own - 0.1, own - 0.1, 0.5)
    assert member[0] > other[0]
    assert member[1] > other[1]


def test_dc_pdd_by_hand() -> None:
    tokens = np.array([3, 1, 3, 0, 1, 2])
    own = np.log(np.array([0.001, 0.5, 0.9, 0.002, 0.3, 1e-5], np.float32))
    frequency = np.log(np.array([0.4, 0.3, 0.05, 0.25]))
    expected = 0.0
    for token in range(4):
        place = tokens.tolist().index(token)  # the first time alone: the 0.9 of token 3 and the 0.3 of token 1 are not
        expected += min(0.01, -math.exp(own[place]) * frequency[token]) / 4
    assert scores.dc_pdd(own, tokens, frequency) == pytest.approx(expected, rel=1e-5)
    assert scores.dc_pdd(own, tokens, frequency, cap=math.inf) > scores.dc_pdd(own, tokens, frequency)
    # A member's rare token is likelier than a non-member's; a common one says little.
    rare, common = math.log(1e-6), math.log(0.5)
    surprise = {p: scores.dc_pdd(np.log([p]), np.array([0]), np.array([rare])) for p in (1e-5, 1e-4)}
    assert surprise[1e-4] > surprise[1e-5] > scores.dc_pdd(np.log([1e-5]), np.array([0]), np.array([common]))


def test_log_frequencies_are_laplaces() -> None:
    found = scores.log_frequencies([[0, 0, 2], [], [2, 2, 2]], 4)
    assert np.exp(found) == pytest.approx([3 / 10, 1 / 10, 5 / 10, 1 / 10])
    assert np.exp(found).sum() == pytest.approx(1)


def test_neighbourhood_by_hand() -> None:
    own, near = drawn(6), [drawn(5), drawn(6), drawn(7)]
    expected = average(own) - sum(average(one) for one in near) / 3
    assert scores.neighbourhood(own, near) == pytest.approx(expected)
    assert scores.neighbourhood(own, [*near, np.zeros(0, np.float32)]) == pytest.approx(expected)
    assert scores.neighbourhood(own, []) == 0
    assert scores.neighbourhood(own, [own - 1]) > scores.neighbourhood(own, [own + 1])


def test_samia_by_hand() -> None:
    truth = "to be or not to be"
    said = ["to be to be to be", "not a word", ""]
    # 1-grams: to 2, be 2, or 1, not 1. The first has to 2 and be 2 of them, the second not; 2-grams: to be 2, be or,
    # or not, not to.
    assert scores.samia(said, truth, 1) == pytest.approx((4 / 6 + 1 / 6 + 0) / 3)
    assert scores.samia(said, truth, 2) == pytest.approx((2 / 5 + 0 + 0) / 3)
    assert scores.samia([truth], truth, 3) == 1
    assert scores.samia(["word"], "word", 3) == 1
    assert scores.samia(said, " ", 1) == 0
    assert scores.samia([], truth, 1) == 0


def test_certain_texts_are_scored_with_a_finite_number() -> None:
    sure = np.zeros(4, np.float32)
    found = [scores.recall(sure, sure), scores.lowercase(sure, sure), scores.con_recall(sure, sure, sure, 0.5)]
    found += [scores.min_k_plus_plus(sure, sure, sure, 0.2), scores.lowercase(drawn(3), np.zeros(0, np.float32))]
    assert np.isfinite(found).all()
    assert found[-1] == -1
