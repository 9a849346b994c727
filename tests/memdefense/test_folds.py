from __future__ import annotations

import math

import numpy as np
import pytest

from memdefense.crossfit import AcrossSeeds
from memdefense.errors import DataError
from memdefense.folds import WithinRun, person_folds, within_run
from memdefense.interval import Floats
from memdefense.layout import Table
from memdefense.maxter import OperatingPoint, maxter
from memdefense.persons import Column, RunTerms


def random_run(
    rng: np.random.Generator, *, persons: int = 100, kept: float = 0.5, base: float = 0.3, labels: int = 4
) -> RunTerms:
    names = [f"p{i // 3}" for i in range(3 * persons)]
    return RunTerms(
        {f"a{i}": {"": Column(rng.random(3 * persons) < base * kept, names)} for i in range(labels)},
        {f"a{i}": float(i + 1) for i in range(labels)},
        {"": Column(rng.random(3 * persons) < base, names)},
    )


def values(run: RunTerms, label: str) -> Floats:
    return np.asarray(run.points[label][""].values, dtype=np.float64)


def test_folds_keep_persons_whole_and_of_one_size() -> None:
    persons = [f"p{i % 52}" for i in range(400)]
    folds = person_folds(persons)
    assert {name: {int(f) for f, n in zip(folds, persons, strict=True) if n == name} for name in persons} == {
        name: {int(folds[persons.index(name)])} for name in persons
    }
    sizes = np.bincount([folds[persons.index(name)] for name in sorted(set(persons))])
    assert sorted(sizes.tolist()) == [10, 10, 10, 11, 11]
    # By name, not by place.
    assert person_folds(persons[::-1]).tolist() == folds[::-1].tolist()
    assert len(set(person_folds([""] * 10, 5).tolist())) == 5


@pytest.mark.parametrize(("persons", "folds"), [(["a", "a", "b"], 5), (["a", "b"], 1), ([], 5)])
def test_too_few_persons_are_refused(persons: list[str], folds: int) -> None:
    with pytest.raises(DataError, match="cannot be cut"):
        person_folds(persons, folds)


def test_folds_are_read_as_seeds_are() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        run = random_run(rng, kept=0.9)
        cut = within_run(run, resamples=2)
        fold = person_folds(cut.table.persons)
        parts = np.zeros_like(cut.table.parts)
        for row, label in enumerate(("", *run.points)):
            column = run.points[label][""] if label else run.undefended[""]
            for value, name in zip(np.asarray(column.values, dtype=float), column.persons, strict=True):
                place = cut.table.persons.index(name)
                parts[0, 0, row, fold[place], place] += value
                parts[2, 0, row, fold[place], place] += 1
        delta = np.repeat([[0.0], *([cost] for cost in run.deltas.values())], 5, axis=1)
        as_seeds = AcrossSeeds(
            Table(cut.table.labels, cut.table.readings, cut.table.persons, parts, delta), resamples=2
        )
        for tau in (1.0, 3.0):
            found, expected = cut.maxter(tau), as_seeds.maxter(tau)
            assert found.value == pytest.approx(expected.value)
            assert found.chosen == expected.chosen
            assert found.reductions == pytest.approx(expected.reductions)
        assert cut.aurc().value == pytest.approx(as_seeds.aurc().value)
    assert found.scope == "this model only"
    assert all(math.isnan(x) for x in found.run_limits)
    undefended = np.asarray(run.undefended[""].values, dtype=float)
    assert cut.undefended().value == pytest.approx(undefended.mean())


def test_resamples_draw_persons_within_folds() -> None:
    cut = within_run(random_run(np.random.default_rng(2), labels=0), resamples=4000)
    sums = cut.drawn[0, 0]  # (folds, resamples)
    assert sums.mean(axis=1) == pytest.approx(cut.leakage[0, 0], rel=0.02)
    net = cut.table.parts[0, 0, 0]
    for fold in range(5):
        inside = net[fold, person_folds(cut.table.persons) == fold]
        assert sums[fold].var() == pytest.approx(len(inside) * inside.var(), rel=0.1)


