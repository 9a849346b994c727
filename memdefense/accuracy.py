"""The share of held-out tokens that a model would have said: what greedy answers are made of."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from memdefense.attack import Access, Outcome, Utility
from memdefense.interval import clustered_error, normal_quantile
from memdefense.score import Score, Scores

if TYPE_CHECKING:
    from memdefense.access import Target
    from memdefense.corpus import Corpus
    from memdefense.lab import AttackLab


@dataclasses.dataclass(frozen=True)
class Accuracy(Utility):
    """Next-token accuracy on held-out private text: how often the true token is the most probable one.

    It prices what perplexity does not see. A training that makes a model less sure of itself can lower the perplexity
    of an overconfident one while its first choices get worse, as a temperature would lower it for nothing; and what
    greedy answers are made of are first choices. In turn it does not see how sure a model is of them: that is what
    perplexity is for. Read from the same pass, under the guard's law. Tokens that are equally probable all count as
    first choices, so that a law which makes all of them alike is priced by perplexity alone.

    The cost is the share of first choices that are no longer right, in percent of the undefended checkpoint's.
    """

    name: ClassVar[str] = "accuracy"
    summary: ClassVar[str] = "How often the true token of held-out private text is the most probable."

    @property
    def access(self) -> Access:
        return "logprobs"

    def run(self, target: Target, corpus: Corpus, lab: AttackLab) -> Iterator[Outcome]:
        # The whole split in one call, as perplexity asks: one pass serves both.
        signals = target.signals([document.text for document in corpus.held_out])
        for document, signal in zip(corpus.held_out, signals, strict=True):
            values = {"right": float((signal.rank == 0).sum()), "tokens": float(len(signal.rank))}
            yield Outcome(document.id, document.author or document.id, False, values)

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        right, tokens = (np.array([outcome.values[name] for outcome in outcomes]) for name in ("right", "tokens"))
        total = float(tokens.sum())
        if not total:
            return Scores(Score(math.nan, math.nan, math.nan, 0, True), {})
        share = float(right.sum()) / total
        off = clustered_error((right - share * tokens) / total, [outcome.group for outcome in outcomes])
        error = normal_quantile(0.95) * off
        return Scores(Score(share, max(share - error, 0.0), min(share + error, 1.0), len(outcomes), True), {})

    def cost(self, own: Sequence[Outcome], reference: Sequence[Outcome]) -> float:
        mine, theirs = (self.score(outcomes).headline.value for outcomes in (own, reference))
        return 100 * (1 - mine / theirs) if theirs > 0 else math.nan
