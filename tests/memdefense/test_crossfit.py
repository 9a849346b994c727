from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped, unused-ignore]

from memdefense.attack import Term
from memdefense.crossfit import AcrossSeeds, across_seeds
from memdefense.cut import Estimated
from memdefense.errors import DataError
from memdefense.maxter import OperatingPoint, aurc, maxter
from memdefense.persons import Column, RunTerms, readings
from memdefense.selection import NOTHING

NAN = math.nan
PERSONS = tuple(f"p{i}" for i in range(8))


def column(leakage: float) -> Column:
    """Eight persons with one term each, of this mean and some spread."""
    spread = 0.1 * np.asarray([1, -1, 1, -1, 1, -1, 1, -1])
    return Column(leakage + spread, PERSONS)


def run(points: dict[str, tuple[float, float]], undefended: float) -> RunTerms:
    """A seed from (cost, leakage) by label."""
    return RunTerms(
        {label: {"": column(leakage)} for label, (_, leakage) in points.items()},
        {label: cost for label, (cost, _) in points.items()},
        {"": column(undefended)},
    )


Curve = tuple[dict[str, tuple[float, float]], float]


def random_arm(rng: np.random.Generator, seeds: int = 3, labels: int = 4) -> list[Curve]:
    # Rounded, so that leakages and costs tie.
    return [
        (
            {f"p{i}": tuple(rng.uniform([-2, -0.1], [25, 0.5]).round(1).tolist()) for i in range(labels)},
            round(rng.uniform(0.1, 0.6), 1),
        )
        for _ in range(seeds)
    ]


def cut_of(arm: list[Curve]) -> AcrossSeeds:
    return AcrossSeeds(across_seeds([run(*curve) for curve in arm]).table, resamples=2)


def one_seed_out(arm: list[Curve], tau: float) -> tuple[float, list[str]]:
    """The definition, word for word, in plain Python."""
    total, chosen = 0.0, []
    for s, (points, undefended) in enumerate(arm):
        others = [other for t, other in enumerate(arm) if t != s]
        options = []
        for label in arm[0][0]:
            cost = float(np.mean([other[0][label][0] for other in others]))
            if cost <= tau + 1e-9:
                kept = sum(other[0][label][1] for other in others) / sum(other[1] for other in others)
                options.append((round(1 - kept, 9), -round(cost, 9), label))
        best = max(options, key=lambda option: option[:2], default=(0.0, 0.0, ""))
        chosen.append(best[2] if best[0] > 0 else NOTHING)
        total += points[best[2]][1] if best[0] > 0 else undefended
    return 100 * (1 - total / sum(undefended for _, undefended in arm)), chosen


def test_maxter_equals_the_definition() -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        arm = random_arm(rng, int(rng.integers(2, 6)), int(rng.integers(0, 6)))
        for tau in (0.0, 1.0, 5.05, 20.0):
            value, chosen = one_seed_out(arm, tau)
            found = cut_of(arm).maxter(tau)
            assert found.value == pytest.approx(value)
            assert list(found.chosen) == chosen


def test_aurc_equals_a_fine_grid() -> None:
    rng = np.random.default_rng(2)
    for _ in range(8):
        arm = random_arm(rng, seeds=3, labels=3)
        # Mean costs of two seeds are multiples of 0.05, so midpoints of this grid meet no step.
        grid = (np.arange(400) + 0.5) / 20
        expected = np.mean([one_seed_out(arm, float(tau))[0] for tau in grid])
        assert cut_of(arm).aurc().value == pytest.approx(expected)


