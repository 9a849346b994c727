"""From measured points to entries: what a defense is worth against an attack, over seeds or over persons."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from memdefense.attack import Term
from memdefense.crossfit import (
    CrossEstimate,
    Reading,
    SeedCurve,
    cross_seed_aurc,
    cross_seed_gain,
    cross_seed_maxter,
)
from memdefense.errors import DataError
from memdefense.folds import RunTerms, folded_aurc, folded_gain, folded_maxter
from memdefense.maxter import (
    Checkpoint,
    OperatingPoint,
    aurc_paper,
    maxter,
    maxter_paper,
    pareto_front,
    resolvable,
    ter_mean,
)
from memdefense.score import Score, Scores

TAUS = (1.0, 5.0, 20.0)
"""Utility budgets, in percent, that every entry reports."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """One operating point under one attack, on one seed.

    Attributes:
        label: the same operating point on every seed.
        delta: utility cost in percent, the worst of its parts.
        scores: of the attack.
        terms: what each unit adds to the leakage.
        perplexity: held-out.
    """

    seed: int
    label: str
    delta: float
    scores: Scores
    terms: Sequence[Term]
    perplexity: float
    status: str = "ok"
    spec: str = ""


@dataclasses.dataclass(frozen=True)
class Arm:
    """All points of one defense under one attack, and the undefended run's beside them, in the order of training."""

    points: Sequence[Measured]
    undefended: Sequence[Measured]

    def seeds(self) -> list[int]:
        """The seeds on which both the arm and the undefended run were measured."""
        return sorted({p.seed for p in self.points} & {p.seed for p in self.undefended})


def entry_of(arm: Arm, rivals: Sequence[Arm] = ()) -> dict[str, object]:
    """The numbers of an entry: MaxTER, AURC and gain with intervals, the plain maximum, the paper's own figures.

    Where the undefended leakage cannot be told from chance, there is a ``note`` instead of MaxTER, AURC and gain.

    Args:
        arm: the defense.
        rivals: all arms of the run, on which the range of the paper's AURC depends and nothing else.
    """
    seeds = arm.seeds()
    if not seeds:
        return {"resolvable": False, "note": "no seed was measured with and without the defense", "seeds": []}
    finals = [_of_seed(arm.undefended, seed)[-1] for seed in seeds]
    pooled = _pooled([final.scores.headline for final in finals])
    whole: dict[str, object] = {
        "seeds": seeds,
        "undefended": _row(pooled),
        "plain": _plain(arm, seeds),
        "paper": _paper(arm, seeds, rivals),
        "scope": "seeds" if len(seeds) > 1 else "this model only",
    }
    events = pooled.events if pooled.events is not None else pooled.n
    if not resolvable(events, pooled):
        return {
            **whole,
            "resolvable": False,
            "note": f"not resolvable: the undefended leakage rests on {events} events and its interval "
            f"[{pooled.low:.3f}, {pooled.high:.3f}] must lie above 0 on at least 30",
        }
    try:
        estimates, area, gain = _across(arm, seeds) if len(seeds) > 1 else _within(arm, seeds[0])
    except DataError as error:
        return {**whole, "resolvable": False, "note": f"not resolvable: {error}"}
    return {
        **whole,
        "resolvable": True,
        "note": "",
        "maxter": {f"{tau:g}": _cross_row(estimate) for tau, estimate in zip(TAUS, estimates, strict=True)},
        "aurc": _row(area),
        "gain": _row(gain),
    }


def _across(arm: Arm, seeds: Sequence[int]) -> tuple[list[CrossEstimate], Score, Score]:
    ours, theirs = _curves(arm.points, arm, seeds), _curves(arm.undefended, arm, seeds)
    return [cross_seed_maxter(ours, tau) for tau in TAUS], cross_seed_aurc(ours), cross_seed_gain(ours, theirs)


def _within(arm: Arm, seed: int) -> tuple[list[CrossEstimate], Score, Score]:
    ours, theirs = _run(arm.points, arm, seed), _run(arm.undefended, arm, seed)
    return [folded_maxter(ours, tau) for tau in TAUS], folded_aurc(ours), folded_gain(ours, theirs)


def _curves(points: Sequence[Measured], arm: Arm, seeds: Sequence[int]) -> list[SeedCurve]:
    curves = []
    for seed in seeds:
        final = _of_seed(arm.undefended, seed)[-1].scores.headline
        readings = {
            point.label: Reading(point.delta, head.value, head.low, head.high)
            for point in _of_seed(points, seed)
            for head in (point.scores.headline,)
        }
        curves.append(SeedCurve(readings, final.value, final.low, final.high))
    return curves


