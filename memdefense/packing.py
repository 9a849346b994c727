"""How documents become the rows of a training run.

Order in epoch e is a hash of (seed, e, document id), so two arms of a comparison see the documents they share in the
same order, whatever a defense did to the others.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from memdefense.corpus import Document, Documents, Redrawn
from memdefense.errors import DataError
from memdefense.spans import Span, token_mask
from memdefense.train import TrainConfig

if TYPE_CHECKING:
    from memdefense.lm import LM

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
