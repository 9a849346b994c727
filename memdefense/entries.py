"""From measured points to entries: what a defense is worth against an attack, or against the worst of a family."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from memdefense.attack import Term
from memdefense.compare import compared
from memdefense.crossfit import across_seeds
from memdefense.cut import Cut
from memdefense.errors import DataError
from memdefense.folds import within_run
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
from memdefense.persons import Column, RunTerms, names_of, readings
from memdefense.score import Scores

WORST = "worst"
"""What stands for the attack in the entries against the worst attack of a family."""
TAUS = (1.0, 5.0, 20.0)
"""Utility budgets, in percent, that every entry reports."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """One operating point under one attack, on one seed.

    Attributes:
        label: the same operating point on every seed.
        delta: utility cost in percent, the worst of its parts.
        scores: of the attack.
        terms: what each unit adds to the leakage, by reading.
        perplexity: held-out.
        two_sided: whether the attacker may turn the sign.
        attack: which attack, where those of a family stand together.
    """

    seed: int
    label: str
    delta: float
    scores: Scores
    terms: Sequence[Term]
    perplexity: float
    status: str = "ok"
    spec: str = ""
    two_sided: bool = False
    attack: str = ""


@dataclasses.dataclass(frozen=True)
class Arm:
    """All points of one defense, and the undefended run's beside them, in the order of training.

    Under one attack a point of a seed stands here once; under all attacks of a family, once for each.
    """

    points: Sequence[Measured]
    undefended: Sequence[Measured]

    def seeds(self) -> list[int]:
        """The seeds on which both the arm and the undefended run were measured."""
        return sorted({p.seed for p in self.points} & {p.seed for p in self.undefended})


def entries_of(arms: Mapping[str, Arm]) -> dict[str, dict[str, object]]:
    """The numbers of every arm of a run against one attack, each compared with every other.

    MaxTER, AURC and gain with intervals, the plain maximum, the paper's own figures, the rank among the arms. Where the
    undefended leakage cannot be told from chance, there is a ``note`` instead of MaxTER, AURC and gain.

    Args:
        arms: by label, against the same undefended run.
    """
    persons = names_of([c for arm in arms.values() for p in (*arm.points, *arm.undefended) for c in _columns([p])])
    cuts: dict[tuple[str, tuple[int, ...]], Cut | None] = {}
    found = {}
    for label, arm in arms.items():
        found[label], cuts[label, tuple(arm.seeds())] = _entry(arm, list(arms.values()), persons)
    resolved = [label for label, entry in found.items() if entry["resolvable"]]

    def pair(one: str, other: str) -> tuple[Cut, Cut] | None:
        """Both arms on the seeds that they share."""
        seeds = tuple(seed for seed in arms[one].seeds() if seed in arms[other].seeds())
        for label in (one, other):
            if seeds and (label, seeds) not in cuts:
                try:
                    cuts[label, seeds] = _cut(arms[label].points, arms[label].undefended, seeds, persons)
                except DataError:
                    cuts[label, seeds] = None
        ours, theirs = (cuts.get((label, seeds)) for label in (one, other))
        return None if ours is None or theirs is None else (ours, theirs)

    for label, standing in compared(resolved, pair).items():
        found[label] |= {"rank": list(standing.rank), "of": len(resolved), "versus": standing.versus}
    return found


def entry_of(arm: Arm, rivals: Sequence[Arm] = ()) -> dict[str, object]:
    """The numbers of one arm alone, as `entries_of` without ranks.

    Args:
        arm: the defense.
        rivals: all arms of the run, on which the range of the paper's AURC depends and nothing else.
    """
    return _entry(arm, rivals, names_of(_columns([*arm.points, *arm.undefended])))[0]


def _entry(arm: Arm, rivals: Sequence[Arm], persons: Sequence[str]) -> tuple[dict[str, object], Cut | None]:
    seeds = arm.seeds()
    if not seeds:
        return {"resolvable": False, "note": "no seed was measured with and without the defense", "seeds": []}, None
    whole: dict[str, object] = {
        "seeds": seeds,
        "plain": _plain(arm, seeds),
        "paper": _paper(arm, seeds, rivals),
        "scope": "seeds" if len(seeds) > 1 else "this model only",
    }
    try:
        cut, baseline = (_cut(points, arm.undefended, seeds, persons) for points in (arm.points, arm.undefended))
    except DataError as error:
        return {**whole, "resolvable": False, "note": f"not resolvable: {error}"}, None
    excess, events = cut.excess, _events(arm, cut, seeds)
    last, missing = _end(arm, cut, seeds), _left_out(arm, cut, seeds)
    whole |= {
        "undefended": _leakage(cut, 0),
        "leakage": None if last is None else _leakage(cut, last),
        "left_out": missing,
        "readings": _recomputable(cut),
        "deltas": {label: list(row) for label, row in zip(cut.table.labels, cut.table.delta.tolist(), strict=True)},
    }
    if arm.points and len(cut.table.labels) == 1:
        note = f"not resolvable: no operating point was measured on every seed ({', '.join(missing)})"
        return {**whole, "resolvable": False, "note": note}, None
    if not resolvable(events, excess):
        note = (
            f"not resolvable: the undefended leakage must rest on at least 30 events and its interval lie above 0; "
            f"here there are {events} and it is [{excess.low:.3f}, {excess.high:.3f}]. More seeds, text or passes help"
        )
        return {**whole, "resolvable": False, "note": note}, None
    numbers = {
        "resolvable": True,
        "note": "",
        "maxter": {f"{tau:g}": dataclasses.asdict(cut.maxter(tau)) for tau in TAUS},
        "aurc": dataclasses.asdict(cut.aurc()),
        "gain": dataclasses.asdict(cut.gain(baseline)),
    }
    return {**whole, **numbers}, cut


def _cut(
    points: Sequence[Measured], undefended: Sequence[Measured], seeds: Sequence[int], persons: Sequence[str]
) -> Cut:
    runs = [_run(points, undefended, seed) for seed in seeds]
    return across_seeds(runs, persons) if len(runs) > 1 else within_run(runs[0], persons)


def _run(points: Sequence[Measured], undefended: Sequence[Measured], seed: int) -> RunTerms:
    ours = _by_label(points, seed)
    return RunTerms(
        {label: _readings(found) for label, found in ours.items()},
        {label: found[0].delta for label, found in ours.items()},
        _readings(list(_by_label(undefended, seed).values())[-1]),
    )


def _readings(found: Sequence[Measured]) -> dict[str, Column]:
    """The readings of one point under all its attacks; several attacks are told apart by name."""
    columns: dict[str, Column] = {}
    for point in found:
        columns |= readings(point.terms, two_sided=point.two_sided, prefix=f"{point.attack}/" if point.attack else "")
    return columns


def _columns(points: Iterable[Measured]) -> list[Column]:
    return [column for point in points for column in readings(point.terms).values()]


def _events(arm: Arm, cut: Cut, seeds: Sequence[int]) -> int:
    """The undefended events pooled over seeds, of the attack read on each; of a score that counts none, its units."""
    total = 0
    taken = cut.readings_at(0)
    for number, seed in enumerate(seeds):
        final = list(_by_label(arm.undefended, seed).values())[-1]
        reading = taken[number]
        point = next((p for p in final if p.attack and reading.startswith(f"{p.attack}/")), final[0])
        head = point.scores.headline
        total += head.n if head.events is None else head.events
    return total


def _end(arm: Arm, cut: Cut, seeds: Sequence[int]) -> int | None:
    """The row of the arm's last point, where it is the same on every seed."""
    last = {list(_by_label(arm.points, seed))[-1] for seed in seeds}
    return cut.table.labels.index(last.pop()) if len(last) == 1 and last <= set(cut.table.labels) else None


