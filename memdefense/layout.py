"""An arm laid out as arrays: what every person adds to every reading of every point on every seed or fold."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from memdefense.errors import DataError
from memdefense.interval import Floats
from memdefense.persons import PLUS, Readings, RunTerms, names_of, parts_of
from memdefense.selection import NOTHING


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Table:
    """An arm as arrays; point 0 is doing nothing.

    Attributes:
        labels: of the L points.
        readings: names of the K readings.
        persons: names of the P persons.
        parts: what persons add, take off and weigh, shape (4, K, L, units, P); NaN where a point has no such reading.
        delta: utility costs, shape (L, units); infinite for a point whose cost is unknown on any unit, so
            that nobody chooses it.
    """

    labels: tuple[str, ...]
    readings: tuple[str, ...]
    persons: tuple[str, ...]
    parts: Floats
    delta: Floats


def tabulate(runs: Sequence[RunTerms], persons: Sequence[str] = ()) -> Table:
    """The arrays of an arm, one unit per run, of the labels that can be read on every run.

    Args:
        runs: the arm on each seed.
        persons: all persons, so that arms can be compared; by default those of these runs.

    Raises:
        DataError: a seed without an undefended leakage; persons and terms that do not fit each other.
    """
    sets: list[Readings] = [found for run in runs for found in (run.undefended, *run.points.values())]
    names = list(persons) or names_of([column for found in sets for column in found.values()])
    place = {name: number for number, name in enumerate(names)}
    labels = [label for label in runs[0].points if all(label in run.points for run in runs)]
    readings = list(runs[0].undefended)
    parts = np.full((4, len(readings), 1 + len(labels), len(runs), len(names)), math.nan)
    for u, run in enumerate(runs):
        for row, found in enumerate((run.undefended, *(run.points.get(label, {}) for label in labels))):
            for k, reading in enumerate(readings):
                if reading in found:
                    parts[:, k, row, u] = parts_of(found[reading], place)
    whole = np.isfinite(parts).all(axis=(0, 3, 4))  # (readings, points)
    for number in np.flatnonzero(~np.isfinite(parts[PLUS, :, 0]).all(axis=-1).any(axis=0)):
        raise DataError(f"seed number {number} has no undefended leakage: measure its undefended run, or drop it")
    if not whole[:, 0].any():
        raise DataError("no reading of the undefended run is there on every seed: measure the same attack on all")
    parts[:, ~whole] = math.nan
    usable = [0, *(row for row in range(1, len(labels) + 1) if whole[:, row].any())]
    cost = np.asarray([[0.0] * len(runs), *([run.deltas.get(label, math.nan) for run in runs] for label in labels)])
    cost[np.isnan(cost).any(axis=1)] = math.inf
    kept = tuple((NOTHING, *labels)[row] for row in usable)
    return Table(kept, tuple(readings), tuple(names), parts[:, :, usable], cost[usable])
