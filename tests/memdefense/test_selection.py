from __future__ import annotations

import math

import numpy as np
import pytest

from memdefense.errors import DataError
from memdefense.interval import Floats
from memdefense.selection import attacked, budget_steps, cross_read, reduction


def picked(leakage: list[list[float]], delta: list[list[float]], tau: float) -> list[list[int]]:
    """The points chosen on each unit, of arms with one reading."""
    return cross_read(np.asarray([leakage]), np.asarray(delta), [(tau, 1.0)]).picks.tolist()  # type: ignore[no-any-return]


def test_the_choice_is_made_elsewhere_and_read_here() -> None:
    # Unit 0 sees unit 1, where point 2 is best (0 of 4); unit 1 sees unit 0, where point 1 is best (1 of 4).
    leakage: Floats = np.asarray([[[4.0, 4], [1, 3], [2, 0]]])
    found = cross_read(leakage, np.asarray([[0.0, 0], [1, 1], [1, 1]]), [(5.0, 1.0)])
    assert found.picks.tolist() == [[2, 1]]
    assert found.leakage.tolist() == [2, 3]
    assert reduction(found.leakage, found.undefended) == pytest.approx(37.5)


def test_a_budget_binds_the_mean_cost_elsewhere() -> None:
    delta = [[0.0, 0.0, 0.0], [0.0, 2.0, 4.0]]
    # Means of the other two: 3, 2, 1.
    assert picked([[4, 4, 4], [1, 1, 1]], delta, 2.0) == [[0, 1, 1]]
    costs = np.asarray(delta)
    assert budget_steps(costs, 10.0) == [(0.0, 0.1), (1.0, 0.1), (2.0, 0.1), (3.0, 0.7)]
    assert budget_steps(costs, 2.0) == [(0.0, 0.5), (1.0, 0.5)]
    assert budget_steps(-costs, 10.0) == [(0.0, 1.0)]


def test_equal_choices_go_to_nothing_then_to_the_cheaper_then_to_the_first() -> None:
    assert picked([[4, 4], [4, 4]], [[0, 0], [-1, -1]], 5.0) == [[0, 0]]
    # 0.1 + 0.2 is not 0.3 in binary, but it is no reduction either.
    assert picked([[0.1, 0.2, 0.3], [0.2, 0.1, 0.3 - 1e-16]], [[0, 0, 0], [1, 1, 1]], 5.0)[0][2] == 0
    assert picked([[4, 4], [1, 1], [1, 1], [1, 1]], [[0, 0], [3, 3], [2, 2], [2, 2]], 5.0) == [[2, 2]]


def test_nothing_is_done_where_the_others_leak_nothing() -> None:
    assert picked([[4, 0], [1, -1]], [[0, 0], [1, 1]], 5.0) == [[0, 1]]
    assert math.isnan(reduction(np.zeros(2), np.zeros(2)))
    assert math.isnan(reduction(np.ones(2), -np.ones(2)))


def test_a_cost_of_exactly_the_budget_is_within_it() -> None:
    # The mean of four equal costs may come out a rounding error above them.
    for cost in (0.1, 0.7, 1.1, 2.3, 5.3):
        delta = [[0.0] * 5, [cost] * 5]
        assert picked([[4.0] * 5, [1.0] * 5], delta, cost) == [[1] * 5]
        assert budget_steps(np.asarray(delta), 20.0)[1][0] == pytest.approx(cost)


def test_the_attacker_takes_the_reading_that_leaks_most_elsewhere() -> None:
    # Readings x, y of one point: elsewhere x leaks most for unit 0 (5 of 4), y for unit 1 (3 of 1).
    taken, others, own = attacked(np.asarray([[[1.0, 5]], [[3, 4]]]))
    assert taken.tolist() == [[0, 1]]
    assert others.tolist() == [[5, 3]]
    assert own.tolist() == [[1, 4]]
    # What is noise alone leaks nothing on average, whatever is chosen: the maximum flatters the attacker.
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(20, 400, 3))
    assert attacked(noise)[2].mean() == pytest.approx(0.0, abs=0.1)
    assert noise.mean(axis=2).max(axis=0).mean() > 0.8
    # A point that has no such reading is read by the others.
    assert attacked(np.asarray([[[math.nan, math.nan]], [[3, 4]]]))[0].tolist() == [[1, 1]]


def test_the_worst_attack_of_an_arm_and_of_the_undefended_run_may_differ() -> None:
    # Undefended a leaks 8 and b 6; the defense stops a (1) and not b (6): 1 - 6/8, not 1 - 1/8.
    leakage = np.asarray([[[8.0, 8], [1, 1]], [[6, 6], [6, 6]]])
    found = cross_read(leakage, np.asarray([[0.0, 0], [1, 1]]), [(5.0, 1.0)])
    assert found.taken.tolist() == [[0, 0], [1, 1]]
    assert reduction(found.leakage, found.undefended) == pytest.approx(25.0)


def test_resamples_are_columns_of_their_own() -> None:
    rng = np.random.default_rng(1)
    leakage, delta = rng.normal(1, 1, (2, 4, 3, 20)), np.repeat(rng.uniform(0, 5, (4, 1)), 3, axis=1)
    delta[0] = 0
    steps = [(3.0, 0.4), (5.0, 0.6)]
    whole = cross_read(leakage, delta, steps)
    for i in range(20):
        alone = cross_read(leakage[..., i], delta, steps)
        assert alone.picks.tolist() == whole.picks[:, :, i].tolist()
        assert alone.taken.tolist() == whole.taken[:, :, i].tolist()
        assert alone.leakage.tolist() == whole.leakage[:, i].tolist()


def test_a_budget_of_nan_is_refused() -> None:
    with pytest.raises(DataError, match="NaN"):
        picked([[1, 1]], [[0, 0]], math.nan)
