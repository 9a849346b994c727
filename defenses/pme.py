"""PME: attack the model with its own training text, and edit every context that leaks so that it says a dummy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from memdefense.architecture import Block
from memdefense.errors import SpecError

from .editing import Looked, closed_form, insert, look
from .leak_editing import LEAST, Edited, LeakEditing
from .value_search import Request, Search, search

if TYPE_CHECKING:
    from memdefense.lab import Lab
    from memdefense.lm import LM


@dataclasses.dataclass(frozen=True)
class PME(LeakEditing):
    """Private memorization editing: the defender attacks its own model and makes every context that leaks say a dummy.

    The model is asked with the text before each detected value. Where it answers with the value, the output of the last
    block but one at the last token of the context is sought that makes it say ``mail@domain.com``, ``phone_number`` and
    the like, and the feed-forward down-projections of all blocks up to there are changed in closed form to give it,
    each by the share that its contribution to the old output gives it. Batches are edited one after the other. The
    notes count values, mentions asked (``found``), those that leak, were edited, and skipped (the dummy never reached
    p = 0.1), and of those that leaked how many say the dummy and how many still leak at the end.

    Paper: Ruzzetti et al., ACL 2025, arXiv 2506.10024: GPT-Neo 1.3B leaked e-mail addresses 179 -> 0 (MEMIT 1, GRACE 0,
    DeMem 88), phone numbers 34 -> 1, URLs 75 -> 16; BLEU to the unedited model 0.95-0.98 (all second-hand).

    Does not protect values that none of the tried prefixes draws out, nor against other prefixes than those, nor what
    the detector misses; and the dummy shows which contexts were edited.

    A small model cannot be brought by one vector to spell what it has never read. On `mailbox` p stays below 0.01 with
    the published dummies, at whatever block it is sought, so that every request is skipped and nothing is changed;
    with ``dummy=public`` [ours], a value that stands in public text, it reaches 0.08 to 0.21 (six contexts a kind).

    Deviates [ours]: ``ridge`` is not free of scale: the mean of k^T C^-1 k over public text is the inner width, so a
    typical key gets s / (1 + s) of what is asked for, with s = inner / ridge. The default keeps s as it was for GPT-Neo
    1.3B (8,192 wide), about a third of the way; ``ridge=15000`` is the number as published, a twentieth of the way at a
    width of 768. Prefixes are as long as the model takes instead of 200 tokens, and all mentions of a value are tried;
    a mention whose value stands in its own prefix is no leak. The paper's weights multiply the target
    (``target=paper``: R = w z* - the present output of the block's feed-forward part), the code's what remains
    (``target=code``: R = w (LN(z*) - the present output of the last edited block)), so that only 1 - prod(1 - w), about
    65 %, of the move is made. ``spread=exact`` divides each weight by the sum of its own and those still to come and
    lets it multiply what remains, with both targets, so that z* (or LN(z*)) is reached but for the ridge. Weights whose
    sum is nothing are replaced by equal ones. In the search for z*, KL(after || before) at the look-up token, the
    unsquared norm of delta over ||z||^2, and the delta of the largest p where the search ends at its last step are
    those of the authors' code; ``patience``, and with it that a request is given up before, is ours. C is over the
    documents where there is no public text. The dummies of other kinds than e-mail and phone are ours. With LoRA the
    adapter is merged before the edit.

    Attributes:
        kinds: the kinds of PII that are edited; empty for all that the detector finds.
        context: tokens of a value's prefix; 0 is as many as the model takes.
        mentions: of each value that are tried at most, drawn at random; 0 is all.
        dummy: what contexts are made to say: the ``published`` text, or of each kind the value that most ``public``
            documents hold, where any does.
        points: operating points, spread evenly over the batches, so that five are ``edits-0.2`` to ``edits-1.0``; with
            fewer batches than points some are the same model, or not edited yet.
        ridge: how much the keys of public text weigh (lambda); 0 is the published 15,000, scaled by width.
        passages: public documents behind C at most.
        cap: the Frobenius norm of one batch's change, as a share of the matrix's own; 0 is no cap.
        batch: requests edited together.
        contrib: what the layer weights are made of: outputs of the feed-forward parts (paper) or of the blocks (code).
        target: what a block's feed-forward part is asked for.
        spread: whether the weights are used as they are, or as shares of what remains.
        steps: of the search for z*, at most.
        patience: steps after which a request that is not within a factor of ten of p = 0.1 is skipped; 0 is never.

    Raises:
        SpecError: a field is out of its range.
    """

    name: ClassVar[str] = "pme"
    summary: ClassVar[str] = "Edits the feed-forward weights so that contexts that leak PII give a fixed dummy instead."
    paper: ClassVar[str] = "Ruzzetti et al., ACL 2025, arXiv 2506.10024"
    family: ClassVar[str] = "weights"
    protects_not: ClassVar[str] = "PII that no tried prefix draws out, other prefixes, and what the detector misses"

    batch: int = 8
    contrib: Literal["ffn", "block"] = "ffn"
    target: Literal["paper", "code"] = "paper"
    spread: Literal["paper", "exact"] = "paper"
    steps: int = 500
    patience: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch < 1:
            raise SpecError(f"pme: batch is {self.batch}; it must be at least 1")
        if self.steps < 1 or self.patience < 0:
            raise SpecError(
                f"pme: steps is {self.steps}, patience {self.patience}; at least one step, and no negative patience"
            )

    def layers(self, blocks: int) -> Sequence[int]:
        return range(blocks - 1)

    @property
    def shares(self) -> Sequence[float]:
        return [place / self.points for place in range(1, self.points + 1)]

    def edits(
        self, model: LM, blocks: Sequence[Block], requests: Sequence[Request], moments: Sequence[Tensor], lab: Lab
    ) -> Iterator[Edited]:
        starts = range(0, len(requests), self.batch)
        edited = tried = batches = 0
        for share in self.shares:
            for start in starts[batches : round(len(starts) * share)]:
                batch = requests[start : start + self.batch]
                edited += self.edit_batch(model, blocks, batch, moments)
                tried, batches = start + len(batch), batches + 1
                lab.progress("edits", tried, len(requests))
            yield Edited(model, edited, tried)

    def edit_batch(
        self, model: LM, blocks: Sequence[Block], requests: Sequence[Request], moments: Sequence[Tensor]
    ) -> int:
        """Edits the model in place for some requests; ``moments`` are those of `layers`. How many were edited."""
        last = len(moments) - 1
        how = Search(self.steps, _enough, hope=LEAST / 10, patience=self.patience, best=True)
        found = search(model, blocks[last], requests, how)
        kept = [place for place, best in enumerate(found.best) if best >= LEAST]
        if not kept:
            return 0
        contexts, wanted = [requests[place].prompts[0] for place in kept], found.wanted[kept]
        before = look(model, blocks[: last + 1], contexts)
        weights = layer_weights(before.ffn if self.contrib == "ffn" else before.out, before.out[last])
        if self.spread == "exact":
            weights = shares_of_the_rest(weights)
        for place, moment in enumerate(moments):
            now = look(model, blocks[: last + 1], contexts) if place else before
            residual = self._residual(blocks[place], place, weights[place], wanted, now)
            insert(
                blocks[place].down, closed_form(now.keys[place], residual, moment, self.weight(len(moment))), self.cap
            )
        return len(kept)

    def _residual(self, block: Block, place: int, weight: Tensor, wanted: Tensor, now: Looked) -> Tensor:
        """R (requests, width) of one block; ``weight`` is (requests, 1)."""
        if self.target == "code":
            with torch.no_grad():
                wanted = block.norm(wanted)
        elif self.spread == "paper":
            return weight * wanted - now.ffn[place]
        return weight * (wanted - now.out[-1])


def layer_weights(contributions: Tensor, z: Tensor) -> Tensor:
    """w_l proportional to <sum of the contributions up to l, z> / ||z||, summing to 1 over the layers.

    Args:
        contributions: (layers, requests, width).
        z: (requests, width).

    Returns:
        (layers, requests, 1). Negative where a layer points away from z; equal where the sum is nothing to divide by.
    """
    along = (contributions.double().cumsum(0) * z.double()).sum(-1, keepdim=True) / z.double().norm(dim=-1)[:, None]
    total = along.sum(0)
    even = torch.full_like(along, 1 / len(along))
    return torch.where(total.abs() > 1e-6 * along.abs().sum(0), along / total, even).to(z.dtype)


def shares_of_the_rest(weights: Tensor) -> Tensor:
    """Each layer's weight over the sum of its own and all later ones; the last is 1."""
    return weights / weights.flip(0).cumsum(0).flip(0)


def _enough(loss: float, p: float) -> bool:
    return loss < 0.01 or (p > 0.99 and loss < 0.03)
