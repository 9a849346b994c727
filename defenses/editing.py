"""Locate-and-edit in closed form (Meng et al. 2022, 2023), whatever the blocks: what PME and MEMIT have in common.

A block's feed-forward part is read as a memory: its down-projection W maps a key k, what goes into it at the last token
of a context, to a value. An edit asks for what must come out of one block there (`value_search`), and writes that into
W by least squares, with the keys of public text as what must not change (`closed_form`).

The model runs in float32 and in evaluation mode, the linear system is solved in float64. Contexts are padded on the
left, so that the look-up token is the last of its row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from memdefense.architecture import Block, Matrix

if TYPE_CHECKING:
    from memdefense.corpus import Documents
    from memdefense.lab import Lab
    from memdefense.lm import LM

_TOKENS = 4096  # of public text in one forward pass


@dataclasses.dataclass(frozen=True, slots=True)
class Looked:
    """What passes at the look-up token of some contexts; each tensor is (blocks, contexts, width or inner).

    Attributes:
        keys: what goes into the down-projections.
        ffn: what the feed-forward parts add to the residual stream.
        out: the residual stream after each block.
    """

    keys: Tensor
    ffn: Tensor
    out: Tensor


def look(lm: LM, blocks: Sequence[Block], prompts: Sequence[Sequence[int]]) -> Looked:
    """Runs contexts through the model and reads every block at the last token."""
    keys: list[Tensor] = []
    ffn: list[Tensor] = []
    out: list[Tensor] = []
    handles: list[RemovableHandle] = []
    for block in blocks:
        handles += [
            block.down.module.register_forward_pre_hook(lambda _, inputs: keys.append(inputs[0][:, -1].detach())),
            block.ffn.register_forward_hook(lambda _, __, result: ffn.append(hidden_state(result)[:, -1].detach())),
            block.module.register_forward_hook(lambda _, __, result: out.append(hidden_state(result)[:, -1].detach())),
        ]
    _run(lm, prompts, handles)
    return Looked(torch.stack(keys), torch.stack(ffn), torch.stack(out))


def closed_form(keys: Tensor, residual: Tensor, moment: Tensor, ridge: float) -> Tensor:
    """The change of W that moves its output at the keys by the residual, at the least cost elsewhere.

    Delta = R K^T (ridge C + K K^T)^-1, which minimises ||Delta K - R||^2 + ridge tr(Delta C Delta^T).

    Args:
        keys: (n, inner), one row per key: K^T.
        residual: (n, width): R^T.
        moment: (inner, inner) the second moment C of the keys that should keep their value.
        ridge: how much those weigh.

    Returns:
        (width, inner) in float64. A trace of the mean diagonal (1e-12) is added to the system, so that it can be solved
        where public text is too short for C to have full rank.
    """
    keys, residual = keys.double(), residual.double()  # (n, inner), (n, width)
    system = ridge * moment.double() + keys.T @ keys
    system.diagonal().add_(system.diagonal().mean() * 1e-12)
    solved: Tensor = torch.linalg.solve(system, keys.T)  # (inner, n)
    return residual.T @ solved.T


def insert(matrix: Matrix, change: Tensor, cap: float = 0.0) -> None:
    """Adds a change (out, in) to a matrix in place, scaled so that its norm is at most ``cap`` times the matrix's."""
    weight = matrix.weight
    if cap:
        most = cap * float(weight.double().norm())
        change = change * min(1.0, most / max(float(change.norm()), 1e-300))
    weight.add_(change.to(weight.dtype))


def second_moments(
    lm: LM, blocks: Sequence[Block], places: Sequence[int], documents: Documents, lab: Lab, *, passages: int
) -> list[Tensor]:
    """E[k k^T] over all tokens of up to ``passages`` documents, each cut to the context: (inner, inner) per place.

    Kept in the store under model, text and places. Sums are taken in float64, kept in float32.
    """
    texts = list(documents[:passages])
    downs = [blocks[place].down for place in places]

    def make() -> list[Tensor]:
        rows = sorted((row for row in (lm.encode(text.text)[: lm.context] for text in texts) if row), key=len)
        sums = [torch.zeros(down.weight.shape[1], down.weight.shape[1], dtype=torch.float64) for down in downs]
        for start, stop in _chunks([len(row) for row in rows]):
            for total, own in zip(sums, _products(lm, downs, rows[start:stop]), strict=True):
                total += own
            lab.progress("second moments", stop, len(rows))
        return [(total / max(1, sum(map(len, rows)))).float() for total in sums]

    moments = lab.cached("second moments of feed-forward keys", make, lm, texts, list(places))
    return [moment.to(lm.device) for moment in moments]


def _products(lm: LM, downs: Sequence[Matrix], rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """The sum of k k^T over all tokens of some rows: (inner, inner) per matrix, in float64 on the CPU."""
    keys: list[Tensor] = []
    hooks = [down.module.register_forward_pre_hook(lambda _, inputs: keys.append(inputs[0].detach())) for down in downs]
    mask = _run(lm, rows, hooks).bool()
    flat = [key[mask] for key in keys]  # (tokens, inner)
    return [(key.T @ key).double().cpu() for key in flat]


@torch.no_grad()
def _run(lm: LM, rows: Sequence[Sequence[int]], hooks: Sequence[RemovableHandle]) -> Tensor:
    """Sends rows through the blocks, without the output embedding, takes the hooks away, and gives the mask."""
    ids, mask = left_padded(rows, lm.device)
    try:
        with lm.evaluating():
            lm.model.base_model(ids, attention_mask=mask, position_ids=positions(mask), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return mask


def hidden_state(result: object) -> Tensor:
    """The hidden state in what a block's forward gives, alone or before other things."""
    whole = result[0] if isinstance(result, tuple) else result
    if not isinstance(whole, Tensor):
        raise TypeError(f"a block gives {type(whole).__name__}, not a tensor")
    return whole


def left_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask (rows, longest), padded on the left."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def positions(mask: Tensor) -> Tensor:
    """The place of each token in its row, padding left out."""
    return (mask.cumsum(1) - 1).clamp_min(0)


def _chunks(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ranges of rows, sorted by length, that hold about `_TOKENS` tokens with their padding."""
    start = 0
    while start < len(lengths):
        stop = start + 1
        while stop < len(lengths) and (stop + 1 - start) * lengths[stop] <= _TOKENS:
            stop += 1
        yield start, stop
        start = stop


__all__ = [
    "Looked",
    "closed_form",
    "hidden_state",
    "insert",
    "left_padded",
    "look",
    "positions",
    "second_moments",
]
