"""PII reconstruction (Lukas et al. 2023): the model itself proposes the candidates for the gap."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from memdefense import Attack, Corpus, LogprobTarget, NotApplicable, Outcome, Sampling, Scores, SpecError, pii
from memdefense.attack import Access, Term

from .extracted import found_everywhere, stratum
from .extraction_report import rate_of
from .filled import Gap, gaps, most_probable, top_outcome
from .filled_report import top_scores, top_terms

if TYPE_CHECKING:
    from memdefense import AttackLab


@dataclasses.dataclass(frozen=True)
class Reconstruction(Attack):
    """Draws continuations of the text before a gap, and fills it with each value of the kind that is among them.

    The candidate that makes the sentence least perplexing is the guess; without a candidate there is none.

    Leakage is the excess of the top-1 rate over chance, as in `inference`: how often the twin is the guess, without
    what the model before the private text reconstructs of value or twin; or, where the corpus has no twins, how often
    that model reconstructs the value with the same prompts and draws [ours]. ``sampled`` is how often the value was
    among the candidates at all.

    Unlike `prefix` it also uses the text behind the gap, and draws; a value that the public detector does not read in a
    continuation is no candidate, and neither is one that a filter of text takes out of the draws.

    Attributes:
        samples: continuations per gap, from the 40 most probable tokens.
        secrets: members asked for, chosen by a hash.
        before: tokens of the sentence before the gap.
        after: tokens after it.
        new_tokens: of each continuation; half the model's context is the end.

    Raises:
        SpecError: a field is out of its range.
    """

    name: ClassVar[str] = "reconstruction"
    family = "extraction"
    summary: ClassVar[str] = "The value that the model itself proposes and then finds most probable in the sentence."
    passes: ClassVar[str] = "samples, 1 pass a candidate, as many of the base"
    needs: ClassVar[str] = "secrets, base model"
    paper: ClassVar[str] = "Lukas et al., S&P 2023, arXiv 2302.00539"
    samples: int = 16
    secrets: int = 100
    before: int = 40
    after: int = 12
    new_tokens: int = 28

    def __post_init__(self) -> None:
        if min(self.samples, self.secrets, self.before, self.after, self.new_tokens) < 1:
            raise SpecError("reconstruction: give at least 1 of everything")

    @property
    def access(self) -> Access:
        return "logprobs"

    def without_base(self) -> None:
        return None

    def run(self, target: LogprobTarget, corpus: Corpus, lab: AttackLab) -> Iterator[Outcome]:
        """Draws candidates for every gap, and fills it with them.

        Raises:
            NotApplicable: the corpus has no secrets in ordinary form.
        """
        found, without = gaps(corpus, lab, secrets=self.secrets, before=self.before, after=self.after)
        if not found:
            raise NotApplicable("the corpus has no PII in ordinary form to reconstruct")
        new = min(self.new_tokens, lab.base.context // 2)
        drawn = Sampling(top_k=40, seed=int(lab.rng("draws").integers(1 << 31)))
        right = self._guessed(target, found, new, drawn)
        base = lab.serve(lab.base)
        known = lab.cached(
            "values the base model reconstructs",
            lambda: self._guessed(base, found, new, drawn),
            lab.base,
            [[gap.secret.kind, gap.filled("\0")] for gap in found],
            [self.samples, new, drawn.seed],
        )
        texts = {document.id: document.text for document in corpus.train}
        for gap, shares, others in zip(found, right, known, strict=True):
            sampled = {"sampled": float(gap.secret.value in shares), "asked": 1.0}
            everywhere = found_everywhere(gap.secret, texts, lab)
            values = {**top_outcome(gap, shares, others, found=everywhere), **sampled}
            lab.keep({"unit": gap.secret.id, "prompt": gap.before, "candidates": " ".join(shares)})
            yield Outcome(gap.secret.id, gap.secret.group, True, values, stratum(gap.secret))
        for secret in without:
            yield Outcome(secret.id, secret.group, True, {"asked": 0.0}, stratum(secret))

    def _guessed(
        self, target: LogprobTarget, found: Sequence[Gap], new: int, drawn: Sampling
    ) -> list[dict[str, float]]:
        """Per gap, the candidates and their shares of being the guess."""
        prompts = [gap.before.rstrip(" ") for gap in found for _ in range(self.samples)]
        said = iter(target.generate(prompts, max_new_tokens=new, sampling=drawn))
        given: list[tuple[Gap, dict[str, str]]] = []
        for gap in found:
            hits = [hit for _ in range(self.samples) for hit in pii.find(next(said), [gap.secret.kind])]
            candidates = {hit.canonical: hit.value for hit in reversed(hits)}
            given.append((gap, {value: candidates[value] for value in sorted(candidates)}))
        return most_probable(target, given)

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        scores = top_scores(outcomes)
        asked = [o for o in outcomes if o.member and o.values["asked"]]
        return Scores(scores.headline, {**scores.beside, "sampled": rate_of(asked, "sampled")})

    def terms(self, outcomes: Sequence[Outcome]) -> list[Term]:
        return top_terms(outcomes)
