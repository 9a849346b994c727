"""How a model is trained: settings, batches, and what is minimised."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from memdefense.errors import SpecError
from memdefense.fields import check_fields
from memdefense.passes import MEASURED_FLOATS


@dataclasses.dataclass(frozen=True, slots=True)
class LoRA:
    """Low-rank adapters (Hu et al. 2022) instead of all weights; merged into the weights at every checkpoint.

    Attributes:
        rank: of the update.
        alpha: its scale is alpha / rank.
        targets: module names; empty is every linear layer but the output embedding.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] = ()


_LEAST = {"batch_size": 1, "block_size": 2, "checkpoints": 1}  # in a row of one token nothing is predicted


@dataclasses.dataclass(frozen=True, slots=True)
class TrainConfig:
    """How a model is trained; every field is part of a result's recipe.

    Attributes:
        epochs: passes over the documents, fractions allowed.
        steps: optimizer steps; 0 follows from the epochs.
        learning_rate: of AdamW, at its peak.
        warmup_steps: linear from 0; at most a fifth of all steps, so that little text is trained on at the peak too.
        schedule: what follows the warm-up.
        batch_size: rows per optimizer step, over all devices.
        block_size: tokens per row.
        pack: ``tokens`` fills rows with documents end to end; ``document`` and ``author`` keep one unit per row.
        dtype: of the matrix products; weights and optimizer stay in float32. ``auto``: bfloat16 where the hardware
            has it.
        checkpoints: operating points kept, evenly spaced, the last at the end.
        lora: adapters instead of all weights.

    Raises:
        SpecError: a field is out of its range, or a name is not known.
    """

    epochs: float = 3.0
    steps: int = 0
    learning_rate: float = 2e-5
    warmup_steps: int = 0
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: float = 0.01
    batch_size: int = 8
    block_size: int = 128
    pack: Literal["tokens", "document", "author"] = "tokens"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    checkpoints: int = 5
    max_grad_norm: float = 1.0
    lora: LoRA | None = None

    def __post_init__(self) -> None:
        check_fields(self, "training")
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise SpecError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.steps < 0 or not 0 <= self.epochs < math.inf or not 0 < self.learning_rate < math.inf:
            raise SpecError(
                f"epochs {self.epochs}, steps {self.steps}, learning rate {self.learning_rate}: epochs and steps "
                "cannot be negative, and the learning rate must be above 0"
            )
        for name in ("warmup_steps", "weight_decay", "max_grad_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SpecError(f"{name} is {getattr(self, name)}; it cannot be negative")


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch: all tensors are (B, T) int64 on the model's device.

    Attributes:
        ids: token ids.
        labels: the same, -100 where nothing is to be predicted. Unshifted: position t is predicted from t - 1.
        document: which document a token is of, as an index into the documents given to `fit`; -1 is padding.
        offset: the token's place in that document.
    """

    ids: Tensor
    labels: Tensor
    document: Tensor
    offset: Tensor


class Loss(Protocol):
    """``loss(model, batch) -> (sum, count)``: divided once per optimizer step, over all of its micro-batches."""

    def __call__(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]: ...


@runtime_checkable
class StatefulLoss(Loss, Protocol):
    """A loss that keeps something from step to step; `fit` trains with a copy of it and saves it at checkpoints.

    What it takes from a step's micro-batches counts from `commit` on, so that their size does not change the result.
    """

    def commit(self, done: bool) -> None:
        """After a step's last micro-batch; not ``done`` if the step starts over, and what it left is to be dropped."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """All it keeps."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what `state_dict` gave."""


def next_token_loss(model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The sum of -log p(token | tokens before it) in nats, and how many tokens it is over."""
    logits = model(input_ids=batch.ids, use_cache=False).logits
    # The labels are shifted and not the logits, which would be copied.
    labels = torch.nn.functional.pad(batch.labels[:, 1:], (0, 1), value=-100)
    return summed_nll(logits.flatten(0, 1), labels.flatten()), (labels != -100).sum()


def summed_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum of -log softmax(logits)[label] in nats, in float32 whatever the logits are in, label -100 left out.

    In pieces, whose softmax is computed again on the way back and becomes the gradient in place: beside the logits and
    their gradient nothing of their size is held. With a large vocabulary such copies are most of a training step's
    memory, and of a small model's time.

    Args:
        logits: (N, V).
        labels: (N,) int64.
    """
    total: Tensor = _SummedNLL.apply(logits, labels)  # type: ignore[no-untyped-call]
    return total


class _SummedNLL(torch.autograd.Function):
    """d/dz of the sum over rows of logsumexp(z) - z[label] is softmax(z), less 1 at the label."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        total = torch.zeros((), device=logits.device)
        normalizers = torch.empty(len(logits), device=logits.device)
        kept = labels != -100
        picked = labels.clamp_min(0)
        for piece in _pieces(logits):
            floats = logits[piece].float()
            normalizers[piece] = floats.logsumexp(-1)
            nll = normalizers[piece] - floats.gather(-1, picked[piece, None]).squeeze(-1)
            total += nll.masked_fill_(~kept[piece], 0.0).sum()
        ctx.save_for_backward(logits, labels, normalizers)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, labels, normalizers = ctx.saved_tensors
        out = torch.empty_like(logits)
        weight = torch.where(labels != -100, grad.float(), 0.0)[:, None]
        picked = labels.clamp_min(0)[:, None]
        for piece in _pieces(logits):
            floats = (logits[piece] - normalizers[piece, None]).exp_().mul_(weight[piece])  # float32: normalizers are
            out[piece] = floats.scatter_add_(-1, picked[piece], -weight[piece])
        return out, None


def _pieces(logits: Tensor) -> list[slice]:
    rows = max(1, MEASURED_FLOATS.get(logits.device.type, 1 << 26) // logits.shape[-1])
    return [slice(start, start + rows) for start in range(0, len(logits), rows)]


def precision(dtype: str, device: str, *, width: int = 1 << 30) -> Literal["float32", "bfloat16"]:
    """What ``auto`` means on this machine: bfloat16 where it is the hardware's own and pays, float32 elsewhere.

    Args:
        dtype: as in `TrainConfig`.
        device: ``cpu`` or ``cuda``.
        width: of the model's hidden state. On a CPU the conversions of a narrow model cost more than its products
            gain: a Llama of width 64 trained 2.4 times slower in bfloat16, a GPT-2 of width 192 1.8 times faster.
    """
    if dtype == "bfloat16":
        return "bfloat16"
    if dtype == "auto":
        if device.startswith("cuda"):
            return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
        if device == "cpu" and width >= _WIDE and torch.cpu._is_avx512_bf16_supported():
            return "bfloat16"
    return "float32"


_WIDE = 128
