"""A lower bound on epsilon from one trained model (Steinke et al. 2023); canaries are its coin flips."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from memdefense import Attack, Corpus, NotApplicable, Outcome, Score, Scores, SpecError
from memdefense.attack import Access, Term
from memdefense.score import rate
from memdefense.strata import bucket

from .epsilon import ceiling, lower_bound

if TYPE_CHECKING:
    from memdefense import AttackLab, LogprobTarget


@dataclasses.dataclass(frozen=True)
class Audit(Attack):
    """How private can the training have been at most, given how well its coins can be guessed back?

    A fair coin decided for every canary whether it was put in, before any defense saw the text. The canaries whose
    value the model finds most probable, next to the model before the private text, are guessed to be in, those at the
    other end to be out, the rest is left alone, and the numbers of both guesses are fixed beforehand. Under epsilon no
    attacker is right more often than `memdefense.attacks.epsilon.p_value` says, so every epsilon that it rejects at
    95 % is refuted: ``epsilon_bound`` with delta = 0, and ``epsilon_bound_delta`` with a delta, which is what stands
    beside the claim in dp-sgd's notes. ``epsilon_ceiling`` is what perfect guesses would have certified: about 3.5
    for 100 of them, 5.8 for 1,000. A bound near its ceiling says that there were too few canaries, a bound of 0 says
    nothing: it is no proof of privacy, and never an estimate of epsilon.

    Leakage is 2 accuracy - 1 of the guesses made [ours]: 0 is coin flipping, 1 certainty. It is bounded, and has an
    interval; the bound has neither an upper limit nor a value for chance.

    What is protected is one canary with all its copies, which have one author: ``epsilon_bound_delta`` is to be held
    against a claim per author, and its N are the authors. A claim per document speaks of the canaries of one copy
    alone: ``epsilon_bound_single``, and ``epsilon_bound_single_delta``, whose N are the documents.

    Paper: Steinke, Nasr & Jagielski 2023, arXiv 2305.08846: the pure bound is the theorem for delta = 0, the other one
    theorem 5.2. Deviates [ours]: canaries have 1 to 64 copies, so a bound is of the easiest of them; a default corpus
    has 100 (``mailbox:canaries=1000`` gives more), and the score is the value's log-probability less the base model's.

    Attributes:
        guesses_in: how many canaries are guessed to be in.
        guesses_out: how many are guessed to be out; where both are 0, a third of the canaries each.
        text: what is scored: the ``value`` after its prefix, or prefix and value as a ``document`` of their own.
        delta: of the bounds with one; 0 is N ** -1.1 for N of what the claim protects, as dp-sgd has it.
        confidence: of the bounds.

    Raises:
        SpecError: a field is out of its range.
    """

    name: ClassVar[str] = "audit"
    family = "audit"
    summary: ClassVar[str] = "A lower bound on epsilon from guessing which canaries were put in."
    passes: ClassVar[str] = "1 pass, 1 of the base"
    needs: ClassVar[str] = "canaries, base model"
    paper: ClassVar[str] = "Steinke, Nasr & Jagielski, NeurIPS 2023, arXiv 2305.08846"
    adaptive_to: ClassVar[tuple[str, ...]] = ("generation",)

    guesses_in: int = 0
    guesses_out: int = 0
    text: Literal["value", "document"] = "value"
    delta: float = 0.0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if min(self.guesses_in, self.guesses_out) < 0 or not 0 <= self.delta < 1 or not 0 < self.confidence < 1:
            raise SpecError(
                f"audit: guesses-in {self.guesses_in}, guesses-out {self.guesses_out}, delta {self.delta}, confidence "
                f"{self.confidence}: guesses cannot be negative, delta must be below 1, confidence between 0 and 1"
            )

    @property
    def access(self) -> Access:
        return "logprobs"

    def without_base(self) -> None:
        return None

    def run(self, target: LogprobTarget, corpus: Corpus, lab: AttackLab) -> Iterator[Outcome]:
        """Scores every canary.

        Raises:
            NotApplicable: the corpus has no canaries.
        """
        if not corpus.canaries:
            raise NotApplicable(
                "the corpus has no canaries, whose coins could be guessed; a benchmark plants some (canaries=1000)"
            )
        # White space before a value belongs to its first token.
        heads = [canary.prefix.rstrip(" ") for canary in corpus.canaries]
        tails = [canary.prefix[len(h) :] + canary.value for h, canary in zip(heads, corpus.canaries, strict=True)]
        before = heads if self.text == "value" else None
        texts = tails if before else [head + tail for head, tail in zip(heads, tails, strict=True)]
        own = target.signals(texts, contexts=before)
        base = lab.serve(lab.base).signals(texts, contexts=before)
        authors = {document.author or document.id for document in corpus.train}
        delta, single = (self.delta or len(units) ** -1.1 for units in (authors, corpus.train))
        for canary, here, there in zip(corpus.canaries, own, base, strict=True):
            score = float(here.logprob.sum(dtype=np.float64) - there.logprob.sum(dtype=np.float64))
            values = {"score": score, "copies": float(canary.copies), "delta": delta, "single_delta": single}
            yield Outcome(canary.id, canary.id, canary.member, values, f"canary/{bucket(canary.copies)}")

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        right = self._guesses(outcomes)
        accuracy = rate(list(right.values()), list(right))
        leakage = Score(2 * accuracy.value - 1, 2 * accuracy.low - 1, 2 * accuracy.high - 1, accuracy.n, False)
        single = [outcome for outcome in outcomes if outcome.values["copies"] == 1]
        beside = {"guesses_right": accuracy}
        for name, some in (("", outcomes), ("_delta", outcomes), ("_single", single), ("_single_delta", single)):
            guesses = self._guesses(some)
            slack = max((o.values[name[1:]] for o in some), default=0.0) if name.endswith("_delta") else 0.0
            n, correct, whole = len(guesses), sum(guesses.values()), len(some)
            bound = lower_bound(correct, n, canaries=whole, delta=slack, confidence=self.confidence)
            most = ceiling(n, canaries=whole, delta=slack, confidence=self.confidence)
            beside[f"epsilon_bound{name}"] = Score(bound, bound, math.inf, n, False, correct)
            beside[f"epsilon_ceiling{name}"] = Score(most, most, most, n)
        return Scores(leakage, beside)

    def terms(self, outcomes: Sequence[Outcome]) -> list[Term]:
        return [Term(unit, unit, 2.0 * right - 1.0) for unit, right in self._guesses(outcomes).items()]

    def _guesses(self, outcomes: Sequence[Outcome]) -> dict[str, bool]:
        """Whether the guess was right, by canary; those that are not guessed are left out."""
        # Ties go by id, which knows nothing of the coin.
        ordered = sorted(outcomes, key=lambda outcome: (-outcome.values["score"], outcome.unit))
        inside, outside = self.guesses_in, self.guesses_out
        if not inside and not outside:
            inside = outside = len(ordered) // 3
        inside = min(inside, len(ordered))
        outside = min(outside, len(ordered) - inside)
        found = {outcome.unit: outcome.member for outcome in ordered[:inside]}
        return found | {outcome.unit: not outcome.member for outcome in ordered[len(ordered) - outside :]}