def test_an_estimate_by_hand() -> None:
    arm = [({"a": (1.0, 0.1), "b": (4.0, 0.0)}, 0.4), ({"a": (3.0, 0.2), "b": (8.0, 0.1)}, 0.5)]
    # Within 5 %: seed 0 sees b cost 8 and takes a; seed 1 sees b cost 4 and takes it, at a realised cost of 8.
    found = cut_of(arm).maxter(5.0)
    assert found.chosen == ("a", "b")
    assert found.deltas == (1.0, 8.0)
    assert found.value == pytest.approx(100 * (1 - 0.2 / 0.9))
    assert found.reductions == pytest.approx((75.0, 80.0))
    assert (found.scope, found.n) == ("seeds", 8)
    # Chosen and read on the same seeds: on both a, at a mean cost of 2, and 2/3 is gone; on seed 0 alone b, and all is;
    # on seed 1 alone a, and 60 % is. So the pseudo-values are 2 * 200/3 - 60 and 2 * 200/3 - 100, and 20 their error.
    half = stats.t.ppf(0.975, 1) * 20
    assert found.run_limits == pytest.approx((found.value - half, 100.0))  # no more than all can be gone


def test_seeds_on_which_nothing_is_done_do_not_make_the_others_agree() -> None:
    # One run says that all is gone, one that nothing can be done: next to nothing is known.
    found = cut_of([({"a": (cost, 0.0)}, 0.4) for cost in (1.0, 9.0)]).maxter(5.0)
    assert found.chosen == (NOTHING, "a")
    assert found.value == pytest.approx(50.0)
    assert found.low < -500


def test_runs_that_differ_in_cost_widen_an_area() -> None:
    def width(costs: tuple[float, ...]) -> float:
        found = cut_of([({"a": (cost, 0.01)}, 0.4) for cost in costs]).aurc()
        return found.run_limits[1] - found.run_limits[0]

    assert width((10.0, 10.0, 10.0)) == pytest.approx(0.0, abs=1e-9)
    # Each percent of mean cost is a twentieth of the area: Student's t of the costs, 39/40 of a twentieth each.
    costs = (7.0, 11.0, 12.0)
    half = stats.t.ppf(0.975, 2) * stats.sem(costs) * 97.5 / 20
    assert width(costs) == pytest.approx(2 * half)


def test_an_arm_gains_nothing_over_itself_for_certain() -> None:
    arm = [run({"a": (1.0, 0.1), "b": (2.0, 0.05)}, 0.4) for _ in range(3)]
    arm = [
        RunTerms(
            {**one.points, "b": {**one.points["b"], "other": column(0.2)}},
            one.deltas,
            {**one.undefended, "other": column(0.3)},
        )
        for one in arm
    ]
    found = across_seeds(arm).gain(across_seeds(arm))
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_a_reading_is_not_clamped() -> None:
    # Seed 0 sees a fall and meets a rise; seed 1 sees a rise and does nothing.
    found = cut_of([({"a": (1.0, a)}, 0.5) for a in (0.7, 0.3)]).maxter(5.0)
    assert found.chosen == ("a", NOTHING)
    assert found.value == pytest.approx(-20.0)
    assert found.reductions == pytest.approx((-40.0, 0.0))
    assert found.deltas == (1.0, 0.0)


def test_no_hit_on_any_seed_still_has_width() -> None:
    rng = np.random.default_rng(3)
    hits, persons = (rng.random(200) < 0.4).astype(float), [f"p{i // 2}" for i in range(200)]
    arm = RunTerms({"a": {"": Column(np.zeros(200), persons)}}, {"a": 1.0}, {"": Column(hits, persons)})
    found = across_seeds([arm] * 3).maxter(5.0)
    assert found.value == 100.0
    assert found.run_limits == (100.0, 100.0)
    # The three seeds hold the same hits, so they are 200 units and not 600: some 4 / 200 may leak after all.
    assert 100 * (1 - 8 / 200 / 0.4) < found.low < 100 * (1 - 3 / 200 / 0.4)
    assert found.low == found.sample_limits[0]


def test_doing_nothing_is_certain() -> None:
    found = cut_of([({"a": (9.0, 0.0)}, b) for b in (0.4, 0.5)]).maxter(5.0)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)
    assert found.chosen == (NOTHING, NOTHING)


