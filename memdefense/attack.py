"""What an attack is: it plays against a target and leaves raw outcomes; its scores are pure functions of them."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from memdefense.plugin import Plugin

if TYPE_CHECKING:
    from memdefense.corpus import Corpus
    from memdefense.lab import AttackLab
    from memdefense.score import Scores

Access = Literal["text", "logprobs", "weights"]


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What happened to one unit.

    Attributes:
        unit: the id of a secret, document, author or canary; never a value.
        group: the person or author it belongs to; the cluster of every interval.
        member: whether it was in the original training text.
        values: the raw measurements by name.
        stratum: what must be alike for members and non-members to be compared, such as ``email/guessable/2-4``.
    """

    unit: str
    group: str
    member: bool
    values: Mapping[str, float]
    stratum: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Term:
    """What one unit adds to a leakage that is a mean over units.

    Attributes:
        unit: its id.
        person: whom it belongs to.
        value: its term, signed.
        reading: which of several readings of the same outcomes it belongs to; "" is the headline's.
        side: which of two samples the unit is of, where the leakage compares two (members and others): how well the
            noise is known is decided by the side of fewer persons.
    """

    unit: str
    person: str
    value: float
    reading: str = ""
    side: str = ""


class Measure(Plugin, ABC):
    """Plays against a target and scores what came of it: the shape that attacks and utilities share."""

    @property
    def access(self) -> Access:
        """What the target must allow; of the instance, since one score of an attack may need more than another."""
        return "text"

    @property
    def shadows(self) -> bool:
        """Whether it runs the defense again on other documents (`AttackLab.defend`), so that its result is of both."""
        return False

    @abstractmethod
    def run(self, target: Any, corpus: Corpus, lab: AttackLab) -> Iterable[Outcome]:
        """Plays; ``target`` has the methods that the declared ``access`` allows, and no more."""

    @abstractmethod
    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        """Scores any subset of outcomes, with no model and no corpus."""


class Attack(Measure):
    """An attack; its headline score is ``leakage``, at most 1, with 0 = chance (below 0 by noise alone).

    Attributes:
        family: among which the worst attack is sought: ``extraction`` draws out what private text holds, ``membership``
            tells whether a text or an author was in it, ``audit`` asks for planted codes, which are nobody's.
        adaptive_to: families of defenses against which this is the attack of one who knows the defense.
        two_sided: whether a leakage far below chance tells as much as one above, so that the attacker takes the sign,
            chosen on other seeds (membership does: over-forgetting is a leak too).
    """

    family: ClassVar[Literal["extraction", "membership", "audit"]]
    passes: ClassVar[str] = ""
    needs: ClassVar[str] = ""
    adaptive_to: ClassVar[tuple[str, ...]] = ()
    two_sided: ClassVar[bool] = False

    def of_brought(self) -> Attack:
        """The form that asks a model which is brought finished, where another asks what made it; itself by default."""
        return self

    def without_base(self) -> Attack | None:
        """What is left of it without the model before the private text: all of it, a part, or nothing (None).

        What compares with that model, or starts from it as shadow models do, would measure the attacked model against
        itself.
        """
        return None if self.shadows else self

    def terms(self, outcomes: Sequence[Outcome]) -> Sequence[Term]:
        """What each unit adds to the leakage: their mean is the headline.

        Terms of a further ``reading`` (another score of the same outcomes) have a mean of their own; which reading an
        attacker takes is chosen on other seeds, or on other persons, for every operating point.

        With one seed, MaxTER chooses a point on some persons and reads it on others. The default derives the terms
        from `score` alone, leaving out one person at a time (Tukey's pseudo-values, exact for means over persons of
        one size); an attack that knows its own terms gives them at once.
        """
        groups = sorted({outcome.group for outcome in outcomes})
        whole = self.score(outcomes).headline.value
        found = []
        for group in groups:
            rest = self.score([outcome for outcome in outcomes if outcome.group != group]).headline.value
            found.append(Term(group, group, len(groups) * whole - (len(groups) - 1) * rest))
        return found


class Utility(Measure):
    """A use the model must still be good for, and what its loss costs in percent.

    What it plays against is the whole `Target`, which can answer without its text guards: nobody here is to be misled.

    Attributes:
        of_guards: whether it prices guards alone: a defense without one is not asked, and pays nothing.
    """

    of_guards: ClassVar[bool] = False

    @abstractmethod
    def cost(self, own: Sequence[Outcome], reference: Sequence[Outcome]) -> float:
        """Percent of the reference that was lost; below 0 where the model got better.

        Args:
            own: of the point in question.
            reference: of the undefended checkpoint of the lowest held-out perplexity.

        Returns:
            NaN where there is nothing to measure it on, infinity where the point's own outcomes are no numbers.
        """
