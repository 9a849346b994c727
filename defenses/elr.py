"""Early-learning regularization: what a model believed of a token early on holds it back from learning it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from memdefense.corpus import Documents, Redrawn
from memdefense.defense import Defense, Point
from memdefense.errors import NotApplicable, SpecError
from memdefense.train import Batch

if TYPE_CHECKING:
    from memdefense.lab import Lab
    from memdefense.lm import LM

_CEILING = 1 - 1e-4


@dataclasses.dataclass(frozen=True)
class ELR(Defense):
    """Cross-entropy plus a pull towards the running mean of the model's own predictions for each token.

    A model learns first what is regular and only later, by heart, what is not. Every training token keeps a target t,
    an average of the predictions p made for it so far, and the loss adds ``weight`` times log(1 - <t, p>): the gradient
    of a token that the model always found likely is kept alive, that of one it never believed in is held back.

    The term sharpens, since it rewards p for agreeing with itself, and tokens have no one right class. Of two
    continuations with a true share of 0.6 and 0.4 it holds the first, after six epochs of a steady p (t = 0.88 p), at
    0.975 with ``weight`` 3 (or at 0.05, where p lay below 0.43), 0.82 with 1 and 0.63 with 0.3.

    Paper: Liu et al. 2020, arXiv 2007.00151, for image classes with wrong labels, which the model then learns less of.
    No figure for language models is published.

    It hardly protects here: of the 40 random passages of our test, four copies each over 14 epochs, a model trained so
    recites 33 and the undefended one 40, at a perplexity of 6.22 instead of 5.96. On `mailbox` (three seeds) its
    end leaks 0.118 of 0.160, at a perplexity 28 to 33 % above the undefended one: it sharpens what it is sure of. It
    gets 0.1 to 0.6 % fewer next tokens right, and with one temperature for each stands 6 to 8 % above (two
    seeds; that by a script beside the program).

    Does not protect what is seen before the target says otherwise: t starts at zero and grows slowly; nor what follows
    from the model's other text. In one epoch every token is met once, with t = 0.3 p: there is no past to hold it back,
    and the term only sharpens.

    Deviates [ours]: the form for language models. The item is a token of a document, the mean is over tokens, and t
    keeps its ``top`` largest entries (an average of sparse averages is cut back to them at every visit). As in the
    authors' code t takes in the present prediction before it is used, and gradients reach p alone; instead of clamping
    every probability to [0.0001, 0.9999], <t, p> is kept below 0.9999.

    Attributes:
        weight: of the regularizer, the paper's lambda.
        beta: how much of the old target stays.
        top: entries of the target that are kept for each token.

    Raises:
        SpecError: a field is out of range.
        NotApplicable: the documents change from epoch to epoch, so that a token has no past.
    """

    name: ClassVar[str] = "elr"
    summary: ClassVar[str] = "Holds each token's learning to what the model believed of it early on."
    paper: ClassVar[str] = "Liu et al. 2020, arXiv 2007.00151"
    family: ClassVar[str] = "training"
    protects_not: ClassVar[str] = "what is learned in the first epochs, and what other text implies"

    weight: float = 3.0
    beta: float = 0.7
    top: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf") or not 0 <= self.beta < 1 or self.top < 1:
            raise SpecError(
                f"elr: weight is {self.weight}, beta {self.beta} and top {self.top}; weight cannot be negative, beta "
                "must be at least 0 and below 1, and top at least 1"
            )

    def train(self, model: LM, documents: Documents, lab: Lab) -> Iterable[Point]:
        if isinstance(documents, Redrawn):
            raise NotApplicable("elr keeps a target for each token, and these documents are redrawn in every epoch")
        unique = {document.id: document for document in documents}  # a document's number counts distinct ids
        end = len(model.separator())
        lengths = [len(model.encode(document.text)) + end for document in unique.values()]
        return lab.fit(model, documents, loss=ELRLoss(lengths, self.weight, self.beta, self.top))


class ELRLoss:
    """The sum of -log p(y) + weight log(1 - <t, p>) over tokens, with a target t per document and offset.

    Args:
        lengths: tokens of each document, its separator included.
        weight: of the regularizer.
        beta: how much of the old target stays.
        top: entries that a target keeps.
    """

    def __init__(self, lengths: Iterable[int], weight: float, beta: float, top: int) -> None:
        self.weight, self.beta, self.top = weight, beta, top
        counted = torch.tensor([0, *lengths])
        self._start = counted.cumsum(0)  # (documents + 1,)
        items = int(self._start[-1])
        self._token = torch.zeros(items, top, dtype=torch.int32)
        self._share = torch.zeros(items, top)
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []

    def digest(self) -> str:
        """What a result depends on beside the documents."""
        return f"{self.weight} {self.beta} {self.top}"

    def state_dict(self) -> Mapping[str, Tensor]:
        """The targets: which tokens, and their shares, (items, top) each."""
        return {"token": self._token, "share": self._share}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes up saved targets."""
        self._token, self._share = state["token"], state["share"]

    def __call__(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = model(input_ids=batch.ids, use_cache=False).logits[:, :-1]
        labels = batch.labels[:, 1:]
        learned = labels != -100
        logp = logits[learned].float().log_softmax(-1)  # (N, V)
        item = (self._moved(batch.ids.device)[batch.document[:, 1:]] + batch.offset[:, 1:])[learned]  # (N,)
        with torch.no_grad():
            token, share = self._target(item, logp.exp())
            self._waiting.append((item, token, share))
        agreed = (share * logp.gather(1, token).exp()).sum(1).clamp_max(_CEILING)
        nll = -logp.gather(1, labels[learned][:, None]).squeeze(1)
        return (nll + self.weight * torch.log1p(-agreed)).sum(), learned.sum()

    def commit(self, done: bool) -> None:
        """Stores the targets of the step; of a token that stood in it twice, the later one."""
        waiting, self._waiting = self._waiting, []
        if not done or not waiting:
            return
        item, token, share = (torch.cat(column) for column in zip(*waiting, strict=True))
        order = torch.argsort(item, stable=True)
        last = torch.ones_like(item, dtype=torch.bool)
        last[:-1] = item[order][1:] != item[order][:-1]
        kept = order[last]
        self._token[item[kept]] = token[kept].to(torch.int32)
        self._share[item[kept]] = share[kept]

    def _moved(self, device: torch.device) -> Tensor:
        """Where each document's items start; brings everything to the model's device."""
        if self._start.device != device:
            self._start, self._token, self._share = (x.to(device) for x in (self._start, self._token, self._share))
        return self._start

    def _target(self, item: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """beta t + (1 - beta) p cut to its largest entries: tokens and shares, (N, top) each.

        They are among those of t and the largest of p: whatever else p has, as many of p's largest stand above it.
        """
        top = min(self.top, p.shape[1])
        old, share = self._token[item].long(), self._share[item]
        mixed = self.beta * share + (1 - self.beta) * p.gather(1, old) * (share > 0)
        largest, fresh = p.topk(top, 1)
        known = ((fresh[:, :, None] == old[:, None, :]) & (share > 0)[:, None, :]).any(2)
        values = torch.cat([mixed, (1 - self.beta) * largest.masked_fill(known, 0)], 1)
        kept, place = values.topk(self.top, 1)
        return torch.cat([old, fresh], 1).gather(1, place), kept