def test_budgets_at_which_nothing_is_done_add_no_width() -> None:
    # Only above 19 % can anything be done: 1/20 of the range, in which a tenth of the leakage is left on average.
    cut = cut_of([({"a": (19.0, a)}, b) for a, b in ((0.04, 0.4), (0.05, 0.6), (0.06, 0.5))])
    area, above = cut.aurc(), cut.maxter(20.0)
    assert area.value == pytest.approx(90.0 / 20)
    assert area.value - area.low == pytest.approx((above.value - above.low) / 20)
    never = cut_of([({"a": (50.0, 0.0)}, b) for b in (0.1, 0.7, 0.3)]).aurc()
    assert (never.value, never.low, never.high) == pytest.approx((0.0, 0.0, 0.0), abs=1e-9)


def test_limits_of_a_leakage_are_leakages() -> None:
    found = cut_of([({"a": (1.0, 0.9)}, 1.0), ({"a": (1.0, 0.4)}, 0.5)]).undefended()
    assert found.high == found.run_limits[1] == 1.0
    assert found.run_limits[0] == -1.0


def test_labels_that_some_seed_lacks_cannot_be_chosen() -> None:
    first = {"a": (1.0, 0.0), "b": (1.0, 0.1)}
    others: list[dict[str, tuple[float, float]]] = [
        {"b": (1.0, 0.1)},
        {"a": (1.0, NAN), "b": (1.0, 0.1)},
        {"a": (NAN, 0.0), "b": (1.0, 0.1)},
    ]
    for second in others:
        assert cut_of([(first, 0.4), (second, 0.4)]).maxter(5.0).chosen == ("b", "b")


def test_bad_arms_are_refused() -> None:
    curve = run({"a": (1.0, 0.1)}, 0.4)
    with pytest.raises(DataError, match="1 seeds cannot leave one out"):
        across_seeds([curve])
    with pytest.raises(DataError, match="seed number 1 has no undefended leakage"):
        across_seeds([curve, run({}, NAN)])
    with pytest.raises(DataError, match="NaN"):
        across_seeds([curve, curve]).maxter(NAN)
    with pytest.raises(DataError, match="no range"):
        across_seeds([curve, curve]).aurc(0.0)
    with pytest.raises(DataError, match="same seeds"):
        across_seeds([curve, curve]).gain(across_seeds([curve, run({}, 0.5)]))
    with pytest.raises(DataError, match="do not fit"):
        across_seeds([RunTerms({}, {}, {"": Column([0.1], [])})] * 2)
    assert math.isnan(across_seeds([run({}, 0.0)] * 2).maxter(5.0).value)


def test_seeds_that_agree_give_the_plain_figures() -> None:
    points = [OperatingPoint(2.0, 30.0), OperatingPoint(10.0, 80.0)]
    cut = cut_of([({"a": (2.0, 0.28), "b": (10.0, 0.08)}, 0.4)] * 3)
    for tau in (1.0, 2.0, 5.0, 10.0):
        assert cut.maxter(tau).value == pytest.approx(maxter(points, tau))
    assert cut.aurc().value == pytest.approx(aurc(points))


def test_gain_is_the_difference_of_areas_with_paired_limits() -> None:
    rng = np.random.default_rng(3)
    arm = random_arm(rng, 4)
    baseline = [(other, undefended) for (_, undefended), (other, _) in zip(arm, random_arm(rng, 4), strict=True)]
    ours, theirs = cut_of(arm), cut_of(baseline)
    found = ours.gain(theirs)
    assert found.value == pytest.approx(ours.aurc().value - theirs.aurc().value)
    assert found.low < found.value < found.high
    same = ours.gain(cut_of(arm))
    assert (same.value, same.low, same.high) == pytest.approx((0.0, 0.0, 0.0), abs=1e-9)


def test_sample_noise_counts_a_person_once_however_many_seeds_repeat_it() -> None:
    rng = np.random.default_rng(4)
    persons = [f"p{i // 3}" for i in range(300)]

    def width(copies: int, seeds: int) -> float:
        draws = [(rng.random(300) < 0.3, rng.random(300) < 0.6) for _ in range(seeds)] * copies
        found = [RunTerms({"a": {"": Column(a, persons)}}, {"a": 1.0}, {"": Column(b, persons)}) for a, b in draws]
        low, high = across_seeds(found).maxter(5.0).sample_limits
        return high - low

    assert width(4, 1) == pytest.approx(width(2, 1), rel=0.15)
    assert width(1, 8) == pytest.approx(width(1, 2) / 2, rel=0.25)


