"""MaxTER of a single run: five folds of persons stand in for seeds, and the result holds for this model only."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from memdefense.cut import Choice, Cut, Noise
from memdefense.errors import DataError
from memdefense.interval import Floats, Ints, clusters
from memdefense.layout import Table, tabulate
from memdefense.persons import RunTerms
from memdefense.selection import UNKNOWN, Limits


def person_folds(persons: Sequence[str], folds: int = 5) -> Ints:
    """The fold of each unit, 0 to folds - 1: persons in the order of a hash are dealt out in turn, shape (n,).

    Raises:
        DataError: fewer persons than folds, or fewer than two folds.
    """
    codes, count = clusters(persons)
    if not 2 <= folds <= count:
        raise DataError(
            f"{count} persons cannot be cut into {folds} folds: bring more persons, or ask for 2 to {count}"
        )
    # A unit without a person is known by its place alone.
    names = {int(code): name or f"\0{place}" for place, (code, name) in enumerate(zip(codes, persons, strict=True))}
    dealt = sorted(names, key=lambda code: hashlib.sha256(names[code].encode()).digest())
    fold = np.empty(count, dtype=np.int64)
    fold[dealt] = np.arange(count) % folds
    return fold[codes]


class WithinRun(Cut):
    """An arm on one seed; folds of its persons are the units, and its limits know of sample noise alone.

    The limits are MOVER's over persons. That a point was chosen on the other folds ties the folds' readings together,
    which MOVER does not know; so the numerator's limits reach further by the root of a design effect: the variance of
    the error over a bootstrap of persons within the fixed folds that repeats every choice, over the variance on the
    same resamples with the choices kept, at least 1.

    Args:
        table: its arrays, of one unit.
        folds: how many folds.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        DataError: fewer persons than folds; fewer than two resamples.
    """

    scope = "this model only"

    def __init__(self, table: Table, *, folds: int = 5, resamples: int = 1000, seed: int = 0) -> None:
        self._fold = person_folds(table.persons, folds)
        here = np.arange(folds)[:, np.newaxis] == self._fold  # (folds, P)
        parts = np.where(here, table.parts, np.where(np.isnan(table.parts), np.nan, 0.0))
        cost = np.repeat(table.delta, folds, axis=1)
        whole = Table(table.labels, table.readings, table.persons, parts, cost)
        super().__init__(whole, resamples=resamples, seed=seed)

    @property
    def runs(self) -> int:
        return 1

    def _homes(self) -> Ints:
        return self._fold

    def _noise(
        self,
        ratio: float,
        sample: Limits,
        numerator: Floats,
        choice: Choice,
        signed: Sequence[tuple[float, Choice]],
        level: float,
    ) -> Noise:
        return Noise(UNKNOWN, sample, sample)


def within_run(
    run: RunTerms, persons: Sequence[str] = (), *, folds: int = 5, resamples: int = 1000, seed: int = 0
) -> WithinRun:
    """An arm on one seed.

    Args:
        run: the arm.
        persons: all persons, so that arms can be compared.
        folds: how many folds.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        DataError: fewer persons than folds; a seed without an undefended leakage.
    """
    return WithinRun(tabulate([run], persons), folds=folds, resamples=resamples, seed=seed)