def _left_out(arm: Arm, cut: Cut, seeds: Sequence[int]) -> list[str]:
    """Points that not every seed has, and readings that are not a number somewhere: nobody can choose them."""
    found = {}
    for seed in seeds:
        for label, points in _by_label(arm.points, seed).items():
            if label not in cut.table.labels:
                found[label] = label
                continue
            row = cut.table.labels.index(label)
            for reading in _readings(points):
                known = reading in cut.table.readings
                if known and math.isnan(cut.leakage[cut.table.readings.index(reading), row, 0]):
                    found[f"{label} {reading}"] = f"{reading.strip('/') or 'the headline'} of {label}"
    return list(found.values())


def _leakage(cut: Cut, point: int) -> dict[str, object]:
    """A leakage as a row shows it.

    Where the attacker chose among several readings, signs or attacks on other units, below 0 is noise and shown as 0.
    """
    row = dataclasses.asdict(cut.leakage_at(point))
    if len(cut.table.readings) > 1:
        row |= {name: max(0.0, row[name]) for name in ("value", "low", "high") if math.isfinite(row[name])}
    return row | {"readings": cut.readings_at(point)}


def _recomputable(cut: Cut) -> dict[str, dict[str, list[float]]]:
    """The leakage of every reading at every point on every unit: from these and the costs all values follow."""
    return {
        reading: {
            label: [round(value, 9) for value in cut.leakage[k, row].tolist()]
            for row, label in enumerate(cut.table.labels)
            if not math.isnan(cut.leakage[k, row, 0])
        }
        for k, reading in enumerate(cut.table.readings)
    }


