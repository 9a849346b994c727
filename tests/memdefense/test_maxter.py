from __future__ import annotations

import math

import numpy as np
import pytest

from memdefense.errors import DataError
from memdefense.maxter import (
    Checkpoint,
    OperatingPoint,
    aurc,
    aurc_paper,
    maxter,
    maxter_paper,
    paper_points,
    pareto_front,
    resolvable,
    ter_mean,
)
from memdefense.score import Score

NAN, INF = math.nan, math.inf
POINTS = [OperatingPoint(2.0, 30.0), OperatingPoint(10.0, 80.0), OperatingPoint(12.0, 70.0), OperatingPoint(1.0, -5.0)]
BROKEN = [OperatingPoint(NAN, 99.0), OperatingPoint(1.0, NAN), OperatingPoint(-INF, 99.0), OperatingPoint(1.0, INF)]


def random_points(rng: np.random.Generator) -> list[OperatingPoint]:
    size = int(rng.integers(0, 12))
    # Rounded, so that deltas and reductions tie.
    return [
        OperatingPoint(float(d), float(r))
        for d, r in zip(rng.uniform(-5, 30, size).round(1), rng.uniform(-40, 100, size).round(-1), strict=True)
    ]


def test_maxter_by_hand() -> None:
    assert [maxter(POINTS, tau) for tau in (0, 1, 2, 5, 10, 20)] == [0, 0, 30, 30, 80, 80]
    assert maxter([], 5.0) == 0.0
    assert maxter([OperatingPoint(1.0, -20.0)], 5.0) == 0.0
    assert maxter(POINTS, INF) == 80.0
    assert maxter([OperatingPoint(-2.0, 10.0)], -1.0) == 10.0
    assert maxter(POINTS, -1.0) == 0.0


def test_points_that_were_not_measured_count_for_nothing() -> None:
    assert maxter(BROKEN, INF) == 0.0
    assert aurc(BROKEN) == 0.0
    assert pareto_front(BROKEN) == [OperatingPoint(0.0, 0.0)]
    assert aurc(POINTS + BROKEN) == aurc(POINTS)
    with pytest.raises(DataError, match="NaN"):
        maxter(POINTS, NAN)


def test_aurc_by_hand() -> None:
    # 0 on [0, 2), 30 on [2, 10), 80 on [10, 20): (240 + 800) / 20.
    assert aurc(POINTS) == pytest.approx(52.0)
    assert aurc(POINTS, 10.0) == pytest.approx(24.0)
    assert aurc(POINTS, 1.0) == 0.0
    assert aurc([OperatingPoint(0.025, 50.0)], 0.05) == pytest.approx(25.0)
    assert aurc([OperatingPoint(-3.0, 50.0)]) == pytest.approx(50.0)
    assert aurc([]) == 0.0


@pytest.mark.parametrize("tau_max", [0.0, -1.0, NAN, INF])
def test_aurc_needs_a_range(tau_max: float) -> None:
    with pytest.raises(DataError, match="no range of budgets"):
        aurc(POINTS, tau_max)


def test_aurc_equals_a_fine_grid() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        points, tau_max = random_points(rng), float(rng.integers(1, 300)) / 10
        # Deltas are tenths, so midpoints of a grid of hundredths meet no step.
        grid = (np.arange(round(tau_max * 100)) + 0.5) / 100
        heights = [max([0.0, *(p.reduction for p in points if p.delta <= tau)]) for tau in grid]
        assert aurc(points, tau_max) == pytest.approx(np.mean(heights))


def test_front_equals_brute_force() -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        points = random_points(rng)
        everyone = {*points, OperatingPoint(0.0, 0.0)}
        expected = sorted(
            (
                p
                for p in everyone
                if not any(q != p and q.delta <= p.delta and q.reduction >= p.reduction for q in everyone)
            ),
            key=lambda p: p.delta,
        )
        assert pareto_front(points) == expected


def test_front_holds_nothing_unless_beaten() -> None:
    assert pareto_front(POINTS) == [OperatingPoint(0.0, 0.0), *POINTS[:2]]
    assert pareto_front([OperatingPoint(-1.0, 5.0)]) == [OperatingPoint(-1.0, 5.0)]


def test_resolvable_asks_for_events_and_an_excess() -> None:
    clear, unclear = Score(0.2, 0.1, 0.3, 200), Score(0.2, 0.0, 0.4, 200)
    assert resolvable(30, clear)
    assert not resolvable(29, clear)
    assert not resolvable(1000, unclear)
    assert not resolvable(1000, Score(NAN, NAN, NAN, 0))


def test_ter_mean_is_a_ratio_of_means() -> None:
    # 1 / 5 is left; the mean of the ratios would be (1 + 0) / 2.
    assert ter_mean([1, 0], [1, 4]) == pytest.approx(80.0)
    assert math.isnan(ter_mean([0.1], [0.0]))
    assert math.isnan(ter_mean([], []))
    with pytest.raises(DataError, match="1 checkpoints against the baseline's 2"):
        ter_mean([0.1], [0.1, 0.2])


def test_the_papers_figures_compare_like_checkpoints() -> None:
    base = [Checkpoint(0.1, 20.0), Checkpoint(0.4, 10.0)]
    arm = [Checkpoint(0.05, 20.4), Checkpoint(0.1, 11.0)]
    assert [(p.delta, p.reduction) for p in paper_points(arm, base)] == [
        pytest.approx((2.0, 50.0)),
        pytest.approx((10.0, 75.0)),
    ]
    assert maxter_paper(arm, base, tau=5.0) == pytest.approx(50.0)
    assert maxter_paper(arm, base, tau=1.0) == 0.0
    # The largest delta of all arms is 20 %: (50 * 8 + 75 * 10) / 20 for `arm`, and the other's point lies at the end.
    other = [Checkpoint(0.1, 20.0), Checkpoint(0.0, 12.0)]
    found = aurc_paper({"arm": arm, "other": other}, base)
    assert found["arm"] == pytest.approx(57.5)
    assert found["other"] == pytest.approx(0.0)
    near = [Checkpoint(0.05, 20.0), Checkpoint(0.4, 10.005)]
    assert aurc_paper({"near": near}, base)["near"] == pytest.approx(50.0), "a range of 0.05 % is a range"
    with pytest.raises(DataError, match="1 checkpoints against the baseline's 2"):
        paper_points(arm[:1], base)


def test_the_papers_figures_without_a_denominator() -> None:
    base = [Checkpoint(0.0, 10.0), Checkpoint(0.1, 0.0)]
    arm = [Checkpoint(0.1, 11.0), Checkpoint(0.05, 11.0)]
    first, second = paper_points(arm, base)
    assert math.isnan(first.reduction)
    assert math.isnan(second.delta)
    assert maxter_paper(arm, base, tau=50.0) == 0.0
    assert math.isnan(aurc_paper({"arm": arm}, base)["arm"])
