"""MEMIT, mass-editing in a transformer, turned on the contexts that leak: the baseline of PME."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from memdefense.architecture import Block, blocks_of
from memdefense.errors import SpecError
from memdefense.target import LocalTarget

from .editing import closed_form, insert, look
from .leak_editing import Edited, LeakEditing
from .value_search import Request, Search, search

if TYPE_CHECKING:
    from memdefense.lab import Lab
    from memdefense.lm import LM

_FIRST, _LAST, _DEPTH = 3, 8, 28  # the layers edited in GPT-J, of so many
_OPENERS = ("The", "Therefore", "Because", "I", "You")
_OPENING = 10  # tokens of an opening
_TOGETHER = 8  # requests in one forward pass, with all their prompts


@dataclasses.dataclass(frozen=True)
class MEMIT(LeakEditing):
    """Mass-editing memory in a transformer, told that every context that leaks goes on with a dummy.

    Requests are those of `pme`. z* is sought for each of them in the model as it is, at the last edited block in 25
    steps, over the context alone and behind five short openings; then all requests of an operating point are edited at
    once: block by block, the down-projection makes what remains of their way there, divided by the number of blocks
    still to come. Every request is edited, whether its dummy came within reach or not. The notes are those of `pme`.

    Paper: Meng et al., ICLR 2023, arXiv 2210.07229. As a baseline of PME it left 1 of 179 leaked e-mail addresses of
    GPT-Neo 1.3B (Ruzzetti et al., ACL 2025, arXiv 2506.10024; second-hand).

    Does not protect values that none of the tried prefixes draws out, nor against other prefixes than those, nor what
    the detector misses; and the dummy shows which contexts were edited. What `pme` says of ``ridge`` and of dummies out
    of a small model's reach holds here too, and here such requests are edited all the same: on `mailbox` none of some
    800 edited contexts says its dummy (three seeds), while three in ten no longer leak, so that there MEMIT disturbs
    more than it edits.

    Deviates [ours]: all of `pme`'s deviations that are about requests, C and the loss; blocks 3 to 8 of GPT-J's 28, or
    what lies at that depth; openings decoded greedily, ten tokens behind each of five words, where the authors sample;
    operating points at shares of the requests that double, each of them a mass edit of its own of the model as it was,
    in one random order. As in the authors' code a key is half the context's own and half the mean of those behind
    openings. With LoRA the adapter is merged before the edit.

    Attributes:
        kinds: the kinds of PII that are edited; empty for all that the detector finds.
        context: tokens of a value's prefix; 0 is as many as the model takes.
        mentions: of each value that are tried at most, drawn at random; 0 is all.
        dummy: what contexts are made to say: the ``published`` text, or of each kind the value that most ``public``
            documents hold, where any does.
        points: operating points; the last is all requests, and each before it half of the next, so that five are
            ``edits-0.0625`` to ``edits-1.0``.
        ridge: how much the keys of public text weigh (lambda); 0 is the published 15,000, scaled by width.
        passages: public documents behind C at most.
        cap: the Frobenius norm of one edit's change, as a share of the matrix's own; 0 is no cap.
        steps: of the search for z*, at most.

    Raises:
        SpecError: a field is out of its range.
    """

    name: ClassVar[str] = "memit"
    summary: ClassVar[str] = "MEMIT edits a few early-middle blocks so that contexts that leak PII give a dummy."
    paper: ClassVar[str] = "Meng et al., ICLR 2023, arXiv 2210.07229"
    family: ClassVar[str] = "weights"
    protects_not: ClassVar[str] = "PII that no tried prefix draws out, other prefixes, and what the detector misses"

    steps: int = 25

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise SpecError(f"memit: steps is {self.steps}; it must be at least 1")

    def layers(self, blocks: int) -> Sequence[int]:
        """Blocks 3 to 8 of 28, or what lies at the same depth."""
        first = round(_FIRST / _DEPTH * blocks)
        return range(first, max(first, min(round(_LAST / _DEPTH * blocks), blocks - 2)) + 1)

    def openings(self, model: LM) -> Sequence[str]:
        said = LocalTarget(model).generate(_OPENERS, max_new_tokens=_OPENING)
        return [f"{word}{text}. " for word, text in zip(_OPENERS, said, strict=True)]

    @property
    def shares(self) -> Sequence[float]:
        return [0.5**halved for halved in reversed(range(self.points))]

    def edits(
        self, model: LM, blocks: Sequence[Block], requests: Sequence[Request], moments: Sequence[Tensor], lab: Lab
    ) -> Iterator[Edited]:
        last = blocks[self.layers(len(blocks))[-1]]
        requests = [requests[place] for place in lab.rng("order").permutation(len(requests))]
        wanted = []
        for some in _chunks(requests):
            wanted.append(search(model, last, some, Search(self.steps, _enough)).wanted)
            lab.progress("values", len(wanted), -(-len(requests) // _TOGETHER))
        goals = torch.cat(wanted)
        for share in self.shares:
            number = math.ceil(share * len(requests))
            changed = model.copy()
            self._edit(changed, requests[:number], goals[:number], moments)
            lab.progress("edits", number, len(requests))
            yield Edited(changed, number, number)

    def _edit(self, model: LM, requests: Sequence[Request], wanted: Tensor, moments: Sequence[Tensor]) -> None:
        """Edits the model in place so that the last edited block gives what is wanted (requests, width)."""
        blocks = blocks_of(model.model)
        edited = [blocks[place] for place in self.layers(len(blocks))]
        for place, (block, moment) in enumerate(zip(edited, moments, strict=True)):
            keys, out = _read(model, block, edited[-1], requests)
            residual = (wanted - out) / (len(edited) - place)
            insert(block.down, closed_form(keys, residual, moment, self.weight(len(moment))), self.cap)


def _chunks(requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
    for start in range(0, len(requests), _TOGETHER):
        yield requests[start : start + _TOGETHER]


def _read(model: LM, block: Block, last: Block, requests: Sequence[Request]) -> tuple[Tensor, Tensor]:
    """Each request's key at a block (requests, inner), and what the last gives at its context (requests, width)."""
    keys, out = [], []
    for some in _chunks(requests):
        now = look(model, [block, last], [prompt for request in some for prompt in request.prompts])
        plain, behind = _per_request(now.keys[0], some)
        keys.append((plain + behind) / 2)
        out.append(_per_request(now.out[1], some)[0])
    return torch.cat(keys), torch.cat(out)


def _per_request(rows: Tensor, requests: Sequence[Request]) -> tuple[Tensor, Tensor]:
    """What was read at a request's own context, and the mean over those behind an opening: (requests, size) each."""
    own = rows.reshape(len(requests), -1, rows.shape[-1])  # (requests, prompts, size)
    return own[:, 0], own[:, 1:].mean(1)


def _enough(loss: float, p: float) -> bool:
    return loss < 0.05
