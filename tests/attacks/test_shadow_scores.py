"""The scores of a pool against a few lines each, the traps of public code, and a planted membership."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from memdefense.attacks.shadow_scores import (
    Bools,
    Floats,
    counterfactual,
    cross_validated,
    lira,
    lira_offline,
    rmia,
    token_logits,
)
from memdefense.attacks.shadow_tuning import tuned_a
from memdefense.roc import auc

UNITS, MODELS = 60, 6


def dealt(rng: np.random.Generator, models: int, units: int) -> Bools:
    """Every unit in one model of each pair."""
    coins = rng.random((models // 2, units)) < 0.5
    return np.stack([coins, ~coins], 1).reshape(models, units)


def drawn(
    seed: int = 0, models: int = MODELS, units: int = UNITS, shift: float = 1.0
) -> tuple[Floats, Floats, Bools, Bools]:
    """What a model says of units, what the pool says, what it was trained on, and the members of the model."""
    rng = np.random.default_rng(seed)
    inside, members = dealt(rng, models, units), rng.random(units) < 0.5
    hard = rng.normal(0, 3, units)
    own = hard + shift * members + rng.normal(size=units)
    return own, hard + shift * inside + rng.normal(size=(models, units)), inside, members


def sides(shadows: Floats, inside: Bools, unit: int) -> tuple[list[float], list[float]]:
    rows = range(len(shadows))
    return [shadows[k, unit] for k in rows if inside[k, unit]], [shadows[k, unit] for k in rows if not inside[k, unit]]


def pooled(shadows: Floats, inside: Bools, side: int) -> float:
    found = [sides(shadows, inside, unit)[side] for unit in range(shadows.shape[1])]
    squares = sum((value - np.mean(some)) ** 2 for some in found for value in some)
    return math.sqrt(squares / sum(len(some) - 1 for some in found))


def test_lira_is_the_ratio_of_two_normal_densities() -> None:
    own, shadows, inside, _ = drawn()
    spread = [pooled(shadows, inside, side) for side in (0, 1)]
    online, offline = lira(own, shadows, inside), lira_offline(own, shadows, inside)
    for unit in range(UNITS):
        means = [np.mean(some) for some in sides(shadows, inside, unit)]
        expected = stats.norm.logpdf(own[unit], means[0], spread[0]) - stats.norm.logpdf(own[unit], means[1], spread[1])
        assert online[unit] == pytest.approx(expected)
    # Carlini's offline score is the probability below, 1 - Pr[Z > phi]: the same order.
    below = [stats.norm.cdf(own[u], np.mean(sides(shadows, inside, u)[1]), spread[1]) for u in range(UNITS)]
    assert stats.spearmanr(below, offline).statistic == pytest.approx(1.0)
    assert np.all((offline > 0) == (np.array(below) > 0.5))


def test_out_has_a_variance_of_its_own_and_offline_scores_never_look_at_in() -> None:
    own, shadows, inside, _ = drawn()
    wide = np.where(inside, 50 * shadows, shadows)
    assert np.array_equal(lira_offline(own, wide, inside), lira_offline(own, shadows, inside))
    assert not np.allclose(lira(own, wide, inside), lira(own, shadows, inside))
    z = np.arange(UNITS) < 20
    assert np.array_equal(rmia(own, wide, inside, z, a=0.4), rmia(own, shadows, inside, z, a=0.4))
    assert not np.array_equal(rmia(own, wide, inside, z), rmia(own, shadows, inside, z))


@pytest.mark.parametrize("gamma", [1.0, 1.7])
@pytest.mark.parametrize("a", [None, 1.0, 0.3])
def test_rmia_counts_the_population_it_dominates(gamma: float, a: float | None) -> None:
    own, shadows, inside, _ = drawn()
    own, shadows = own / 4 - 3, shadows / 4 - 3  # log-probabilities
    z = np.arange(UNITS) % 3 == 0
    found = rmia(own, shadows, inside, z, gamma=gamma, a=a)

    def ratio(unit: int) -> float:
        within, without = (np.mean(np.exp(some)) for some in sides(shadows, inside, unit))
        whole = (within + without) / 2 if a is None else ((1 + a) * without + (1 - a)) / 2
        return float(np.exp(own[unit]) / whole)

    for unit in range(UNITS):
        assert found[unit] == pytest.approx(np.mean([ratio(unit) / ratio(int(o)) >= gamma for o in np.flatnonzero(z)]))


def test_memorization_is_with_less_without() -> None:
    rng = np.random.default_rng(1)
    inside = dealt(rng, MODELS, UNITS)
    accuracy, whole = rng.random((MODELS, UNITS)), rng.normal(-3, 2, (MODELS, UNITS))
    memorized, validated = counterfactual(accuracy, inside), cross_validated(whole, inside)
    for unit in range(UNITS):
        within, without = sides(accuracy, inside, unit)
        assert memorized[unit] == pytest.approx(np.mean(within) - np.mean(without))
        within, without = sides(whole, inside, unit)
        expected = math.log(np.mean(np.exp(within))) - math.log(np.mean(np.exp(without)))
        assert validated[unit] == pytest.approx(expected)
    # Whole texts have probabilities that no float holds.
    assert cross_validated(whole - 5000, inside) == pytest.approx(validated)


def test_token_logits_are_finite_where_the_model_is_certain() -> None:
    p = np.array([0.1, 0.5, 0.999])
    assert token_logits(np.log(p)) == pytest.approx(np.log(p / (1 - p)))
    certain = token_logits(np.array([0.0, -1e-12], np.float32))
    assert np.isfinite(certain).all()
    assert (certain > 10).all()


def test_a_planted_membership_comes_back_and_none_does_not() -> None:
    """The most that can be told of a shift of one standard deviation is Phi(1 / sqrt 2), 0.760."""
    areas: dict[str, list[float]] = {}
    for seed in range(20):
        own, shadows, inside, members = drawn(seed, models=8, units=500)
        z = np.arange(500) >= 400
        own_p, shadows_p = own / 10 - 3, shadows / 10 - 3
        for name, scores in {
            "raw": own,
            "lira": lira(own, shadows, inside),
            "lira-offline": lira_offline(own, shadows, inside),
            "rmia": rmia(own_p, shadows_p, inside, z & ~members)[:400],
            "rmia-offline": rmia(own_p, shadows_p, inside, z & ~members, a=1.0)[:400],
        }.items():
            areas.setdefault(name, []).append(auc(scores, members[: len(scores)]))
        nothing = lira(own, drawn(seed, models=8, units=500, shift=0.0)[1], inside)
        areas.setdefault("none", []).append(auc(nothing, np.random.default_rng(seed).random(500) < 0.5))
    mean = {name: float(np.mean(found)) for name, found in areas.items()}
    # 20 areas of 250 against 250 have a standard error of 0.005.
    assert mean["lira"] == pytest.approx(0.72, abs=0.02)
    assert mean["lira-offline"] == pytest.approx(0.74, abs=0.02)
    assert 0.70 < mean["rmia"] < 0.77
    assert 0.70 < mean["rmia-offline"] < 0.77
    assert mean["raw"] < 0.62  # what is hard and what is easy hides it
    assert mean["none"] == pytest.approx(0.5, abs=0.02)


def test_models_that_all_say_the_same_tell_nothing() -> None:
    own = np.random.default_rng(0).normal(-3, 1, UNITS)
    inside, z = dealt(np.random.default_rng(1), MODELS, UNITS), np.arange(UNITS) < 20
    shadows = np.tile(own, (MODELS, 1))
    for scores in (lira(own, shadows, inside), lira_offline(own, shadows, inside), rmia(own, shadows, inside, z)):
        assert np.isfinite(scores).all()
        assert np.ptp(scores) < 1e-9
    assert np.ptp(rmia(own, shadows, inside, z, a=1.0)) < 1e-9


def test_a_is_chosen_on_the_first_model_with_the_later_pairs() -> None:
    rng = np.random.default_rng(5)
    inside, z = dealt(rng, MODELS, UNITS), np.arange(UNITS) < 20
    shadows = rng.normal(-3, 1, UNITS) + inside + 0.3 * rng.normal(size=(MODELS, UNITS))
    areas = {}
    for step in range(11):
        scores = rmia(shadows[0], shadows[2:], inside[2:], z & ~inside[0], a=step / 10)
        areas[step / 10] = auc(scores[~z], inside[0, ~z])
    best = max(areas.values())
    assert tuned_a(shadows, inside, z) == max(a for a, area in areas.items() if area == best)
    assert min(areas.values()) < best  # there was something to choose
