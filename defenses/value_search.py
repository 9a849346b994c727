"""What a block must put out at the look-up token so that the model says a target: the z* of ROME, MEMIT and PME."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from memdefense.architecture import Block, blocks_of
from memdefense.errors import ModelError

from .editing import hidden_state, left_padded, positions

if TYPE_CHECKING:
    from memdefense.lm import LM


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """One edit: behind a context the model is to say something else.

    Attributes:
        prompts: token ids of the context, at least two; behind it, the same context after other openings.
        target: token ids of what is to be said.
    """

    prompts: tuple[tuple[int, ...], ...]
    target: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Search:
    """How z*, the output of a block at the look-up token that makes the model say the target, is found by Adam.

    Each request minimises the mean NLL of its target's tokens, averaged over its prompts, + ``kl`` KL(after || before)
    of the next token at the look-up token + ``decay`` ||delta|| / ||z||^2, where z is the output before and
    z* = z + delta, with ||delta|| <= ``clamp`` ||z||. Requests do not touch each other, however many there are.

    Attributes:
        steps: losses computed at most; the last is not followed by an update.
        enough: ``enough(loss, p)`` ends one request's search; p = exp(-NLL), averaged over its prompts.
        hope: a request whose p has not reached it by then is given up.
        patience: losses until then; 0 is never.
        rate: of Adam.
        best: a search that ends otherwise than by ``enough`` takes the delta of its largest p, not its last.
    """

    steps: int
    enough: Callable[[float, float], bool]
    hope: float = 0.0
    patience: int = 0
    rate: float = 0.5
    kl: float = 0.0625
    decay: float = 0.5
    clamp: float = 0.75
    best: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """The result of a search.

    Attributes:
        z: (requests, width) what the block gives at the look-up token.
        wanted: (requests, width) what it should give.
        best: the largest p each request reached.
        steps: losses computed for each.
    """

    z: Tensor
    wanted: Tensor
    best: list[float]
    steps: list[int]


def longest_tail(lm: LM, target: Sequence[int]) -> int:
    """Tokens, the look-up token included, that a search runs behind the rest of a context."""
    return max(len(target), 1)


def search(lm: LM, block: Block, requests: Sequence[Request], how: Search) -> Found:
    """Finds z* at one block for each request.

    What stands before the look-up token is run once and kept, since the change reaches only what comes after it; so are
    the block and those below it.
    """
    with lm.evaluating():
        rows, fixed = _Rows(lm, requests), _Fixed(lm, block)
        deltas = [torch.zeros(lm.width, device=lm.device, requires_grad=True) for _ in requests]
        optimizer = torch.optim.Adam(deltas, lr=how.rate)
        best, steps = [0.0] * len(requests), [0] * len(requests)
        taken = [delta.detach() for delta in deltas]  # the same memory, so the last of each but where it is replaced
        active = list(range(len(requests)))
        z = torch.zeros(len(requests), lm.width, device=lm.device)
        before = torch.zeros(0)
        for step in range(how.steps):
            with fixed.added(torch.stack(deltas)[rows.owner]):
                nll, after = rows.measure()
            if step == 0:
                z, before = fixed.output[rows.plain, 0], after.detach()
            p = rows.mean(torch.exp(-nll))
            kl = (after.exp() * (after - before[active])).sum(-1)
            size = torch.stack([_length(deltas[place]) for place in active]) / z[active].square().sum(-1)
            loss = rows.mean(nll) + how.kl * kl + how.decay * size
            going = []
            for row, (place, own, likely) in enumerate(zip(active, loss.tolist(), p.tolist(), strict=True)):
                steps[place] = step + 1
                ends = how.enough(own, likely)
                if how.best and (ends or likely > best[place]):
                    taken[place] = deltas[place].detach().clone()
                best[place] = max(best[place], likely)
                hopeless = step + 1 == how.patience and best[place] < how.hope
                if not (hopeless or ends):
                    going.append(row)
            if not going or step + 1 == how.steps:
                break
            optimizer.zero_grad()
            torch.autograd.backward(loss[going].sum())
            if len(going) < len(active):
                active = [active[row] for row in going]
                fixed.keep(rows.keep(active))
            for place, delta in enumerate(deltas):
                if place not in active:  # with a gradient of zeros Adam's momentum would move it on
                    delta.grad = None
            optimizer.step()
            _clamp(deltas, active, how.clamp * z.norm(dim=-1))
    return Found(z, z + torch.stack(taken), best, steps)


class _Rows:
    """The rows of a search: for each request one per prompt, with its target."""

    def __init__(self, lm: LM, requests: Sequence[Request]) -> None:
        heads: list[Sequence[int]] = []
        tails: list[list[int]] = []
        owner: list[int] = []
        self._targets: list[tuple[int, ...]] = []
        for place, request in enumerate(requests):
            for prompt in request.prompts:
                heads.append(prompt[:-1])
                tails.append([prompt[-1], *request.target[:-1]])
                owner.append(place)
                self._targets.append(request.target)
        self._lm = lm
        self.owner = torch.tensor(owner, device=lm.device)
        ids, head_mask = left_padded(heads, lm.device)
        self._tails, tail_mask = _right(tails, lm.device)
        self._mask = torch.cat([head_mask, tail_mask], 1)
        self._places = head_mask.sum(1, keepdim=True) + torch.arange(tail_mask.shape[1], device=lm.device)
        cache = DynamicCache()
        with torch.no_grad():
            lm.model.base_model(
                ids,
                attention_mask=head_mask,
                position_ids=positions(head_mask),
                past_key_values=cache,
                use_cache=True,
            )
        self._kept = _states(cache)
        self._index()

    def keep(self, requests: Sequence[int]) -> Tensor:
        """Goes on with some of the requests, by their first numbers; gives which rows (rows,) stay."""
        stay = torch.isin(self.owner, torch.tensor(requests, device=self.owner.device))
        self._targets = [target for target, kept in zip(self._targets, stay.tolist(), strict=True) if kept]
        self._tails, self._mask, self._places = self._tails[stay], self._mask[stay], self._places[stay]
        self.owner = self.owner[stay]
        self._kept = [(keys[stay], values[stay]) for keys, values in self._kept]
        self._index()
        return stay

    def _index(self) -> None:
        device, width = self.owner.device, self._tails.shape[1]
        said = torch.full((len(self._targets), width), -100, device=device)
        for row, target in enumerate(self._targets):
            said[row, : len(target)] = torch.tensor(target, dtype=torch.long, device=device)
        self._said = said
        counted: tuple[Tensor, Tensor, Tensor] = torch.unique(self.owner, return_inverse=True, return_counts=True)
        self._group, self._sizes = counted[1:]
        self.plain = torch.cat([self._sizes.new_zeros(1), self._sizes.cumsum(0)[:-1]])  # the first row of each request

    def measure(self) -> tuple[Tensor, Tensor]:
        """Mean NLL per row (rows,), and log-probabilities of the next token at the look-up token (requests, V)."""
        cache = DynamicCache()
        for keys, values in self._kept:
            layer = DynamicLayer()  # type: ignore[no-untyped-call]
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            cache.layers.append(layer)
        logits = self._lm.model(
            self._tails,
            attention_mask=self._mask,
            position_ids=self._places,
            past_key_values=cache,
            use_cache=True,
        ).logits.float()
        logprobs = torch.log_softmax(logits, -1)
        real = self._said >= 0
        own = logprobs.gather(-1, self._said.clamp_min(0)[..., None])[..., 0]
        return -(own * real).sum(1) / real.sum(1), logprobs[self.plain, 0]

    def mean(self, values: Tensor) -> Tensor:
        """The mean per request of numbers per row."""
        summed = torch.zeros(len(self._sizes), device=values.device).index_add(0, self._group, values)
        return summed / self._sizes


def _states(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each layer: (rows, heads, tokens, size)."""
    kept = []
    for layer in cache.layers:
        if not isinstance(layer, DynamicLayer) or layer.keys is None or layer.values is None:
            raise ModelError(
                "the model keeps something else than keys and values of its attention; it cannot be edited"
            )
        kept.append((layer.keys, layer.values))
    return kept