def test_limits_repeat_and_copies_are_no_evidence() -> None:
    run = random_run(np.random.default_rng(2))
    first, again = within_run(run).maxter(5.0), within_run(run).maxter(5.0)
    assert (first.low, first.high) == (again.low, again.high)
    assert first.low < first.value < first.high

    def tripled(column: Column) -> Column:
        return Column(np.repeat(np.asarray(column.values), 3), [name for name in column.persons for _ in range(3)])

    copies = RunTerms(
        {label: {"": tripled(found[""])} for label, found in run.points.items()},
        run.deltas,
        {"": tripled(run.undefended[""])},
    )
    same = within_run(copies).maxter(5.0)
    assert (same.value, same.low, same.high) == pytest.approx((first.value, first.low, first.high))


def test_no_hit_still_has_width() -> None:
    cut = within_run(random_run(np.random.default_rng(3), kept=0.0))
    found = cut.maxter(5.0)
    assert found.value == 100.0
    assert 90.0 < found.low < 99.0
    assert cut.aurc().low < cut.aurc().value


def test_choosing_widens(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    cuts = [within_run(random_run(rng, labels=8, base=0.6, persons=200), resamples=200) for _ in range(20)]

    def width(cuts: list[WithinRun]) -> float:
        return float(np.mean([found.high - found.low for found in (cut.maxter(20.0) for cut in cuts)]))

    single = [within_run(random_run(rng, labels=1, base=0.6, persons=200), resamples=200) for _ in range(20)]
    chosen, alone = width(cuts), width(single)
    monkeypatch.setattr(WithinRun, "_widening", lambda *_: 1.0)
    # Among eight equal points the folds differ in theirs; one point that is always taken needs no choice.
    assert chosen > 1.1 * width(cuts)
    assert alone == pytest.approx(width(single))


def test_the_plain_maximum_flatters_more() -> None:
    rng = np.random.default_rng(5)
    plain, folded = [], []
    for _ in range(150):
        run = random_run(rng, kept=1.0, base=0.1, labels=6)
        total = float(np.asarray(run.undefended[""].values).sum())
        points = [OperatingPoint(1.0, 100 * (1 - float(values(run, label).sum()) / total)) for label in run.points]
        plain.append(maxter(points, 20.0))
        folded.append(within_run(run, resamples=2).maxter(20.0).value)
    assert np.mean(plain) > 18.0
    assert abs(np.mean(folded)) < 0.6 * np.mean(plain)


def test_gain_over_early_stopping() -> None:
    rng = np.random.default_rng(6)
    baseline = random_run(rng, kept=0.9)
    arm = RunTerms(random_run(rng, kept=0.2).points, baseline.deltas, baseline.undefended)
    ours, theirs = within_run(arm), within_run(baseline)
    found = ours.gain(theirs)
    assert found.value == pytest.approx(ours.aurc().value - theirs.aurc().value)
    assert 0.0 < found.low < found.value < found.high
    assert found.n == 100
    same = ours.gain(within_run(arm))
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    with pytest.raises(DataError, match="same seeds and units"):
        ours.gain(within_run(random_run(rng)))


def test_an_undefended_run_that_leaks_nothing_resolves_nothing() -> None:
    run = random_run(np.random.default_rng(7), base=0.0)
    cut = within_run(run, resamples=20)
    assert math.isnan(cut.maxter(5.0).value)
    assert math.isnan(cut.aurc().value)
    assert math.isnan(cut.gain(cut).value)


def test_bad_terms_are_refused() -> None:
    run = random_run(np.random.default_rng(8))
    names = run.undefended[""].persons
    broken = {"": Column(np.where(np.arange(300) == 3, math.nan, 1.0), names)}
    with pytest.raises(DataError, match="no undefended leakage"):
        within_run(RunTerms(run.points, run.deltas, broken))
    with pytest.raises(DataError, match="do not fit"):
        within_run(RunTerms(run.points, run.deltas, {"": Column([1.0], names)}))
    with pytest.raises(DataError, match="resamples"):
        within_run(run, resamples=1)
    # A label that was not measured everywhere, or whose cost is unknown, cannot be chosen.
    hole = {**run.points, "a0": broken}
    assert "a0" not in within_run(RunTerms(hole, run.deltas, run.undefended)).table.labels
    unknown = within_run(RunTerms(run.points, {**run.deltas, "a0": math.nan}, run.undefended))
    assert "a0" in unknown.table.labels  # its leakage is known
    assert "a0" not in unknown.maxter(20.0).chosen
