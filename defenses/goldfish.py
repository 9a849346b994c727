"""Goldfish loss: a share of the tokens is never a target, the same ones in every copy of a passage."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from memdefense.corpus import Documents, Redrawn
from memdefense.defense import Defense, Point
from memdefense.errors import SpecError
from memdefense.packing import Rows, rows
from memdefense.train import Batch, TrainConfig, next_token_loss

if TYPE_CHECKING:
    from memdefense.lab import Lab
    from memdefense.lm import LM

_TABLE, _SEED = 1_000_003, 2_971_215_073
_ROWS = 1 << 9


@dataclasses.dataclass(frozen=True)
class Goldfish(Defense):
    """Next-token training in which about one label in ``k`` is ignored, chosen by a hash of the tokens around it.

    What is never learned has to be guessed when the model recites, and there it leaves the passage. Since the choice
    hangs on the last ``h`` tokens alone, every copy of a passage hides the same labels, however often it is seen. The
    product of the ``h`` tokens that end with the target, modulo 1,000,003, picks an entry of a fixed table of uniform
    numbers; the label is ignored if that is below 1/k. The first h - 1 tokens of a document are always learned.

    Paper: Hans et al. 2024, arXiv 2406.10209: a 7B model trained 100 epochs on 100 Wikipedia articles recites about
    85 % of them verbatim, and none with k = 4; ordinary training of the same length does not differ on benchmarks.

    Does not protect a value as such: in other contexts other tokens of it are hidden, so what stands in many letters is
    learned from all of them; nor short values, of which often no token is hidden; nor how a document begins; nor
    membership, which the labels that are left still give away.

    On `mailbox` (three seeds) prefixes still bring 0.107 of the values where ordinary training leaves 0.160, at 8.7 %
    of perplexity: values recur there in other contexts. What the paper counts cannot be compared: after six passes the
    undefended model recites no passage either.

    Deviates [ours]: the product is exact, where the authors' code lets it overflow 64 bits, so single labels differ and
    the rule and its rate do not; a token of id 0, which would send every context it stands in to the first entry of the
    table, counts as 1 (it separates documents here); ``match_tokens``. The written rule hashes the tokens before the
    target, the authors' code those that end with it, which is the default. Their code hashes within a row and always
    learns its first h - 1 tokens. Here rows are cut anew in every epoch, and then a fifth of what one epoch hides would
    be learned in another; so the tokens hashed are those of one document, and a token whose context was cut off by the
    start of its row is not learned there, whatever its hash.

    Attributes:
        k: one label in k is ignored.
        h: tokens of context that choose.
        context: ``including`` hashes the target and the h - 1 tokens before it, ``preceding`` the h tokens before it.
        match_tokens: trains 1 / (1 - 1/k) times as long, so that as many labels are learned from as without.

    Raises:
        SpecError: a field is out of range.
    """

    name: ClassVar[str] = "goldfish"
    summary: ClassVar[str] = "Ignores one label in k, chosen by a hash of its context, so that no passage is whole."
    paper: ClassVar[str] = "Hans et al. 2024, arXiv 2406.10209"
    family: ClassVar[str] = "training"
    protects_not: ClassVar[str] = "values that recur in other contexts or are short, and membership"

    k: int = 4
    h: int = 13
    context: Literal["including", "preceding"] = "including"
    match_tokens: bool = False

    def __post_init__(self) -> None:
        if self.k < 2 or self.h < 1:
            raise SpecError(f"goldfish: k is {self.k} and h is {self.h}; k must be at least 2 and h at least 1")

    def configure(self, config: TrainConfig, lab: Lab) -> TrainConfig:
        if not self.match_tokens:
            return config
        steps = -(-config.steps * self.k // (self.k - 1))  # whole numbers: a rounded product may be a step too many
        return dataclasses.replace(config, steps=steps, epochs=config.epochs * self.k / (self.k - 1))

    def train(self, model: LM, documents: Documents, lab: Lab) -> Iterable[Point]:
        loss = GoldfishLoss(self.k, self.h, self.context)
        run = rows(lab.config, documents, model, seed=lab.seed)
        lab.note(**_hidden(loss, run, fixed=not isinstance(documents, Redrawn)))
        return lab.fit(model, documents, loss=loss)


@dataclasses.dataclass(frozen=True)
class GoldfishLoss:
    """The next-token loss over the labels that the hash leaves; fields as in `Goldfish`."""

    k: int
    h: int
    context: str

    def __call__(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        return next_token_loss(model, self.masked(batch))

    def masked(self, batch: Batch) -> Batch:
        """The batch with its ignored labels at -100."""
        ignored = self.ignored(batch.ids, batch.offset)
        return dataclasses.replace(batch, labels=batch.labels.masked_fill(ignored, -100))

    def ignored(self, ids: Tensor, offset: Tensor) -> Tensor:
        """Which tokens are no target: bool (B, T).

        Args:
            ids: (B, T) rows of tokens.
            offset: (B, T) each token's place in its document.
        """
        late = self.context == "preceding"  # the hash of h tokens decides about the last of them, or the one after it
        first = self.h - 1 + late
        hidden = torch.ones_like(ids, dtype=torch.bool)  # where the row does not hold the context
        if ids.shape[1] > first:
            windows = ids.clamp_min(1).unfold(1, self.h, 1)  # (B, T - h + 1, h)
            product = windows[..., 0] % _TABLE
            for place in range(1, self.h):
                product = product * (windows[..., place] % _TABLE) % _TABLE  # below 2 ** 40 throughout
            drawn = _table().to(ids.device)[product]
            hidden[:, first:] = drawn[:, : ids.shape[1] - first] < 1 / self.k
        return hidden & (offset >= first)


def _hidden(loss: GoldfishLoss, run: Rows, *, fixed: bool) -> dict[str, float]:
    """How much of a run's labels is ignored, and of a ``fixed`` text how much is never learned in all of it."""
    targets, learned, items = 0, 0, []
    for places in torch.split(torch.arange(len(run)), _ROWS):
        batch = Batch(**run.__getitems__(places.tolist()))
        target = batch.labels != -100
        target[:, 0] = False  # nothing stands before it
        left = target & (loss.masked(batch).labels != -100)
        targets, learned = targets + int(target.sum()), learned + int(left.sum())
        items.append(torch.stack([(batch.document << 32 | batch.offset)[target], left[target]]))
    notes = {"labels_ignored": 1 - learned / max(1, targets)}
    if fixed and targets:
        item, left = torch.cat(items, 1)
        unique, place = item.unique(return_inverse=True)
        ever = torch.zeros(len(unique), dtype=torch.int64).index_add_(0, place, left)
        notes["never_learned"] = float((ever == 0).float().mean())
    return notes


@functools.cache
def _table() -> Tensor:
    """The authors' table: uniform numbers, drawn on the CPU so that every device has the same."""
    return torch.rand(_TABLE, generator=torch.Generator().manual_seed(_SEED))
