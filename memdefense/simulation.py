"""Runs with a known truth, to see what each estimator makes of them: its bias, and how often its interval covers.

Example::

    tried(Truth(base=0.1, noise=0.2, seeds=3), effect=0.5, runs=400)["maxter"].coverage
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri  # type: ignore[import-untyped, unused-ignore]

from memdefense.crossfit import AcrossSeeds, across_seeds
from memdefense.cut import Cut, Estimated
from memdefense.folds import WithinRun
from memdefense.interval import Floats
from memdefense.layout import Table
from memdefense.maxter import OperatingPoint, maxter, resolvable
from memdefense.persons import PLUS, WEIGHT, Column, RunTerms
from memdefense.roc import auc, auc_terms
from memdefense.selection import NOTHING

_TAU = 5.0


@dataclasses.dataclass(frozen=True)
class Truth:
    """How outcomes come about.

    A person's secrets leak at a rate of their own, drawn from a beta distribution; a training run multiplies the rates
    of all by a log-normal factor of mean 1; then each secret leaks or not, anew on every run.

    Attributes:
        base: the mean rate of the undefended run.
        noise: the standard deviation of a run's log factor.
        seeds: how many runs; 1 is cut into folds.
        points: operating points of an arm, all equally good, each a run of its own.
        persons: how many there are.
        units: secrets of each.
        correlation: of two secrets of one person.
        cost: mean utility cost of the arm's points, in percent.
        cost_noise: the standard deviation of a run's cost.
    """

    base: float
    noise: float = 0.0
    seeds: int = 3
    points: int = 5
    persons: int = 100
    units: int = 3
    correlation: float = 0.1
    cost: float = 1.0
    cost_noise: float = 0.0


@dataclasses.dataclass(frozen=True)
class Tried:
    """What an estimator made of many data sets.

    Attributes:
        mean: of its values.
        truth: what they should be.
        coverage: the share of intervals that hold the truth; where nothing was ever chosen, the interval is a point.
        run_coverage: of the interval of run noise alone.
        sample_coverage: of the interval of sample noise alone.
        width: the median width of the interval.
        estimated: the share of data sets that could be resolved.
    """

    mean: float
    truth: float
    coverage: float
    run_coverage: float
    sample_coverage: float
    width: float
    estimated: float


def arms(rng: np.random.Generator, truth: Truth, effects: Sequence[float]) -> list[Table]:
    """One table per effect, all against the same undefended runs; an effect is the share of leakage taken away."""
    spread = 1.0 / truth.correlation - 1.0
    rates = rng.beta(truth.base * spread, (1.0 - truth.base) * spread, truth.persons)

    def hits(kept: float) -> Floats:
        factor = np.exp(truth.noise * rng.normal(size=truth.seeds) - truth.noise**2 / 2.0)
        chance = np.clip(kept * factor[:, np.newaxis, np.newaxis] * rates[:, np.newaxis], 0.0, 1.0)
        leaked = rng.random((truth.seeds, truth.persons, truth.units)) < chance
        return np.asarray(leaked.sum(axis=-1) / (truth.persons * truth.units), dtype=np.float64)

    undefended, labels = hits(1.0), tuple(f"point {i}" for i in range(truth.points))
    persons = tuple(f"p{i}" for i in range(truth.persons))
    found = []
    for effect in effects:
        parts = np.zeros((4, 1, 1 + truth.points, truth.seeds, truth.persons))
        parts[PLUS, 0] = np.stack([undefended, *(hits(1.0 - effect) for _ in labels)])
        parts[WEIGHT:] = 1.0 / truth.persons
        delta = truth.cost + truth.cost_noise * rng.normal(size=(1 + truth.points, truth.seeds))
        delta[0] = 0.0
        found.append(Table((NOTHING, *labels), ("",), persons, parts, delta))
    return found


def tried(truth: Truth, effect: float, runs: int, *, seed: int = 0, resamples: int = 200) -> dict[str, Tried]:
    """Every estimator of an arm with this effect and of checkpoints without any, over many data sets.

    Args:
        truth: how outcomes come about.
        effect: the share of leakage that every point of the arm takes away.
        runs: data sets.
        seed: of the draws.
        resamples: of the bootstrap within each.

    Returns:
        By estimator: ``undefended`` and ``leakage`` (of the last point), ``maxter``, ``aurc``, ``gain``; ``plain``, the
        maximum without precaution, has no interval.
    """
    rng = np.random.default_rng(seed)
    share = 1.0 - truth.cost / 20.0
    truths = {"undefended": truth.base, "leakage": truth.base * (1.0 - effect)}
    truths |= {
        "maxter": 100.0 * effect * (truth.cost <= _TAU),
        "aurc": 100.0 * effect * share,
        "gain": 100.0 * effect * share,
    }
    found: dict[str, list[Estimated]] = {name: [] for name in truths}
    plain: list[float] = []
    for _ in range(runs):
        ours, theirs = (_cut(table, resamples) for table in arms(rng, truth, (effect, 0.0)))
        events = round(float(ours.leakage[0, 0].sum()) * truth.persons * truth.units)
        found["undefended"].append(ours.undefended())
        found["leakage"].append(ours.leakage_at(truth.points))
        if not resolvable(events, ours.excess):
            continue
        plain.append(_plain(ours))
        for name, estimate in (("maxter", ours.maxter(_TAU)), ("aurc", ours.aurc()), ("gain", ours.gain(theirs))):
            found[name].append(estimate)
    summary = {name: _summed(estimates, truths[name], runs) for name, estimates in found.items()}
    mean = float(np.mean(plain)) if plain else math.nan
    nan = math.nan
    return {**summary, "plain": Tried(mean, truths["maxter"], nan, nan, nan, nan, len(plain) / runs)}


def tried_membership(
    leakage: float,
    runs: int,
    *,
    seeds: int = 3,
    documents: int = 200,
    noise: float = 0.0,
    scores: int = 2,
    circle: int = 1,
    seed: int = 0,
) -> dict[str, Tried]:
    """A membership leakage whose score and sign are chosen on other seeds, beside the larger |2 AUC - 1| of each seed.

    Half of the documents are members; a document has a difficulty that is the same on all seeds. Of the scores, which
    are independent of each other, one tells members apart and the others nothing, and the sign is turned: members score
    lower.

    Args:
        leakage: the true 2 AUC - 1 of the score that tells anything, turned.
        runs: data sets.
        seeds: runs in each.
        documents: how many there are.
        noise: the standard deviation, over runs, of how far members lie from the others.
        scores: how many there are to choose from.
        circle: documents that belong together; two fifths of their difficulty is that of the circle.
        seed: of the draws.

    Returns:
        ``chosen``, whose ``estimated`` is the share of data sets in which the leakage was told from chance, and
        ``plain``.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(documents) % 2 == 0
    persons = [f"c{i % 2}-{i // 2 // circle}" for i in range(documents)]
    of_circle = np.unique(persons, return_inverse=True)[1]
    shared = math.sqrt(0.4) if circle > 1 else 0.0
    shift = math.sqrt(2.0) * float(ndtri((1.0 + leakage) / 2.0))
    chosen: list[Estimated] = []
    plain: list[float] = []
    told = 0
    for _ in range(runs):
        alone = math.sqrt(1.0 - shared**2) * rng.normal(size=(scores, documents))
        hard = math.sqrt(0.5) * (alone + shared * rng.normal(size=(scores, documents))[:, of_circle])
        terms = []
        for _ in range(seeds):
            seen = hard + math.sqrt(0.5) * rng.normal(size=(scores, documents))
            seen[0] -= (shift + noise * rng.normal()) * labels
            areas = [2.0 * auc(row, labels) - 1.0 for row in seen]
            plain.append(max(map(abs, areas)))
            columns = {}
            for name, row in zip(map(str, range(scores)), seen, strict=True):
                columns[name] = Column(auc_terms(row, labels), persons)
                columns[f"-{name}"] = Column(-auc_terms(row, labels), persons)
            terms.append(RunTerms({}, {}, columns))
        cut = across_seeds(terms)
        chosen.append(cut.undefended())
        told += cut.excess.low > 0.0
    nan = math.nan
    mean = float(np.mean(plain))
    summed = dataclasses.replace(_summed(chosen, leakage, runs), estimated=told / runs)
    return {"chosen": summed, "plain": Tried(mean, leakage, nan, nan, nan, nan, 1.0)}


