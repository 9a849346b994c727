"""Fine-tuning: how documents become batches, what is minimised, and the Trainer that does it.

Order in epoch e is a hash of (seed, e, document id), so two arms of a comparison see the documents they share in the
same order, whatever a defense did to the others.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from memdefense.corpus import Document, Documents, Redrawn
from memdefense.errors import DataError, SpecError, hint
from memdefense.passes import MEASURED_FLOATS
from memdefense.spans import Span, token_mask

if TYPE_CHECKING:
    from memdefense.lm import LM


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


_KNOWN = {
    "schedule": ("linear", "cosine", "constant"),
    "pack": ("tokens", "document", "author"),
    "dtype": ("auto", "float32", "bfloat16"),
}
_LEAST = {"batch_size": 1, "block_size": 2, "checkpoints": 1}  # in a row of one token nothing is predicted


@dataclasses.dataclass(frozen=True, slots=True)
class TrainConfig:
    """How a model is trained; every field is part of a result's recipe.

    Attributes:
        epochs: passes over the documents, fractions allowed.
        steps: optimizer steps; 0 follows from the epochs.
        learning_rate: of AdamW, at its peak.
        warmup_steps: linear from 0.
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
        for name, known in _KNOWN.items():
            if (value := getattr(self, name)) not in known:
                raise SpecError(f"{name} cannot be '{value}'{hint(str(value), known)}")
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

    In pieces that are computed again on the way back: beside the logits and their gradient nothing of their size is
    held. With a large vocabulary such copies are most of a training step's memory.

    Args:
        logits: (N, V).
        labels: (N,) int64.
    """
    rows_a_piece = max(1, MEASURED_FLOATS.get(logits.device.type, 1 << 26) // logits.shape[-1])
    total = torch.zeros((), device=logits.device)
    for part, wanted in zip(torch.split(logits, rows_a_piece), torch.split(labels, rows_a_piece), strict=True):
        nll: Tensor = checkpoint(_nll, part, wanted, use_reentrant=False, preserve_rng_state=False)
        total = total + nll
    return total


def _nll(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum", ignore_index=-100)


Blank = Callable[[str], Sequence[Span]]
"""The spans of characters of a text whose tokens are read and never predicted."""

Column = npt.NDArray[np.int32]
_Row = tuple[Column, Column, Column, Column]  # ids, labels, document, offset


class Rows:
    """All rows of a training run, in the order they are trained on: a map-style data set of four int32 columns."""

    def __init__(self, ids: Column, labels: Column, document: Column, offset: Column) -> None:
        self.columns = {"ids": ids, "labels": labels, "document": document, "offset": offset}

    def __len__(self) -> int:
        return len(self.columns["ids"])

    def __getitems__(self, places: list[int]) -> dict[str, Tensor]:
        return {name: torch.from_numpy(column[places].astype(np.int64)) for name, column in self.columns.items()}

    @property
    def tokens(self) -> int:
        """Tokens trained on, padding left out."""
        return int((self.columns["document"] >= 0).sum())


def ordered(documents: Documents, seed: int, epoch: int) -> list[Document]:
    """The documents in the order of one epoch: sorted by a hash of (seed, epoch, id)."""

    def place(document: Document) -> bytes:
        return hashlib.blake2b(f"{seed}/{epoch}/{document.id}".encode(), digest_size=16).digest()

    return sorted(documents, key=place)


def rows(config: TrainConfig, documents: Documents, lm: LM, *, seed: int, blank: Blank | None = None) -> Rows:
    """Every row of a run: documents of each epoch in its order, tokenized, packed and cut to ``block_size``.

    Raises:
        DataError: no document holds a token, or none is left to predict.
    """
    epochs = [made.columns for made in by_epoch(config, documents, lm, seed=seed, blank=blank)]
    if not any(len(columns["ids"]) for columns in epochs):
        raise DataError(f"{config.epochs:g} epochs of {len(documents)} documents: there is nothing to train on")
    whole = Rows(*(np.concatenate([columns[name] for columns in epochs]) for name in epochs[0]))
    labels = whole.columns["labels"]
    if blank and np.isin(labels[:, 1:], [-100, *lm.separator(), *lm.tokenizer.all_special_ids]).all():
        raise DataError("nothing is left to predict: every token that is trained on lies in a span to leave out")
    return whole


def by_epoch(
    config: TrainConfig, documents: Documents, lm: LM, *, seed: int, blank: Blank | None = None
) -> Iterator[Rows]:
    """The rows of a run, for each epoch that it reads of; a row that two epochs fill is the later one's.

    Raises:
        DataError: no document of an epoch holds a token.
    """
    block = config.block_size
    wanted = config.steps * config.batch_size
    epochs = wanted * block + 1 if wanted else math.ceil(config.epochs)
    tokenized = _Tokenized(lm, documents, blank)
    left: list[list[int]] = [[], [], [], []]
    taken = 0
    for epoch in range(epochs):
        own = ordered(documents.epoch(epoch) if isinstance(documents, Redrawn) else documents, seed, epoch)
        # Rounded first: 2.1 - 2 is a little more than a tenth.
        chosen = own if wanted else own[: math.ceil(round(len(own) * min(1.0, config.epochs - epoch), 6))]
        made = list(_packed(config, tokenized, chosen, left))
        if not made and not left[0] and (chosen or not own):
            raise DataError("no document holds a single token; there is nothing to train on")
        if wanted:
            made = made[: wanted - taken]
        elif left[0] and epoch + 1 == epochs:
            made.append(_padded(left, block))
        taken += len(made)
        yield Rows(*(np.reshape([row[column] for row in made], (-1, block)).astype(np.int32) for column in range(4)))
        if wanted and taken == wanted:
            return


def count_epochs(config: TrainConfig, documents: Documents, lm: LM, *, seed: int = 0) -> int:
    """Of how many epochs a run reads, of the last perhaps in part."""
    return sum(1 for _ in by_epoch(config, documents, lm, seed=seed)) if config.steps else math.ceil(config.epochs)


def step_at(total: int, at: float) -> int:
    """The optimizer step that stands for a fraction of a run of ``total``, at least the first."""
    # Rounded first: 45 * 0.7 is a little less than 31.5.
    return max(1, round(round(total * at, 6)))


def count_steps(config: TrainConfig, documents: Documents, lm: LM, *, seed: int = 0) -> int:
    """How many optimizer steps a run takes; with a fraction of an epoch that depends on the seed."""
    if config.steps:
        return config.steps
    return math.ceil(len(rows(config, documents, lm, seed=seed)) / config.batch_size) if config.epochs else 0


class _Tokenized:
    """Token ids and labels by text, each text tokenized once however many epochs it is seen in."""

    def __init__(self, lm: LM, documents: Documents, blank: Blank | None) -> None:
        self._lm, self._blank = lm, blank
        self._ids: dict[str, tuple[list[int], list[int]]] = {}
        self._index: dict[str, int] = {}
        for document in documents:
            self._index.setdefault(document.id, len(self._index))
        self._end = lm.separator()

    def __call__(self, documents: Sequence[Document]) -> Iterator[tuple[int, list[int], list[int]]]:
        for document in documents:
            known = self._ids.get(document.text)
            if known is None:
                known = self._ids[document.text] = self._labelled(document.text)
            yield self._index.setdefault(document.id, len(self._index)), *known

    def _labelled(self, text: str) -> tuple[list[int], list[int]]:
        ids = self._lm.encode(text)
        whole = ids + self._end
        spans = self._blank(text) if self._blank else ()
        if not spans:
            return whole, whole
        mask = token_mask(self._lm, text, spans).tolist()
        return whole, [-100 if hidden else token for token, hidden in zip(ids, mask, strict=True)] + self._end


def _packed(
    config: TrainConfig, tokenized: _Tokenized, documents: Sequence[Document], left: list[list[int]]
) -> Iterator[_Row]:
    block = config.block_size
    if config.pack != "tokens":
        units: dict[str, list[list[int]]] = {}
        for document, (index, ids, labels) in zip(documents, tokenized(documents), strict=True):
            unit = document.id if config.pack == "document" else document.author or document.id
            row = units.setdefault(unit, [[], [], [], []])
            _extend(row, index, ids, labels)
        for row in units.values():
            yield _padded([column[:block] for column in row], block)
        return
    for index, ids, labels in tokenized(documents):
        _extend(left, index, ids, labels)
        while len(left[0]) >= block:
            yield _padded([column[:block] for column in left], block)
            for column in left:
                del column[:block]


def _extend(row: list[list[int]], index: int, ids: list[int], labels: list[int]) -> None:
    row[0].extend(ids)
    row[1].extend(labels)
    row[2].extend([index] * len(ids))
    row[3].extend(range(len(ids)))


def _padded(row: list[list[int]], block: int) -> _Row:
    short = block - len(row[0])
    fill = (0, -100, -1, 0)
    ids, labels, document, offset = (
        np.asarray(column + [filler] * short, dtype=np.int32) for column, filler in zip(row, fill, strict=True)
    )
    return ids, labels, document, offset


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
