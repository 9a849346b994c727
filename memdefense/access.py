"""What an attacker may ask of a model: text, log-probabilities, or the weights; and what a guard may change of it.

One law governs generation and signals alike: a guard's ``law`` is applied to the next-token log-probabilities in
both, so a defense that hides something in one cannot leave it open in the other by accident.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from memdefense.errors import PluginError, SpecError

if TYPE_CHECKING:
    from memdefense.lm import LM

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

Law = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``law(ids, hidden, logprobs) -> logprobs``: ids (B, T) with -1 where padded, hidden (B, K, H) and log-probabilities
(B, K, V) of the last K positions. Pure, and causal: position t may depend on ids up to t only.

A law that reads the log-probabilities or hidden states of earlier positions declares how many in an attribute
``lookback`` (0 without one). Position t then sees those of t - lookback to t as the law before it left them, in
generation and in signals alike, the prompt's own included; fewer where the text begins, so a position whose id is -1
is padding and says nothing. What the law returns of positions that it was lent as history is not used."""
Again = Callable[[Sequence[int], int], list[str]]
"""``again(rows, seed) -> continuations``: some rows of the call drawn anew, as a guard's predecessors leave them. They
are drawn by the sampling that was asked for, at temperature 1 where that was greedy, and with its seed moved on."""
TextGuard = Callable[[Sequence[str], Sequence[str], Again], Sequence[str]]
"""``text(prompts, continuations, again) -> continuations``, all of a call at once."""


def lookback(law: Law) -> int:
    """How many earlier positions a law reads."""
    return int(getattr(law, "lookback", 0))


@dataclasses.dataclass(frozen=True, slots=True)
class Sampling:
    """How a next token is drawn.

    Attributes:
        temperature: 0 is greedy decoding, whose distribution is all on the arg-max.
        top_k: only the k most probable tokens; 0 is the full vocabulary.
        seed: of the draws; the draw for a prompt depends on it and on the prompt's place in the call alone.
    """

    temperature: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf") or self.top_k < 0:
            raise SpecError(
                f"temperature {self.temperature}, top_k {self.top_k}: neither can be negative, and the temperature "
                "must be finite"
            )

    def warp(self, logprobs: Tensor) -> Tensor:
        """The log-probabilities (..., V) that this scheme draws from."""
        if self.temperature == 0:
            best = logprobs.argmax(-1, keepdim=True)
            return torch.full_like(logprobs, -torch.inf).scatter_(-1, best, 0.0)
        if self.temperature != 1:
            logprobs = torch.log_softmax(logprobs / self.temperature, -1)
        if 0 < self.top_k < logprobs.shape[-1]:
            least = logprobs.topk(self.top_k, -1).values[..., -1:]
            logprobs = torch.log_softmax(logprobs.masked_fill(logprobs < least, -torch.inf), -1)
        return logprobs


GREEDY = Sampling(temperature=0.0)
PLAIN = Sampling()


@dataclasses.dataclass(frozen=True, slots=True)
class Signals:
    """What a model says of the tokens of one text, from one teacher-forced pass.

    Attributes:
        tokens: (T,) token ids.
        logprob: (T - 1,) log-probability of tokens 2..T in nats (all T where a context stood before the text).
        mean: the expectation of the log-probability under the model, at the same places.
        std: its standard deviation.
        rank: how many tokens were more probable; 0 = the arg-max.
    """

    tokens: Ints
    logprob: Floats
    mean: Floats
    std: Floats
    rank: Ints


class TextTarget(Protocol):
    """Access ``text``: what a chat window gives."""

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int, sampling: Sampling = GREEDY) -> list[str]: ...

    def continues(self, prompts: Sequence[str], values: Sequence[str]) -> list[bool]: ...


class LogprobTarget(TextTarget, Protocol):
    """Access ``logprobs``: what an API with log-probabilities gives."""

    def signals(
        self, texts: Sequence[str], *, contexts: Sequence[str] | None = None, sampling: Sampling = PLAIN
    ) -> list[Signals]: ...


class WeightTarget(LogprobTarget, Protocol):
    """Access ``weights``: the model itself, past every guard."""

    @property
    def model(self) -> LM: ...


class Target(WeightTarget, Protocol):
    """What guards wrap, and what utilities measure."""

    def guarded(
        self, *, law: Law | None = None, text: TextGuard | None = None, sampling: Sampling | None = None
    ) -> Target: ...

    def unfiltered(self) -> Target:
        """The same weights, laws and sampling, before anything that acts on the text."""
        ...

    def filtered(self, prompts: Sequence[str], continuations: Sequence[str], *, max_new_tokens: int) -> list[str]:
        """What is answered where the model says these continuations; itself where nothing acts on the text."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class _TextOnly:
    """Access ``text`` and nothing beside it."""

    generate: Callable[..., list[str]]
    continues: Callable[..., list[bool]]


@dataclasses.dataclass(frozen=True, slots=True)
class _WithLogprobs(_TextOnly):
    """Access ``logprobs``."""

    signals: Callable[..., list[Signals]]


@dataclasses.dataclass(frozen=True, slots=True)
class _WithWeights(_WithLogprobs):
    """Access ``weights``."""

    model: LM


def limited(target: Target, access: str) -> TextTarget:
    """The part of a target that an attack's declared access allows."""
    if access == "text":
        return _TextOnly(target.generate, target.continues)
    if access == "logprobs":
        return _WithLogprobs(target.generate, target.continues, target.signals)
    if access != "weights":
        raise PluginError(f"'{access}' is no access; an attack declares text, logprobs or weights")
    return _WithWeights(target.generate, target.continues, target.signals, target.model)


__all__ = [
    "GREEDY",
    "PLAIN",
    "Again",
    "Law",
    "LogprobTarget",
    "Sampling",
    "Signals",
    "Target",
    "TextGuard",
    "TextTarget",
    "WeightTarget",
    "limited",
    "lookback",
]
