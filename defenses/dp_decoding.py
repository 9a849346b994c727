"""Decoding from a distribution that no model can bend by more than a bound, so that each token tells little of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from memdefense import Defense, Documents, Sampling, SpecError

if TYPE_CHECKING:
    from memdefense import Lab, Target


@dataclasses.dataclass(frozen=True)
class DPDecoding(Defense):
    """Every token is drawn from a flattened distribution, whose probabilities differ by a bounded factor at most
    between any two models.

    ``mix`` draws from lambda p + (1 - lambda) / V, with V the size of the vocabulary: between two models whatever, a
    token's probability differs by a factor of 1 + V lambda / (1 - lambda) at most, so epsilon per token is its
    logarithm. ``clip`` draws from logits clipped to [-b, b] at temperature T: a logit moves by 2b at most and so does
    the logarithm of the normaliser, so epsilon per token is 4b / T. Both add up over tokens and over queries.

    Paper: Majmudar et al. 2022, arXiv 2205.13621, for ``mix``; ``clip`` is the exponential mechanism over bounded
    logits.

    Does not give differential privacy of the training set: nothing was noised in training, the bound holds for one
    answer and grows with every token asked for, and it says nothing of the weights. It is a bound for tokens that are
    drawn, not for log-probabilities: who reads those solves the mixture for p exactly (of ``clip``, for every logit
    within 2b of the largest). A text guard behind it that draws again, as `PatternFilter` with ``action=resample``, has
    up to 1 + ``tries`` answers drawn for the one that is given, so the bound is that many times as large. At epsilons
    that leave readable text it is a matter of degree, not a guarantee. Greedy decoding would leave the arg-max as it
    was (epsilon infinite), so the guard owns the sampling: the full vocabulary, no top-k, temperature 1 (T for
    ``clip``). A guard stacked after it that changes probabilities or sampling makes the bound void; the note
    ``epsilon_per_token`` stands there all the same, since a guard is not told of those behind it.

    Deviates [ours]: logits are defined up to a constant only, and a raw logit of a language model may lie far from 0;
    before they are clipped they are shifted so that the largest is b, which keeps the order within 2b of it. The
    clipped logits still lie in [-b, b] whatever the model says, so the bound stands; with V much larger than
    exp(2b / T) it is nearly attained. The defaults and the grid of lambda are ours.

    Attributes:
        method: ``mix`` with the uniform distribution, or ``clip`` the logits.
        lam: lambda of ``mix``, the share that is left to the model; at least 0 and below 1.
        bound: b of ``clip``.
        temperature: T of ``clip``.

    Raises:
        SpecError: an unknown method, or a number out of range.
    """

    name: ClassVar[str] = "dp-decoding"
    summary: ClassVar[str] = "Draws every token from a flattened distribution, with a bound on what a token tells."
    paper: ClassVar[str] = "Majmudar et al. 2022, arXiv 2205.13621"
    family: ClassVar[str] = "generation"
    protects_not: ClassVar[str] = "the training set as such: the bound is per token and adds up; nor the weights"

    method: Literal["mix", "clip"] = "mix"
    lam: float = 0.9
    bound: float = 5.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.lam < 1:
            raise SpecError(f"dp-decoding: lam is {self.lam}; give at least 0 and less than 1 (1 is no defense)")
        if not (0 < self.bound < math.inf and 0 < self.temperature < math.inf):
            raise SpecError(
                f"dp-decoding: bound is {self.bound} and temperature {self.temperature}; both must be above 0"
            )

    @classmethod
    def grid(cls) -> Sequence[Defense]:
        return [cls(lam=lam) for lam in (0.99, 0.9, 0.75, 0.5, 0.25)]

    @property
    def last(self) -> bool:
        return True

    def epsilon(self, vocabulary: int) -> float:
        """The bound per token, in nats, for a vocabulary of that size."""
        if self.method == "clip":
            return 4 * self.bound / self.temperature
        return math.log1p(vocabulary * self.lam / (1 - self.lam))

    def guard(self, target: Target, documents: Documents, lab: Lab) -> Target:
        lab.note(epsilon_per_token=self.epsilon(int(target.model.model.config.get_text_config().vocab_size)))
        seed = int(lab.rng("draws").integers(1 << 62))  # of its own on every run, so that luck does not repeat
        return target.guarded(law=self._law, sampling=Sampling(seed=seed))

    def _law(self, ids: Tensor, hidden: Tensor, logprobs: Tensor) -> Tensor:
        if self.method == "clip":
            shifted = logprobs - logprobs.amax(-1, keepdim=True) + self.bound
            return torch.log_softmax(shifted.clamp(-self.bound, self.bound) / self.temperature, -1)
        uniform = logprobs.new_tensor(math.log1p(-self.lam) - math.log(logprobs.shape[-1]))
        return torch.logaddexp(logprobs + (math.log(self.lam) if self.lam else -math.inf), uniform)
