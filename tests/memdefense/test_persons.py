from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped, unused-ignore]

from memdefense.attack import Term
from memdefense.interval import Floats, design_effect, few, wilson
from memdefense.persons import (
    FEW,
    MINUS,
    PLUS,
    WEIGHT,
    Column,
    independent_units,
    names_of,
    parts_of,
    person_mean,
    person_ratio,
    readings,
)


def parts(values: Floats, persons: list[str]) -> Floats:
    column = Column(values, persons)
    return parts_of(column, {name: i for i, name in enumerate(names_of([column]))})


def test_terms_are_sorted_by_reading_and_sign() -> None:
    terms = [Term("u1", "a", 0.5), Term("u2", "b", -0.5), Term("u1", "a", 1.0, "zlib")]
    found = readings(terms, two_sided=True, prefix="mia/")
    assert list(found) == ["mia/", "mia/-", "mia/zlib", "mia/-zlib"]
    assert np.asarray(found["mia/-"].values).tolist() == [-0.5, 0.5]
    assert list(readings(terms)) == ["", "zlib"]


def test_parts_are_sums_over_persons() -> None:
    found = parts(np.asarray([1.0, -0.5, 0.25, 0.0]), ["b", "a", "b", ""])
    # Persons "\0" + place, a, b: what is added, what is taken off, the share of the units, all on one side.
    share = [1 / 4, 1 / 4, 2 / 4]
    assert found.tolist() == [[0, 0, 1.25 / 4], [0, 0.5 / 4, 0], share, share]
    assert np.isnan(parts(np.asarray([math.nan, 1.0]), ["a", "b"])).all()


def test_the_side_of_fewer_persons_decides_how_well_noise_is_known() -> None:
    values = np.asarray([0.5, -0.5] * 10)
    persons = [f"m{i}" for i in range(14)] + ["o1"] * 4 + ["o2"] * 2
    sides = ["members"] * 14 + ["others"] * 6
    found = parts_of(Column(values, persons, sides), {name: i for i, name in enumerate(sorted(set(persons)))})
    assert found[FEW].tolist() == [0.0] * 14 + [4 / 20, 2 / 20]
    one = parts_of(Column(values, persons), {name: i for i, name in enumerate(sorted(set(persons)))})
    apart, together = (person_mean(some, 0.95, twins=True) for some in (found, one))
    assert apart.value == together.value
    assert apart.high - apart.low > 1.5 * (together.high - together.low)


def test_a_rate_has_wilsons_limits_by_the_design_effect() -> None:
    rng = np.random.default_rng(1)
    persons = [f"p{i // 3}" for i in range(300)]
    hits = (rng.random(300) < np.repeat(rng.beta(0.3, 0.7, 100), 3)).astype(float)
    found = person_mean(parts(hits, persons), 0.95, twins=False)
    # The same variance: deff p (1 - p) / (n - 1), with n - 1 as of the units.
    n = 299 / design_effect(hits, persons)
    level = 2 * stats.norm.cdf(stats.t.ppf(0.975, 99)) - 1  # a hundred persons of one size
    assert (found.low, found.high) == pytest.approx(wilson(hits.mean() * n, n, level), abs=1e-9)
    assert independent_units(parts(hits, persons)) == pytest.approx(n)


def test_nothing_that_varies_borrows_its_units() -> None:
    persons = [f"p{i // 3}" for i in range(30)]
    nothing = parts(np.zeros(30), persons)
    assert person_mean(nothing, 0.95, twins=False, lent=20.0).high == pytest.approx(wilson(0, 20)[1])
    assert person_mean(nothing, 0.95, twins=False).high == pytest.approx(wilson(0, 10)[1])


def test_twins_that_came_out_are_taken_off_with_their_noise() -> None:
    rng = np.random.default_rng(2)
    persons = [f"p{i}" for i in range(200)]
    covered, values = 0, []
    for _ in range(300):
        terms = (rng.random(200) < 0.3).astype(float) - (rng.random(200) < 0.1)
        found = person_mean(parts(terms, persons), 0.95, twins=True)
        values.append(found.value)
        covered += found.low <= 0.2 <= found.high
    assert np.mean(values) == pytest.approx(0.2, abs=0.01)
    assert 0.91 <= covered / 300 <= 0.985


def test_means_that_are_no_proportions_have_normal_limits() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(1.5, 0.1, 400)
    found = person_mean(parts(values, [""] * 400), 0.95, twins=False)
    half = 1.96 * values.std(ddof=1) / 20
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=1e-4)


def test_a_ratio_knows_that_both_are_of_the_same_persons() -> None:
    rng = np.random.default_rng(4)
    persons = [f"p{i // 3}" for i in range(300)]
    hits = (rng.random(300) < 0.4).astype(float)
    whole = parts(hits, persons)
    assert person_ratio(whole, whole, 0.95, twins=False) == pytest.approx((1.0, 1.0, 1.0), abs=0.02)
    half = parts(hits * (rng.random(300) < 0.5), persons)
    ratio, low, high = person_ratio(half, whole, 0.95, twins=False)
    _, low_apart, high_apart = person_ratio(half, whole[:, rng.permutation(100)], 0.95, twins=False)
    assert high - low < high_apart - low_apart
    _, wide_low, wide_high = person_ratio(half, whole, 0.95, twins=False, widened=2.0)
    assert wide_low < low < ratio < high < wide_high


def test_a_mean_and_its_limits_do_not_depend_on_how_units_are_counted() -> None:
    rng = np.random.default_rng(5)
    rows = np.zeros((4, 50))
    rows[PLUS] = rng.random(50) * (rng.random(50) < 0.5)
    rows[MINUS] = rng.random(50) * (rng.random(50) < 0.2)
    rows[WEIGHT] = rows[FEW] = 1.0 + rng.integers(0, 4, 50)
    for twins in (False, True):
        found = person_mean(rows / rows[WEIGHT].sum(), 0.95, twins=twins)
        for scale in (1.0, 3.0, 1 / 300):
            again = person_mean(scale * rows, 0.95, twins=twins)
            assert (again.value, again.low, again.high) == pytest.approx((found.value, found.low, found.high))
        taken = rows[MINUS].sum() if twins else 0.0
        assert found.value == pytest.approx((rows[PLUS].sum() - taken) / rows[WEIGHT].sum())
    assert independent_units(rows) == pytest.approx(independent_units(7.0 * rows))


def test_limits_of_a_mean_over_many_persons_are_those_of_their_differences() -> None:
    rng = np.random.default_rng(6)
    shared = rng.random(4000)
    rows = np.ones((4, 4000))
    rows[PLUS] = (rng.random(4000) < shared).astype(float)
    rows[MINUS] = np.where(rng.random(4000) < 0.6, rows[PLUS], rng.random(4000) < 0.3)
    found = person_mean(rows, 0.95, twins=True)
    half = 1.96 * np.std(rows[PLUS] - rows[MINUS], ddof=1) / np.sqrt(4000)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.01)


@pytest.mark.parametrize("rate", [0.02, 0.05, 0.5, 0.97])
def test_independent_units_of_persons_with_one_unit_are_the_persons(rate: float) -> None:
    rows = np.ones((4, 400))
    rows[PLUS] = np.arange(400) < rate * 400
    assert independent_units(rows) == pytest.approx(399)
    # All three texts of a person or none: as many independent units as persons, whatever the rate.
    rows *= 3.0
    found = person_mean(rows, 0.95, twins=False)
    assert (found.low, found.high) == pytest.approx(wilson(rate * 399, 399, few(rows[FEW], 0.95)))
    rows[PLUS] = 0.0
    assert independent_units(rows) == 400