def _cut(table: Table, resamples: int) -> Cut:
    kind = AcrossSeeds if table.delta.shape[1] > 1 else WithinRun
    return kind(table, resamples=resamples)


def _plain(cut: Cut) -> float:
    """The maximum over the points' mean reductions."""
    kept = cut.leakage[0].mean(axis=-1)
    costs = cut.table.delta[1:].mean(axis=-1).tolist()
    points = zip(costs, kept[1:].tolist(), strict=True)
    return maxter([OperatingPoint(cost, 100.0 * (1.0 - x / kept[0])) for cost, x in points], _TAU)


def _summed(estimates: Sequence[Estimated], truth: float, runs: int) -> Tried:
    if not estimates:
        return Tried(math.nan, truth, math.nan, math.nan, math.nan, math.nan, 0.0)

    def share(limits: Sequence[tuple[float, float]]) -> float:
        known = [low <= truth <= high for low, high in limits if not math.isnan(low)]
        return float(np.mean(known)) if known else math.nan

    return Tried(
        mean=float(np.mean([estimate.value for estimate in estimates])),
        truth=truth,
        coverage=share([(estimate.low, estimate.high) for estimate in estimates]),
        run_coverage=share([estimate.run_limits for estimate in estimates]),
        sample_coverage=share([estimate.sample_limits for estimate in estimates]),
        width=float(np.median([estimate.high - estimate.low for estimate in estimates])),
        estimated=len(estimates) / runs,
    )
