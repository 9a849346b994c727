from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from memdefense.crossfit import Reading, SeedCurve, cross_seed_aurc, cross_seed_maxter
from memdefense.errors import DataError
from memdefense.folds import RunTerms, folded_aurc, folded_gain, folded_maxter, person_folds
from memdefense.maxter import OperatingPoint, maxter


def random_run(
    rng: np.random.Generator, *, persons: int = 100, kept: float = 0.5, base: float = 0.3, labels: int = 4
) -> RunTerms:
    names = [f"p{i // 3}" for i in range(3 * persons)]
    terms = {f"a{i}": (rng.random(3 * persons) < base * kept).astype(float) for i in range(labels)}
    undefended = (rng.random(3 * persons) < base).astype(float)
    return RunTerms(terms, {f"a{i}": float(i + 1) for i in range(labels)}, undefended, names)


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
        fold = person_folds(run.persons)
        as_seeds = [
            SeedCurve(
                {
                    label: Reading(run.deltas[label], float(np.asarray(column)[fold == f].sum()))
                    for label, column in run.terms.items()
                },
                float(np.asarray(run.undefended)[fold == f].sum()),
            )
            for f in range(5)
        ]
        found = folded_maxter(run, 3.0, resamples=20)
        expected = cross_seed_maxter(as_seeds, 3.0)
        assert found.value == pytest.approx(expected.value)
        assert found.chosen == expected.chosen
        assert found.reductions == pytest.approx(expected.reductions)
        assert folded_aurc(run, resamples=20).value == pytest.approx(cross_seed_aurc(as_seeds).value)
    assert found.scope == "this model only"
    assert all(math.isnan(x) for x in found.run_limits)


def test_limits_repeat_with_the_seed_and_widen_with_clusters() -> None:
    run = random_run(np.random.default_rng(2))
    first = folded_maxter(run, 5.0)
    assert first == folded_maxter(run, 5.0) or math.isnan(first.run_limits[0])
    assert (first.low, first.high) == (folded_maxter(run, 5.0).low, folded_maxter(run, 5.0).high)
    assert first.low < first.value < first.high
    tripled = RunTerms(
        {label: np.repeat(np.asarray(column), 3) for label, column in run.terms.items()},
        run.deltas,
        np.repeat(np.asarray(run.undefended), 3),
        [name for name in run.persons for _ in range(3)],
    )
    same = folded_maxter(tripled, 5.0)
    # Copies of what a person gave away are no further evidence.
    assert same.value == pytest.approx(first.value)
    assert same.high - same.low > 0.9 * (first.high - first.low)


def test_no_hit_still_has_width() -> None:
    run = random_run(np.random.default_rng(3), kept=0.0)
    found = folded_maxter(run, 5.0)
    assert found.value == 100.0
    assert 90.0 < found.low < 99.0
    assert folded_aurc(run).low < folded_aurc(run).value


def test_limits_cover_a_true_half() -> None:
    rng = np.random.default_rng(4)
    found = [folded_maxter(random_run(rng, labels=2), 5.0, resamples=100) for _ in range(150)]
    assert np.mean([estimate.value for estimate in found]) == pytest.approx(50.0, abs=2.5)
    assert 0.90 <= np.mean([estimate.low <= 50.0 <= estimate.high for estimate in found]) <= 0.995


def test_the_plain_maximum_flatters_more() -> None:
    rng = np.random.default_rng(5)
    plain, folded = [], []
    for _ in range(150):
        run = random_run(rng, kept=1.0, base=0.1, labels=6)
        total = float(np.asarray(run.undefended).sum())
        points = [OperatingPoint(1.0, 100 * (1 - float(np.asarray(t).sum()) / total)) for t in run.terms.values()]
        plain.append(maxter(points, 20.0))
        folded.append(folded_maxter(run, 20.0, resamples=2).value)
    assert np.mean(plain) > 18.0
    assert abs(np.mean(folded)) < 0.6 * np.mean(plain)


def test_gain_over_early_stopping() -> None:
    rng = np.random.default_rng(6)
    baseline = random_run(rng, kept=0.9)
    arm = dataclasses.replace(random_run(rng, kept=0.2), undefended=baseline.undefended)
    found = folded_gain(arm, baseline)
    assert found.value == pytest.approx(folded_aurc(arm).value - folded_aurc(baseline).value)
    assert 0.0 < found.low < found.value < found.high
    assert found.n == 100
    same = folded_gain(arm, arm)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    with pytest.raises(DataError, match="same units"):
        folded_gain(arm, random_run(rng))


def test_an_undefended_run_that_leaks_nothing_resolves_nothing() -> None:
    run = dataclasses.replace(random_run(np.random.default_rng(7)), undefended=np.zeros(300))
    found = folded_maxter(run, 5.0, resamples=20)
    assert math.isnan(found.value)
    assert math.isnan(folded_aurc(run, resamples=20).value)


def test_bad_terms_are_refused() -> None:
    run = random_run(np.random.default_rng(8))
    broken = np.asarray(run.undefended).copy()
    broken[3] = math.nan
    with pytest.raises(DataError, match="not finite"):
        folded_maxter(dataclasses.replace(run, undefended=broken), 5.0)
    with pytest.raises(DataError, match="do not fit"):
        folded_maxter(dataclasses.replace(run, deltas={}), 5.0)
    with pytest.raises(DataError, match="do not fit"):
        folded_maxter(dataclasses.replace(run, undefended=[1.0]), 5.0)
    with pytest.raises(DataError, match="resamples"):
        folded_maxter(run, 5.0, resamples=1)
    # A label that was not measured everywhere cannot be chosen.
    hole = {**run.terms, "a0": broken}
    assert "a0" not in folded_maxter(dataclasses.replace(run, terms=hole), 1.0, resamples=20).chosen