def _run(points: Sequence[Measured], arm: Arm, seed: int) -> RunTerms:
    final = {term.unit: term for term in _of_seed(arm.undefended, seed)[-1].terms}
    units = sorted(final)
    columns, deltas = {}, {}
    for point in _of_seed(points, seed):
        own = {term.unit: term.value for term in point.terms}
        if set(own) == set(final):
            columns[point.label] = [own[unit] for unit in units]
            deltas[point.label] = point.delta
    return RunTerms(columns, deltas, [final[u].value for u in units], [final[u].person for u in units])


def reduction(point: Measured, arm: Arm) -> float:
    """Percent of its seed's final undefended leakage that a point takes away; NaN where there was none."""
    final = _of_seed(arm.undefended, point.seed)[-1].scores.headline.value
    return 100 * (1 - point.scores.headline.value / final) if final > 0 else math.nan


def _plain(arm: Arm, seeds: Sequence[int]) -> dict[str, object]:
    """The plain maximum over points averaged over seeds, which flatters; and the Pareto front of those points."""
    labels = list(dict.fromkeys(p.label for p in arm.points))
    points: dict[str, OperatingPoint] = {}
    for label in labels:
        same = [p for p in arm.points if p.label == label and p.seed in seeds]
        if len(same) == len(seeds):
            delta = math.fsum(p.delta for p in same) / len(same)
            points[label] = OperatingPoint(delta, math.fsum(reduction(p, arm) for p in same) / len(same))
    front = pareto_front(points.values())
    return {
        "maxter": {f"{tau:g}": maxter(points.values(), tau) for tau in TAUS},
        "points": {label: {"delta": p.delta, "reduction": p.reduction} for label, p in points.items()},
        "front": [{"delta": p.delta, "reduction": p.reduction} for p in front],
    }


def _paper(arm: Arm, seeds: Sequence[int], rivals: Sequence[Arm]) -> dict[str, object] | None:
    """The RMFT paper's figures, where both arms have raw TER at the same checkpoints; means over seeds."""
    found: list[tuple[float, float, float]] = []
    for seed in seeds:
        base = _checkpoints(arm.undefended, arm.undefended, seed)
        mine = _checkpoints(arm.points, arm.undefended, seed)
        if base is None or mine is None:
            return None
        others = (_checkpoints(rival.points, arm.undefended, seed) for rival in rivals)
        arms = {"arm": mine, **{f"rival {n}": other for n, other in enumerate(others) if other is not None}}
        mean = ter_mean([c.ter for c in mine], [c.ter for c in base])
        found.append((mean, maxter_paper(mine, base, tau=20.0), aurc_paper(arms, base)["arm"]))
    mean, most, area = (math.fsum(column) / len(found) for column in zip(*found, strict=True))
    return {"ter_mean": mean, "maxter_paper": most, "aurc_paper": area}


def _checkpoints(points: Sequence[Measured], like: Sequence[Measured], seed: int) -> list[Checkpoint] | None:
    """Raw TER and perplexity of a seed's points; None where they have other labels than ``like``, or no TER."""
    ours = _of_seed(points, seed)
    same = [p.label for p in ours] == [p.label for p in _of_seed(like, seed)]
    if not same or any("ter" not in p.scores.beside for p in ours):
        return None
    return [Checkpoint(p.scores.beside["ter"].value, p.perplexity) for p in ours]


def _of_seed(points: Sequence[Measured], seed: int) -> list[Measured]:
    return [point for point in points if point.seed == seed]


def _pooled(scores: Sequence[Score]) -> Score:
    """The mean over seeds; limits averaged, since the seeds share their units and so their sample noise."""
    count = len(scores)
    events = [score.events for score in scores]
    return Score(
        math.fsum(score.value for score in scores) / count,
        math.fsum(score.low for score in scores) / count,
        math.fsum(score.high for score in scores) / count,
        scores[0].n,
        False,
        sum(e for e in events if e is not None) if None not in events else None,
    )


def _row(score: Score) -> dict[str, object]:
    return {"value": score.value, "low": score.low, "high": score.high, "n": score.n}


def _cross_row(estimate: CrossEstimate) -> dict[str, object]:
    row: Mapping[str, object] = dataclasses.asdict(estimate)
    return dict(row)
