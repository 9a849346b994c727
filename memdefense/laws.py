"""How laws and sampling are applied while a model generates."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor
from transformers import LogitsProcessor

from memdefense.access import Law, Sampling


class Hidden:
    """Catches what goes into the output embedding: the hidden state a law may look at."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.value = torch.empty(0)
        head = model.get_output_embeddings()  # type: ignore[operator]
        self._handle = head.register_forward_pre_hook(self._catch)

    def _catch(self, module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.value = inputs[0]

    def remove(self) -> None:
        """Lets go of the model."""
        self._handle.remove()


class Drawn(LogitsProcessor):
    """Applies laws and sampling; a draw is an arg-max after Gumbel noise, so it needs no batch-wide random state."""

    def __init__(
        self,
        laws: tuple[Law, ...],
        sampling: Sampling,
        rows: list[int],
        hidden: Hidden | None,
        width: int,
        mask: Tensor,
    ) -> None:
        self._laws, self._sampling, self._hidden = laws, sampling, hidden
        self._width, self._mask = width, mask
        self._noise = [torch.Generator().manual_seed(_seed(sampling.seed, row)) for row in rows]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logprobs = torch.log_softmax(scores.float(), -1)
        if self._hidden:
            ids = input_ids.clone()
            ids[:, : self._width] = ids[:, : self._width].masked_fill(self._mask == 0, -1)
            for law in self._laws:
                logprobs = law(ids, self._hidden.value[:, -1:], logprobs[:, None])[:, 0]
        if self._sampling.temperature == 0:
            return logprobs
        logprobs = self._sampling.warp(logprobs)
        noise = torch.stack([torch.rand(logprobs.shape[-1], generator=source) for source in self._noise])
        return logprobs - torch.log(-torch.log(noise.clamp_(1e-20, 1 - 1e-7))).to(logprobs.device)


def _seed(seed: int, row: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{row}".encode()).digest()[:8], "little") >> 1


__all__ = ["Drawn", "Hidden"]
