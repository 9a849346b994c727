"""PII inference (Lukas et al. 2023): which of some given candidates stood in the gap."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from memdefense import Attack, Corpus, NotApplicable, Outcome, Scores, SpecError
from memdefense.attack import Access, Term
from memdefense.match import written_like

from .extracted import found_everywhere, stratum
from .filled import Gap, gaps, most_probable, top_outcome
from .filled_report import top_scores, top_terms

if TYPE_CHECKING:
    from memdefense import AttackLab, LogprobTarget


@dataclasses.dataclass(frozen=True)
class Inference(Attack):
    """A training sentence with each of some candidates where its PII stood; the least perplexing one is the guess.

    The candidates are the value, its twin, and values of the same kind of other people, none of which stands in the
    sentence; all are in canonical form, and numbers in the separators of the original, so that no spelling gives the
    value away.

    Leakage is the excess of the top-1 rate over chance. Chance is how often the twin wins where the corpus has one
    [ours]: other people's values are less plausible in the sentence, and 1 / candidates would be too low. What the
    model before the private text gets right too is then left out and counted (``known_to_base``): it follows from the
    sentence. So is what it gets right of the twin [ours], or the rest would hold more twins that can be guessed than
    values. Without twins nothing is left out, and chance is what the model before the private text gets right in the
    same sentences [ours]: a model that learnt nothing has exactly 0, and what training taught of how such values are
    written, and not of this one, counts as leakage.

    ``top1_found`` is the top-1 rate of the values that the defender's detector finds wherever they stand in the text,
    ``top1_missed`` that of those it misses somewhere: where a defense by PII leaks the second and not the first, it is
    the detector that leaks.

    It needs a list of candidates with the value in it, which an attacker seldom has: an upper bound on extraction.

    Attributes:
        candidates: values per sentence, the right one among them.
        secrets: members asked for, chosen by a hash.
        before: tokens of the sentence before the gap.
        after: tokens after it.

    Raises:
        SpecError: a field is out of its range.
    """

    name: ClassVar[str] = "inference"
    family = "extraction"
    summary: ClassVar[str] = "Which of some given values stood there, by the perplexity of the sentence."
    passes: ClassVar[str] = "1 pass a candidate, as many of the base"
    needs: ClassVar[str] = "secrets, base model"
    paper: ClassVar[str] = "Lukas et al., S&P 2023, arXiv 2302.00539"
    adaptive_to: ClassVar[tuple[str, ...]] = ("generation",)

    candidates: int = 8
    secrets: int = 200
    before: int = 40
    after: int = 12

    def __post_init__(self) -> None:
        if self.candidates < 2 or min(self.secrets, self.before, self.after) < 1:
            raise SpecError("inference: give at least 2 candidates, and at least 1 of everything else")

    @property
    def access(self) -> Access:
        return "logprobs"

    def without_base(self) -> None:
        return None

    def run(self, target: LogprobTarget, corpus: Corpus, lab: AttackLab) -> Iterator[Outcome]:
        """Fills every gap with every candidate.

        Raises:
            NotApplicable: the corpus has no secrets, or only one person's.
        """
        found, without = gaps(corpus, lab, secrets=self.secrets, before=self.before, after=self.after)
        given = [(gap, candidates) for gap, candidates in self._given(found, corpus, lab) if len(candidates) > 1]
        if not given:
            raise NotApplicable("the corpus has no PII with other values of its kind to tell it from")
        right = most_probable(target, given)
        base = lab.serve(lab.base)
        known = lab.cached(
            "fillings the base model prefers",
            lambda: most_probable(base, given),
            lab.base,
            [[gap.filled(written) for written in candidates.values()] for gap, candidates in given],
        )
        texts = {document.id: document.text for document in corpus.train}
        for (gap, _), shares, others in zip(given, right, known, strict=True):
            everywhere = found_everywhere(gap.secret, texts, lab)
            values = {**top_outcome(gap, shares, others, found=everywhere), "asked": 1.0}
            yield Outcome(gap.secret.id, gap.secret.group, True, values, stratum(gap.secret))
        asked = {gap.secret.id for gap, _ in given}
        for secret in (*without, *(gap.secret for gap in found if gap.secret.id not in asked)):
            yield Outcome(secret.id, secret.group, True, {"asked": 0.0}, stratum(secret))

    def _given(self, found: Sequence[Gap], corpus: Corpus, lab: AttackLab) -> Iterator[tuple[Gap, dict[str, str]]]:
        rng = lab.rng("candidates")
        members = [secret for secret in corpus.secrets if secret.member]
        for gap in found:
            secret = gap.secret
            pool = [s.value for s in members if s.kind == secret.kind and s.group != secret.group]
            drawn = [pool[place] for place in rng.permutation(len(pool))]
            listed = [secret.value, *([secret.twin] if secret.twin else [])]
            listed += [value for value in drawn if (secret.kind, value) not in gap.held and value != secret.value]
            # In an order that says nothing of which is which.
            chosen = sorted(dict.fromkeys(listed[: self.candidates]))
            yield gap, {value: written_like(gap.written, secret.kind, value) for value in chosen}

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        return top_scores(outcomes)

    def terms(self, outcomes: Sequence[Outcome]) -> list[Term]:
        return top_terms(outcomes)