class _Fixed:
    """A block whose output changes by a vector alone, so that it and those below it are run at the first step only."""

    def __init__(self, lm: LM, block: Block) -> None:
        stack = [other.module for other in blocks_of(lm.model)]
        self._block = block.module
        self._below = stack[: stack.index(block.module)]
        self._result: object = None

    @property
    def output(self) -> Tensor:
        """(rows, T, width), before any change."""
        return hidden_state(self._result)

    def keep(self, rows: Tensor) -> None:
        """Goes on with some of the rows, (rows,) bool."""
        kept = self.output[rows]
        self._result = (kept, *self._result[1:]) if isinstance(self._result, tuple) else kept

    @contextlib.contextmanager
    def added(self, deltas: Tensor) -> Iterator[None]:
        """Adds a vector (rows, width) to the block's output at the first token."""

        def add(module: nn.Module, inputs: object, result: object) -> object:
            if self._result is None:
                hidden = hidden_state(result).detach()
                self._result = (hidden, *result[1:]) if isinstance(result, tuple) else hidden
            hidden = self.output
            changed = torch.cat([hidden[:, :1] + deltas[:, None], hidden[:, 1:]], 1)
            return (changed, *result[1:]) if isinstance(result, tuple) else changed

        handle = self._block.register_forward_hook(add)
        skipped = [] if self._result is None else [*self._below, self._block]
        for module in skipped:
            module.forward = lambda *_, **__: self._result
        try:
            yield
        finally:
            handle.remove()
            for module in skipped:
                del module.forward


def _right(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    ids, mask = left_padded([row[::-1] for row in rows], device)
    return ids.flip(1), mask.flip(1)


def _length(delta: Tensor) -> Tensor:
    """||delta||, whose gradient at the start, where delta is zero, is taken as zero."""
    return torch.sqrt(delta.square().sum() + torch.finfo(delta.dtype).tiny)


@torch.no_grad()
def _clamp(deltas: Sequence[Tensor], active: Sequence[int], most: Tensor) -> None:
    for place in active:
        norm = deltas[place].norm()
        if norm > most[place]:
            deltas[place].mul_(most[place] / norm)


__all__ = ["Found", "Request", "Search", "longest_tail", "search"]
