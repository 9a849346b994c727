from __future__ import annotations

import numpy as np
import pytest

from memdefense.interval import Floats
from memdefense.redraw import redrawn


def points(rng: np.random.Generator, means: list[float]) -> Floats:
    """One reading of some points on three units, of 200 persons each a normal draw, shape (1, L, 3, 200)."""
    return np.asarray(means)[np.newaxis, :, np.newaxis, np.newaxis] + rng.normal(size=(1, len(means), 3, 200))


def test_differences_that_noise_explains_are_shrunk_and_others_kept() -> None:
    rng = np.random.default_rng(1)
    homes = np.zeros(200, dtype=np.int64)
    spreads = []
    for means in ([0.0] * 9, [0.0, *np.linspace(-2, 2, 8).tolist()]):
        net = points(rng, means)
        drawn = redrawn(net, homes, resamples=300, seed=0).mean(axis=-1)[0, 1:]
        seen = net.sum(axis=-1)[0, 1:]
        spreads.append(float(drawn.std(axis=0).mean() / seen.std(axis=0).mean()))
    assert spreads[0] < 0.5  # equal points: what was seen of their differences is noise
    assert spreads[1] == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("place", [1, 4, 9])
def test_a_point_without_a_reading_changes_nothing_for_the_others(place: int) -> None:
    rng = np.random.default_rng(3)
    net = np.concatenate([points(rng, [0.0] * 9), points(rng, [0.0] * 9)])  # two readings
    lacking = np.insert(net, place, 0.0, axis=1)
    lacking[1, place] = np.nan
    homes = np.zeros(200, dtype=np.int64)
    without, drawn = (redrawn(given, homes, resamples=300, seed=0) for given in (net, lacking))
    assert np.isnan(drawn[1, place]).all()
    assert np.delete(drawn, place, axis=1)[1] == pytest.approx(without[1])
    empty = np.full_like(net, np.nan)
    assert np.isnan(redrawn(empty, homes, resamples=3, seed=0)).all()


def test_doing_nothing_and_single_points_are_drawn_as_they_are() -> None:
    net = points(np.random.default_rng(2), [1.0, 0.5])
    homes = np.arange(200, dtype=np.int64) % 5
    drawn = redrawn(net, homes, resamples=4000, seed=0)
    assert drawn.mean(axis=-1) == pytest.approx(net.sum(axis=-1), abs=1.0)
    within = sum(40 * net[0, 0, 0, homes == home].var() for home in range(5))
    assert drawn[0, 0, 0].var() == pytest.approx(within, rel=0.1)