def _plain(arm: Arm, seeds: Sequence[int]) -> dict[str, object]:
    """The plain maximum over points averaged over seeds, which flatters; and the Pareto front of those points."""
    ours, ends = ({seed: _by_label(points, seed) for seed in seeds} for points in (arm.points, arm.undefended))
    points: dict[str, OperatingPoint] = {}
    for label in dict.fromkeys(p.label for p in arm.points):
        if all(label in ours[seed] for seed in seeds):
            same = [ours[seed][label] for seed in seeds]
            last = [list(ends[seed].values())[-1] for seed in seeds]
            kept = [
                100 * (1 - _most(a) / _most(b)) if _most(b) > 0 else math.nan for a, b in zip(same, last, strict=True)
            ]
            delta = math.fsum(found[0].delta for found in same) / len(seeds)
            reduction = math.fsum(kept) / len(seeds)
            # Signed seed by seed, so that noise averages out; in the end no more than all can be taken away.
            points[label] = OperatingPoint(delta, 100.0 if reduction > 100 else reduction)
    front = pareto_front(points.values())
    return {
        "maxter": {f"{tau:g}": maxter(points.values(), tau) for tau in TAUS},
        "points": {label: {"delta": p.delta, "reduction": p.reduction} for label, p in points.items()},
        "front": [{"delta": p.delta, "reduction": p.reduction} for p in front],
    }


def _most(found: Sequence[Measured]) -> float:
    """The headline leakage of the worst attack on a point."""
    return max(point.scores.headline.value for point in found)


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
    if len({point.attack for point in ours}) > 1:
        return None  # the paper knows of one attack
    same = [p.label for p in ours] == [p.label for p in _of_seed(like, seed)]
    if not same or any("ter" not in p.scores.beside for p in ours):
        return None
    return [Checkpoint(p.scores.beside["ter"].value, p.perplexity) for p in ours]


def _of_seed(points: Sequence[Measured], seed: int) -> list[Measured]:
    return [point for point in points if point.seed == seed]


def _by_label(points: Sequence[Measured], seed: int) -> dict[str, list[Measured]]:
    found: dict[str, list[Measured]] = {}
    for point in _of_seed(points, seed):
        found.setdefault(point.label, []).append(point)
    return found
