"""MaxTER: how much leakage a defense takes away at a utility cost of at most tau percent.

Pure functions of operating points, whose plain maximum flatters a noisy arm; `memdefense.crossfit` has the estimates
without that bias. The RMFT paper's own figures stand at the end, for comparison with its tables.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from memdefense.errors import DataError
from memdefense.interval import Estimate as Bounds


@dataclasses.dataclass(frozen=True, slots=True)
class OperatingPoint:
    """What one defended model costs and what it takes away.

    Attributes:
        delta: utility cost in percent of the undefended model's; below 0 where the model got better.
        reduction: percent of the undefended leakage that is gone; below 0 where more leaks.
    """

    delta: float
    reduction: float


_NOTHING = OperatingPoint(0.0, 0.0)


def _known(points: Iterable[OperatingPoint]) -> list[OperatingPoint]:
    """Points whose two numbers are finite, and doing nothing; what could not be measured cannot be chosen."""
    return [*(p for p in points if math.isfinite(p.delta) and math.isfinite(p.reduction)), _NOTHING]


def maxter(points: Iterable[OperatingPoint], tau: float) -> float:
    """The largest reduction among points with delta <= tau, in percent; at least 0, since doing nothing is always open.

    Points with a NaN or infinite number are left out.

    Raises:
        DataError: tau is NaN.
    """
    if math.isnan(tau):
        raise DataError("a utility budget of NaN allows nothing: give tau in percent, such as 5")
    return max([0.0, *(p.reduction for p in _known(points) if p.delta <= tau)])


def aurc(points: Iterable[OperatingPoint], tau_max: float = 20.0) -> float:
    """The mean of `maxter` over budgets from 0 to ``tau_max`` percent, exact for the step function, in percent.

    Points of negative delta count from 0 on; points with a NaN or infinite number are left out.

    Raises:
        DataError: ``tau_max`` is not a positive number.
    """
    check_budget(tau_max)
    steps = sorted((max(p.delta, 0.0), p.reduction) for p in _known(points) if p.delta < tau_max)
    areas, height = [], 0.0
    for i, (delta, reduction) in enumerate(steps):
        height = max(height, reduction)
        upto = steps[i + 1][0] if i + 1 < len(steps) else tau_max
        areas.append(height * (upto - delta))
    return math.fsum(areas) / tau_max


def pareto_front(points: Iterable[OperatingPoint]) -> list[OperatingPoint]:
    """The distinct points, doing nothing among them, that no other equals or beats in both numbers; sorted by delta.

    Points with a NaN or infinite number are left out.
    """
    front: list[OperatingPoint] = []
    for point in sorted(_known(points), key=lambda p: (p.delta, -p.reduction)):
        if not front or point.reduction > front[-1].reduction:
            front.append(point)
    return front


def check_budget(tau_max: float) -> None:
    """Refuses an end of the budget axis that leaves nothing to integrate over.

    Raises:
        DataError: ``tau_max`` is not a positive number.
    """
    if not (math.isfinite(tau_max) and tau_max > 0.0):
        raise DataError(f"tau_max = {tau_max} leaves no range of budgets: give a positive percentage, such as 20")


def resolvable(events: int, leakage: Bounds) -> bool:
    """Whether reductions can be told at all, for all arms alike.

    Args:
        events: undefended hits, pooled over seeds; under 30 a ratio to them is noise.
        leakage: undefended leakage over chance; its lower limit must be above 0.
    """
    return events >= 30 and leakage.low > 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoint:
    """One arm at one fraction of training, as the RMFT paper measures it: raw TER and held-out perplexity."""

    ter: float
    perplexity: float


def ter_mean(arm_ters: Sequence[float], base_ters: Sequence[float]) -> float:
    """The RMFT paper's reduction, 100 (1 - mean TER_arm / mean TER_base) over the checkpoints, in percent.

    Source: Joshi & Smith, arXiv 2512.03310. NaN without checkpoints, or where the baseline's mean is 0.

    Raises:
        DataError: the two arms have different numbers of checkpoints.
    """
    _check_paired(len(arm_ters), len(base_ters))
    total = math.fsum(base_ters)
    return 100.0 * (1.0 - math.fsum(arm_ters) / total) if total else math.nan


def paper_points(arm: Sequence[Checkpoint], base: Sequence[Checkpoint]) -> list[OperatingPoint]:
    """An arm's points as the RMFT paper has them: each checkpoint against the baseline's *same* checkpoint.

    reduction_c = 100 (1 - TER_arm / TER_base), delta_c = 100 (P_arm / P_base - 1). A zero denominator gives NaN, and
    such a point counts for nothing.

    Raises:
        DataError: the two arms have different numbers of checkpoints.
    """
    _check_paired(len(arm), len(base))
    return [
        OperatingPoint(
            100.0 * (a.perplexity / b.perplexity - 1.0) if b.perplexity else math.nan,
            100.0 * (1.0 - a.ter / b.ter) if b.ter else math.nan,
        )
        for a, b in zip(arm, base, strict=True)
    ]


def maxter_paper(arm: Sequence[Checkpoint], base: Sequence[Checkpoint], *, tau: float) -> float:
    """`maxter` of `paper_points`; raises as both."""
    return maxter(paper_points(arm, base), tau)


def aurc_paper(arms: Mapping[str, Sequence[Checkpoint]], base: Sequence[Checkpoint]) -> dict[str, float]:
    """`aurc` of each arm's `paper_points`, up to the largest delta among all arms, by arm.

    A new arm thus moves every other's number, which is why `aurc` fixes its range. NaN for all where no point has a
    delta above 0. Raises as `paper_points`.
    """
    points = {name: paper_points(arm, base) for name, arm in arms.items()}
    tau_max = max((p.delta for arm in points.values() for p in _known(arm)), default=0.0)
    return {name: aurc(arm, tau_max) if tau_max > 0.0 else math.nan for name, arm in points.items()}


def _check_paired(arm: int, base: int) -> None:
    """Refuses arms that were not measured at the same checkpoints."""
    if arm != base:
        raise DataError(f"{arm} checkpoints against the baseline's {base}: measure both at the same fractions")
