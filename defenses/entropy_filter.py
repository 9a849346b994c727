"""What a model is sure of for long it recites: there the next token is drawn hotter."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from memdefense import Defense, Documents, Sampling, SpecError

if TYPE_CHECKING:
    from memdefense import Lab, Target


@dataclasses.dataclass(frozen=True)
class EntropyFilter(Defense):
    """Where the entropy of the next token has stayed under a threshold for a run of tokens, the next is drawn hotter.

    A model that recites is sure of every token. The entropies are those of the model itself, of the prompt's own
    tokens too, so a recited prefix counts; after the run the distribution is taken at a higher temperature, over the
    full vocabulary, until a token was less sure again.

    Paper: a stand-in [ours] for the entropy filter of arXiv 2508.14062, which publishes no threshold, run or
    temperature.

    Does not protect what is said within the first ``run`` sure tokens, nor what the model is not sure of. A temperature
    keeps the order of the tokens: who reads log-probabilities can undo it, and ranks stay as they were.

    Deviates [ours]: everything but the idea. Greedy decoding would leave the arg-max at any temperature, so the guard
    owns the sampling: the full vocabulary at temperature 1. Both temperatures, ``calm`` outside such runs and ``hot``
    within them, are in the law itself, so that they hold whatever scheme a later guard insists on. Drawing at all is a
    part of the effect, and of the cost: ``tau=0`` shows it alone. On planted addresses of which greedy decoding gives
    30 of 30, drawing alone gives 10, the default 9 and ``tau=2`` none, at 7 % more perplexity: a low threshold does
    little.

    Attributes:
        tau: nats under which a next token counts as sure.
        run: how many positions in a row must be sure, the present one among them.
        hot: temperature after such a run.
        calm: temperature elsewhere.

    Raises:
        SpecError: a number out of range.
    """

    name: ClassVar[str] = "entropy-filter"
    summary: ClassVar[str] = "Draws hotter where the model has been sure of itself for several tokens."
    paper: ClassVar[str] = "a stand-in for arXiv 2508.14062"
    family: ClassVar[str] = "generation"
    protects_not: ClassVar[str] = "the first sure tokens, what is recited unsurely, and ranks of tokens"

    tau: float = 0.5
    run: int = 5
    hot: float = 2.0
    calm: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.tau < math.inf or self.run < 1:
            raise SpecError(f"entropy-filter: tau is {self.tau} and run {self.run}; give tau from 0 and run from 1")
        if not 0 < self.calm <= self.hot < math.inf:
            raise SpecError(
                f"entropy-filter: calm is {self.calm} and hot {self.hot}; give temperatures above 0, hot the higher"
            )

    @classmethod
    def grid(cls) -> Sequence[Defense]:
        return [cls(tau=tau) for tau in (0.1, 0.25, 0.5, 1.0, 2.0)]

    @property
    def last(self) -> bool:
        return True

    def guard(self, target: Target, documents: Documents, lab: Lab) -> Target:
        law = _Hotter(self.tau, self.calm, self.hot, self.run - 1)
        seed = int(lab.rng("draws").integers(1 << 62))  # of its own on every run, so that luck does not repeat
        return target.guarded(law=law, sampling=Sampling(seed=seed))


@dataclasses.dataclass(frozen=True)
class _Hotter:
    """The law; it reads the entropies of as many earlier positions as a run has beside the present one."""

    tau: float
    calm: float
    hot: float
    lookback: int

    def __call__(self, ids: Tensor, hidden: Tensor, logprobs: Tensor) -> Tensor:
        entropy = torch.special.entr(logprobs.exp()).sum(-1)  # (B, K)
        sure = (entropy < self.tau) & (ids[:, -entropy.shape[1] :] >= 0)
        # What goes before the first position was not sure.
        recited = torch.nn.functional.pad(sure, (self.lookback, 0)).unfold(1, self.lookback + 1, 1).all(-1)
        changed = logprobs.clone() if self.calm == 1 else torch.log_softmax(logprobs / self.calm, -1)
        changed[recited] = torch.log_softmax(logprobs[recited] / self.hot, -1)
        return changed
