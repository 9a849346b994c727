from __future__ import annotations

import math

import numpy as np
import pytest

from memdefense.errors import DataError
from memdefense.selection import NOTHING, Table, budget_steps, cross_read, reduction


def table(leakage: list[list[float]], delta: list[list[float]]) -> Table:
    labels = (NOTHING, *(f"point {i}" for i in range(1, len(leakage))))
    return Table(labels, np.asarray(leakage), np.asarray(delta))


def test_the_choice_is_made_elsewhere_and_read_here() -> None:
    # Unit 0 sees unit 1, where point 2 is best (0 of 4); unit 1 sees unit 0, where point 1 is best (1 of 4).
    arm = table([[4, 4], [1, 3], [2, 0]], [[0, 0], [1, 1], [1, 1]])
    picks, read = cross_read(arm, [(5.0, 1.0)])
    assert picks.tolist() == [[2, 1]]
    assert read.tolist() == [2, 3]
    assert reduction(read, arm.leakage[0]) == pytest.approx(37.5)


def test_a_budget_binds_the_mean_cost_elsewhere() -> None:
    arm = table([[4, 4, 4], [1, 1, 1]], [[0, 0, 0], [0, 2, 4]])
    # Means of the other two: 3, 2, 1.
    assert cross_read(arm, [(2.0, 1.0)])[0].tolist() == [[0, 1, 1]]
    assert budget_steps(arm.delta, 10.0) == [(0.0, 0.1), (1.0, 0.1), (2.0, 0.1), (3.0, 0.7)]
    assert budget_steps(arm.delta, 2.0) == [(0.0, 0.5), (1.0, 0.5)]
    assert budget_steps(-arm.delta, 10.0) == [(0.0, 1.0)]


def test_equal_choices_go_to_nothing_then_to_the_cheaper_then_to_the_first() -> None:
    assert cross_read(table([[4, 4], [4, 4]], [[0, 0], [-1, -1]]), [(5.0, 1.0)])[0].tolist() == [[0, 0]]
    # 0.1 + 0.2 is not 0.3 in binary, but it is no reduction either.
    rounding = table([[0.1, 0.2, 0.3], [0.2, 0.1, 0.3 - 1e-16]], [[0, 0, 0], [1, 1, 1]])
    assert cross_read(rounding, [(5.0, 1.0)])[0][0, 2] == 0
    cheaper = table([[4, 4], [1, 1], [1, 1], [1, 1]], [[0, 0], [3, 3], [2, 2], [2, 2]])
    assert cross_read(cheaper, [(5.0, 1.0)])[0].tolist() == [[2, 2]]


def test_nothing_is_done_where_the_others_leak_nothing() -> None:
    arm = table([[4, 0], [1, -1]], [[0, 0], [1, 1]])
    assert cross_read(arm, [(5.0, 1.0)])[0].tolist() == [[0, 1]]
    assert math.isnan(reduction(np.zeros(2), np.zeros(2)))
    assert math.isnan(reduction(np.ones(2), -np.ones(2)))


def test_a_cost_of_exactly_the_budget_is_within_it() -> None:
    # The mean of four equal costs may come out a rounding error above them.
    for cost in (0.1, 0.7, 1.1, 2.3, 5.3):
        arm = table([[4.0] * 5, [1.0] * 5], [[0.0] * 5, [cost] * 5])
        assert cross_read(arm, [(cost, 1.0)])[0].tolist() == [[1] * 5]
        assert budget_steps(arm.delta, 20.0)[1][0] == pytest.approx(cost)


def test_resamples_are_columns_of_their_own() -> None:
    rng = np.random.default_rng(1)
    leakage, delta = rng.normal(1, 1, (4, 3, 20)), np.repeat(rng.uniform(0, 5, (4, 1)), 3, axis=1)
    delta[0] = 0
    labels = tuple("abcd")
    picks, read = cross_read(Table(labels, leakage, delta), [(3.0, 0.4), (5.0, 0.6)])
    for i in range(20):
        alone = cross_read(Table(labels, leakage[:, :, i], delta), [(3.0, 0.4), (5.0, 0.6)])
        assert alone[0].tolist() == picks[:, :, i].tolist()
        assert alone[1].tolist() == read[:, i].tolist()


def test_a_budget_of_nan_is_refused() -> None:
    with pytest.raises(DataError, match="NaN"):
        cross_read(table([[1, 1]], [[0, 0]]), [(math.nan, 1.0)])
