"""The undefended run of one seed: what leakage and utility are relative to, and what a defense has to differ from."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

from memdefense.attack import Outcome, Utility
from memdefense.bench import StoredPoint
from memdefense.defense import Defense, overrides
from memdefense.pipeline import Defended, defend, measure
from memdefense.store import Artifact
from memdefense.utility import Perplexity
from memdefense.work import Work

UNDEFENDED = Defense()
_HOOKS = ("configure", "curate", "train", "edit", "guard")


@dataclasses.dataclass(frozen=True)
class Reference:
    """The undefended run of one seed.

    Attributes:
        best: the label of the checkpoint of the lowest held-out perplexity, which utility is relative to.
        points: its operating points, by label.
        outcomes: of a utility at one of them, measured when they are asked for: what prices guards alone seldom is.
        curated: a digest of what it was trained on.
        never_trained: the base model's held-out perplexity.
        overfit: percent by which the final held-out perplexity exceeds its minimum.
        tokens: trained on.
    """

    best: str
    points: Mapping[str, StoredPoint]
    outcomes: Callable[[Utility, StoredPoint], Sequence[Outcome]]
    curated: str
    never_trained: float
    overfit: float
    tokens: float

    def cost(self, utility: Utility, found: Sequence[Outcome]) -> float:
        """Percent that a point lost of one utility, by its outcomes."""
        return utility.cost(found, self.outcomes(utility, self.points[self.best]))

    def status(
        self,
        defended: Defended,
        point: StoredPoint,
        found: Sequence[tuple[Utility, Sequence[Outcome]]],
        perplexity: float,
    ) -> str:
        """``no-op``, ``collapsed`` or ``ok``.

        Args:
            defended: whose point it is.
            point: ``no-op`` where its documents, weights and outputs are the undefended run's.
            found: every utility that it is measured by, with its outcomes.
            perplexity: held-out; ``collapsed`` where it is above that of a model that never saw the private text.
        """
        twin = self.twin(point)
        if twin is not None and any(overrides(defended.defense, hook) for hook in _HOOKS):
            same = all(alike(own, self.outcomes(utility, twin)) for utility, own in found)
            if same and defended.curated_digest == self.curated:
                return "no-op"
        return "ok" if perplexity <= self.never_trained * (1 + 1e-9) else "collapsed"  # so is what is no number

    def twin(self, point: StoredPoint) -> StoredPoint | None:
        """The undefended point of the same weights, by them and by place: a point of an edit has a label of its own."""
        same = (own for own in self.points.values() if (own.digest, own.at) == (point.digest, point.at))
        return next(same, None)


def reference_of(work: Work, perplexity: Utility, seed: int) -> Reference:
    """Trains the undefended run of one seed and measures its perplexities, or takes both from the store."""
    defended = defend(work, UNDEFENDED, seed)
    found: dict[tuple[str, str], Sequence[Outcome]] = {}

    def outcomes(utility: Utility, point: StoredPoint) -> Sequence[Outcome]:
        key = (utility.spec, point.label)
        if key not in found:
            load = functools.partial(point.load, work.bench.device)
            found[key] = measure(defended, point, utility, load)[0]
        return found[key]

    perplexities = {
        point.label: perplexity.score(outcomes(perplexity, point)).headline.value for point in defended.points
    }
    best = min(perplexities, key=lambda label: perplexities[label])
    base = StoredPoint("base", 0.0, work.base_digest, cast(Artifact, None), "")
    never = measure(defended, base, Perplexity(), lambda: work.base)[0]
    last, least = (perplexities[label] for label in (defended.points[-1].label, best))
    return Reference(
        best,
        {point.label: point for point in defended.points},
        outcomes,
        defended.curated_digest,
        Perplexity().score(never).headline.value,
        100 * (last / least - 1),
        tokens_of(defended.cost),
    )


def tokens_of(cost: Mapping[str, float]) -> float:
    """Tokens a defense trained on, edits included."""
    return cost.get("tokens", 0.0) + cost.get("edit_tokens", 0.0)


def alike(ours: Iterable[Outcome], theirs: Iterable[Outcome]) -> bool:
    """Whether two sets of outcomes are the same but for rounding."""
    mine, other = ({o.unit: o.values for o in side} for side in (ours, theirs))
    return mine.keys() == other.keys() and all(
        mine[unit].keys() == other[unit].keys()
        and all(abs(mine[unit][name] - other[unit][name]) < 1e-6 for name in mine[unit])
        for unit in mine
    )
