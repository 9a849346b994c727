"""How laws and sampling are applied: over whole texts, and step by step while a model generates."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

from memdefense.access import Law, Sampling, lookback
from memdefense.errors import PluginError


def applied(laws: Sequence[Law], ids: Tensor, hidden: Tensor, logprobs: Tensor, kept: int) -> Tensor:
    """The log-probabilities (B, kept, V) of the last positions behind every law, in order.

    Args:
        laws: each sees what the one before it left.
        ids: (B, T), -1 where padded.
        hidden: (B, K, H) of the last K positions.
        logprobs: (B, K, V) of the same; K is ``kept`` and all laws' lookback, or less where no more went before.
        kept: how many positions are asked for.
    """
    for place, law in enumerate(laws):
        changed = law(ids, hidden[:, -logprobs.shape[1] :], logprobs)
        if changed.shape != logprobs.shape:
            raise PluginError(
                f"a guard's law made log-probabilities of shape {tuple(changed.shape)} out of {tuple(logprobs.shape)}; "
                "it must keep the shape"
            )
        logprobs = changed[:, -(kept + reach(laws[place + 1 :])) :]
    return logprobs[:, -kept:]


def reach(laws: Sequence[Law]) -> int:
    """How many earlier positions several laws, one after another, read between them."""
    return sum(lookback(law) for law in laws)


class Caught:
    """What a model's last pass made: the hidden states that went into the output embedding, and the logits."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.hidden = self.logits = torch.empty(0)
        head: torch.nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        self._handles = [head.register_forward_pre_hook(self._before), model.register_forward_hook(self._after)]

    def _before(self, module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.hidden = inputs[0]

    def _after(self, module: torch.nn.Module, inputs: object, output: Any) -> None:
        self.logits = output.logits

    def remove(self) -> None:
        """Lets go of the model."""
        for handle in self._handles:
            handle.remove()


class Drawn(LogitsProcessor):
    """Applies laws and sampling; a draw is an arg-max after Gumbel noise, so it needs no batch-wide random state.

    What the laws look back on is kept as the model said it, and they are applied to all of it at every step: a law
    never sees an earlier answer of its own.
    """

    def __init__(
        self,
        laws: tuple[Law, ...],
        sampling: Sampling,
        rows: list[int],
        caught: Caught | None,
        width: int,
        mask: Tensor,
    ) -> None:
        self._laws, self._sampling, self._caught = laws, sampling, caught
        self._width, self._mask = width, mask
        self._noise = [torch.Generator().manual_seed(_seed(sampling.seed, row)) for row in rows]
        self._hidden = self._logprobs = torch.empty(0)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._caught:
            ids = input_ids.clone()
            ids[:, : self._width] = ids[:, : self._width].masked_fill(self._mask == 0, -1)
            self._remember(self._caught, ids.shape[1])
            logprobs = applied(self._laws, ids, self._hidden, self._logprobs, 1)[:, -1]
        else:
            logprobs = torch.log_softmax(scores.float(), -1)
        if self._sampling.temperature == 0:
            return logprobs
        logprobs = self._sampling.warp(logprobs)
        # In double: float32 has no numbers near enough to 1, and tokens of small probability would come too seldom.
        size = logprobs.shape[-1]
        noise = torch.stack([torch.rand(size, generator=source, dtype=torch.float64) for source in self._noise])
        gumbel = -torch.log(-torch.log(noise.clamp_(1e-300, 1 - 2**-53)))
        return logprobs + gumbel.to(logprobs.device, logprobs.dtype)

    def _remember(self, caught: Caught, tokens: int) -> None:
        """Moves the history on to the last pass: of one position, or of several where there was no cache before it."""
        kept = 1 + reach(self._laws)
        hidden, logprobs = caught.hidden[:, -kept:], torch.log_softmax(caught.logits[:, -kept:].float(), -1)
        if logprobs.shape[1] < min(kept, tokens):
            hidden = torch.cat([self._hidden, hidden], 1)[:, -kept:]
            logprobs = torch.cat([self._logprobs, logprobs], 1)[:, -kept:]
        self._hidden, self._logprobs = hidden, logprobs


def _seed(seed: int, row: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{row}".encode()).digest()[:8], "little") >> 1


__all__ = ["Caught", "Drawn", "applied", "reach"]
