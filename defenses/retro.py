"""Training and decoding beside a datastore of neighbours, so that what is rare need not be learned by heart."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from memdefense.corpus import Documents, Redrawn
from memdefense.defense import Defense, Point
from memdefense.errors import NotApplicable, SpecError
from memdefense.train import Batch

from .neighbours import Datastore, Items

if TYPE_CHECKING:
    from memdefense.lab import Lab
    from memdefense.lm import LM, Target

_ROWS = 1 << 9


@dataclasses.dataclass(frozen=True)
class Retro(Defense):
    """kNN-guided training, and decoding mixed with what followed the nearest states of the private text.

    Every private token is stored with the model's state before it. In training the loss of a token is multiplied by
    1 - ``beta`` log p_kNN(token), where p_kNN is what the ``k`` nearest others say, from the states of the model before
    the private text; at generation the model's probabilities count for 1 - ``mix`` and p_kNN, now from its own states,
    for ``mix``. The idea of its authors: what can be looked up need not be learned by heart.

    Paper: RetroPrompt, Chen et al. 2022, arXiv 2205.14704, for classification by prompts, which it reports to hang less
    on single training instances. No figure for language models or privacy is published.

    Does not protect the private text: its datastore *is* the private text, and whoever prompts with a beginning that
    stands there is handed what followed it, whether the model learned it or not (``mix=0`` leaves the datastore out).
    And the weight raises the loss of tokens that nothing else resembles, which is what personal data is made of. An
    attack with access to weights does not see the mixing.

    Here, on one seed: of the 40 random passages of our test, four copies each, the undefended model recites 40 at a
    perplexity of 5.96, the weights alone (``mix=0``) 0 at 5.56, and with mixing 31 at 5.32, which takes the passages'
    loss from 3.45 to 1.40 nats per token: the datastore recites them. The datastore alone (``beta=0``) leaves 40. What
    the weights hold back is no more than early stopping does: the undefended run recites 0 at 5.50 after 29 % of its
    steps, at a loss of 3.26. And it is the floor's work: the 10 % of tokens that no neighbour says hold 65 % of all
    weight, and with ``floor`` at the logarithm of the vocabulary, 6.2 nats, 39 are recited, at 5.96. Copies, being
    neighbours of each other, weigh little, but with ``copies=false``, where they weigh most, 9 are recited, at 7.75.
    Of 30 addresses in four notes each, 30 come back undefended, 3 with weights, 11 with mixing too, at a perplexity of
    6.32, 6.16 and 6.09.

    On `mailbox` (``mix=0``, three seeds) the end of training leaks 0.000 where the undefended leaks 0.160, at a
    perplexity 2 to 4 % *below* it, and yet it is no bargain: 8.7 % fewer next tokens are right, where the model that
    never saw the private text loses 9.7 to 10.2 %. The weight depends on the token that comes, so that the loss is no
    proper score: its optimum gives up to 21 times too much to whatever no neighbour says, which flattens a model that
    was too sure of itself. With one temperature for each model it stands 5 % above the undefended one (two seeds).
    Tokens of values with more than 16 mentions weigh 2.0 on average, where all tokens weigh 2.7, those with 5 to 16
    mentions 3.7 and those seen once 10.7: that repeated text weighs less is a part of it and not the whole. On version
    2 the same weights dealt to the tokens at random left 0.033 of 0.189, at 33 % of perplexity (one seed).
    Asked which of eight values stands in a sentence (`inference`) it names 21 % [14, 29] and 14 % [7, 22] beyond chance
    (two seeds), the undefended model 25 and 28 %; samples, relearning and rounded weights bring nothing back.

    With its datastore (the default; `mailbox`, three seeds, some 143,000 contexts) it hands out twice what the
    undefended model does: the end of training leaks 0.319 [0.26, 0.38] to prefixes where the undefended leaks 0.162, at
    a perplexity 8 to 11 % below it and 4.4 % fewer tokens right; AURC 8 [-20, 36] against 53, 44 points [-5, 94] below
    stopping early. Membership shows 1.00 with and without it (two seeds).

    Deviates [ours]: the token form. The authors multiply a batch's mean loss by 1 + ``beta`` times its mean -log p_kNN;
    here each item has its own factor. An item is a token of a document read alone, its key what enters the output
    embedding before it, as in their code; of neighbours that read the same, all or none count among the ``k``. An
    item never retrieves itself in training, only its exact copies, which are other items; their code excludes nothing,
    so that a label nearly always finds itself, and cuts -log p_kNN at 100 nats to guard against log 0. Here p_kNN *is*
    0 wherever no neighbour has the token, and that ``floor`` is what weighs most: such a token counts 21 times. p_kNN
    is fixed before training, where theirs is refreshed. A document's first token, before which nothing stands, has
    factor 1. The default combines two configurations of theirs: the softmax of -d^2 / ``temperature`` over Euclidean
    distances d, ``k`` and ``temperature`` are from their code for relation extraction, whose own coefficient is 0.001;
    ``beta`` is from that for sentences, which searches by inner product with 32 neighbours and no temperature. The
    mixture is of probabilities, as their formula says: their code adds the logarithms of the weights to probabilities
    instead. Their demonstrations in the input have no counterpart.

    Attributes:
        beta: how much atypical tokens weigh more; 0 is ordinary training.
        mix: share of p_kNN at generation; 0 is the model alone.
        k: neighbours.
        temperature: of their weights, in units of squared distance.
        most: contexts in the datastore; where there are more, every second, third, ... is left of them.
        copies: whether in training an item's exact copies, which follow the same text, are neighbours of it.
        floor: what -log p_kNN is cut at, in nats; a token that no neighbour says weighs 1 + ``beta`` times as much.

    Raises:
        SpecError: a field is out of range.
        NotApplicable: the documents change from epoch to epoch, so that a token has no fixed neighbours.
    """

    name: ClassVar[str] = "retro"
    summary: ClassVar[str] = "Weighs tokens by their neighbours in training, and mixes the neighbours in at generation."
    paper: ClassVar[str] = "Chen et al. 2022, arXiv 2205.14704"
    family: ClassVar[str] = "training"
    protects_not: ClassVar[str] = "the private text, which its datastore is; nor what is atypical, which weighs more"

    beta: float = 0.2
    mix: float = 0.2
    k: int = 16
    temperature: float = 5.0
    most: int = 200_000
    copies: bool = True
    floor: float = 100.0

    def __post_init__(self) -> None:
        if not 0 <= self.beta < math.inf or not 0 <= self.mix < 1 or not 0 < self.temperature < math.inf:
            raise SpecError(
                f"retro: beta is {self.beta}, mix {self.mix} and temperature {self.temperature}; beta cannot be "
                "negative, mix must be at least 0 and below 1, and the temperature above 0"
            )
        if self.k < 1 or self.most < 1:
            raise SpecError(f"retro: k is {self.k} and most is {self.most}; both must be at least 1")
        if not 0 < self.floor < math.inf:
            raise SpecError(f"retro: floor is {self.floor}; it must be above 0 and finite")

    def train(self, model: LM, documents: Documents, lab: Lab) -> Iterable[Point]:
        if isinstance(documents, Redrawn):
            raise NotApplicable("retro keeps neighbours of each token, and these documents are redrawn in every epoch")
        if not self.beta:
            return lab.fit(model, documents)
        items = Items.of(model, documents)
        knobs = [self.k, self.temperature, self.most, self.copies]
        given = lab.cached("neighbours", lambda: self._given(model, items), model, documents, knobs)
        nll = -given.log().clamp_min(-self.floor)
        known = ~nll.isnan()
        if known.any():
            lab.note(knn_nll=float(nll[known].mean()), knn_unseen=float((given[known] == 0).float().mean()))
        return lab.fit(model, documents, loss=RetroLoss(items.lengths, 1 + self.beta * nll.nan_to_num(0.0)))

    def guard(self, target: Target, documents: Documents, lab: Lab) -> Target:
        if not self.mix:
            return target
        lm = target.model
        items = Items.of(lm, documents)
        stride = self._stride(items)
        lab.note(datastore_contexts=float(len(items.places[::stride])), datastore_stride=float(stride))
        if not items.places:
            return target

        def make() -> dict[str, Tensor]:
            return dict(Datastore.of(items.states(lm, stride), items, stride).tensors())

        store = Datastore(**lab.cached("datastore", make, lm, documents, stride)).to(lm.device)
        return target.guarded(law=lambda ids, hidden, logprobs: self._law(store, ids, hidden, logprobs))

    def _stride(self, items: Items) -> int:
        return max(1, -(-len(items.places) // self.most))

    def _given(self, model: LM, items: Items) -> Tensor:
        """p_kNN of every item's token, (items,), NaN where nothing stands before it."""
        if not items.places:
            return torch.full((len(items.context),), torch.nan)
        stride, states = self._stride(items), items.states(model)
        store = Datastore.of(states[::stride].contiguous(), items, stride)
        return store.left_out(items, states, self.k, self.temperature, stride=stride, copies=self.copies)

    def _law(self, store: Datastore, ids: Tensor, hidden: Tensor, logprobs: Tensor) -> Tensor:
        real = torch.nonzero((ids[:, -logprobs.shape[1] :] != -1).flatten()).flatten()
        states, said = hidden.flatten(0, 1), logprobs.flatten(0, 1).clone()
        for rows in torch.split(real, _ROWS):
            theirs = store.probabilities(states[rows], self.k, self.temperature, said.shape[1])
            mixed = torch.logaddexp(said[rows] + math.log1p(-self.mix), theirs.log() + math.log(self.mix))
            said[rows] = mixed
        return said.view_as(logprobs)


class RetroLoss:
    """The sum of weight times -log p over tokens, with a weight per document and offset.

    Args:
        lengths: tokens of each document, its separator included.
        weight: (items,) of each token, documents end to end.
    """

    def __init__(self, lengths: Iterable[int], weight: Tensor) -> None:
        self._start = torch.tensor([0, *lengths]).cumsum(0)  # (documents + 1,)
        self._weight = weight

    def digest(self) -> str:
        """What a result depends on beside the documents."""
        return hashlib.sha256(self._weight.cpu().numpy().tobytes()).hexdigest()

    def __call__(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        if self._start.device != batch.ids.device:
            self._start, self._weight = self._start.to(batch.ids.device), self._weight.to(batch.ids.device)
        logits = model(input_ids=batch.ids, use_cache=False).logits[:, :-1]
        labels = batch.labels[:, 1:]
        learned = labels != -100
        item = (self._start[batch.document[:, 1:]] + batch.offset[:, 1:])[learned]
        nll = cross_entropy(logits[learned].float(), labels[learned], reduction="none")
        return (self._weight[item] * nll).sum(), learned.sum()