def test_run_noise_is_students_t_of_the_seeds() -> None:
    values = [0.31, 0.42, 0.35]
    cut = cut_of([({}, value) for value in values])
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert cut.undefended().run_limits == pytest.approx((low, high))
    assert cut.undefended().value == pytest.approx(np.mean(values))
    # Every person has the same error on all seeds but for the run's, so both noises add up as variances do.
    whole = cut.undefended()
    sample = whole.value - whole.sample_limits[0]
    assert whole.value - whole.low == pytest.approx(math.hypot(sample, (high - low) / 2))


@pytest.mark.parametrize("runs", [0.0, 0.1, 0.2])
def test_what_single_hits_explain_is_taken_off_the_noise_between_seeds(runs: float) -> None:
    rng = np.random.default_rng(8)
    seeds, persons = 4, 60
    hits = 0.2 + 0.3 * rng.standard_normal(persons) + 0.4 * rng.standard_normal((seeds, persons))
    hits += runs * np.asarray([1.0, -1.5, 0.2, 0.9])[:, np.newaxis]
    names = [f"p{i}" for i in range(persons)]
    found = across_seeds([RunTerms({}, {}, {"": Column(row, names)}) for row in hits]).undefended()

    assert found.value == pytest.approx(hits.mean())
    student = stats.t.ppf(0.975, seeds - 1)
    between = hits.mean(axis=1).var(ddof=1) / seeds
    # What two seeds differ by for one person, beyond what they differ by for all, has twice the variance of one hit.
    pairs = [hits[s] - hits[t] for s in range(seeds) for t in range(s)]
    within = np.mean([pair.var(ddof=1) / 2 for pair in pairs]) / persons / seeds
    assert found.value - found.run_limits[0] == pytest.approx(student * math.sqrt(between))
    assert found.run_limits[1] - found.value == pytest.approx(student * math.sqrt(between))
    plain = stats.t.interval(0.95, persons - 1, loc=hits.mean(), scale=stats.sem(hits.mean(axis=0)))
    assert found.sample_limits == pytest.approx(plain, rel=0.1)
    beyond = student**2 * max(between - within, 0.0)
    for limit, side in zip((found.low, found.high), found.sample_limits, strict=True):
        whole = max(student * math.sqrt(between), math.hypot(side - found.value, math.sqrt(beyond)))
        assert abs(limit - found.value) == pytest.approx(whole)
    assert (between > 1.5 * within) == (runs > 0), "one case each of the two forms"


def test_the_score_and_its_sign_are_chosen_on_other_seeds() -> None:
    rng = np.random.default_rng(5)

    def leakage_of(means: tuple[float, float]) -> Estimated:
        """Two scores of these leakages on each of three seeds, of 100 persons."""
        found = []
        for _ in range(3):
            terms = [
                Term(f"u{i}", f"p{i}", value, reading)
                for reading, mean in zip(("", "zlib"), means, strict=True)
                for i, value in enumerate(rng.normal(mean, 0.5, 100).tolist())
            ]
            found.append(RunTerms({}, {}, readings(terms, two_sided=True)))
        cut = across_seeds(found)
        assert means == (0.0, 0.0) or set(cut.readings_at(0)) == {"-zlib"}
        return cut.undefended()

    # Over-forgetting: members have the larger loss, which tells as much.
    assert leakage_of((0.1, -0.4)).value == pytest.approx(0.4, abs=0.08)
    # Without leakage, |2 AUC - 1| of the better of two scores would be well above 0 on average.
    none = [leakage_of((0.0, 0.0)).value for _ in range(200)]
    assert abs(np.mean(none)) < 3 * np.std(none) / math.sqrt(200)
