"""Resetting neurons of a transformer block to what they were before training."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memdefense.architecture import blocks_of

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

    from memdefense.architecture import Block, Matrix


def untrained_blocks(model: PreTrainedModel, rng: np.random.Generator) -> list[Block]:
    """The blocks of a model of the same configuration as its own code initialises it, on the CPU, in float32."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(rng.bit_generator.random_raw())
        return blocks_of(type(model)(copy.deepcopy(model.config)))


def reset(block: Block, part: str, *, ratio: float, fresh: Block | None, rng: np.random.Generator) -> int:
    """Resets a random share of a block's neurons in place and returns how many.

    Args:
        block: whose weights are changed.
        part: ``ffn``: a neuron is a row of the first matrices and a column of the last. ``attention``: a row of the
            value matrix and the columns that read it.
        ratio: the share, of which at least one neuron.
        fresh: the same block of an untrained model, from which weights and biases are taken; None for zeros.
        rng: of the choice.
    """
    if part == "attention":
        values = torch.unique(block.value_rows)
        rows = values[_chosen(len(values), ratio, rng)]
        _replace(block.value, fresh.value if fresh else None, rows)
        columns = torch.isin(block.value_rows, rows).nonzero()[:, 0]
        _replace(block.out, fresh.out if fresh else None, columns, columns=True)
        return len(rows)
    neurons = _chosen(block.down.weight.shape[1], ratio, rng)
    for place, matrix in enumerate(block.up):
        _replace(matrix, fresh.up[place] if fresh else None, neurons)
    _replace(block.down, fresh.down if fresh else None, neurons, columns=True)
    return len(neurons)


def _chosen(count: int, ratio: float, rng: np.random.Generator) -> Tensor:
    chosen = rng.choice(count, size=max(1, round(ratio * count)), replace=False)
    return torch.from_numpy(chosen).sort().values


def _replace(matrix: Matrix, fresh: Matrix | None, places: Tensor, *, columns: bool = False) -> None:
    """Takes rows with their biases, or columns, from another matrix; zeros without one."""
    old, new = matrix.weight, fresh.weight if fresh else torch.zeros_like(matrix.weight)
    if columns:
        old, new = old.T, new.T
    old[places.to(old.device)] = new[places.to(new.device)].to(old)
    if matrix.bias is not None and not columns:
        bias = None if fresh is None else fresh.bias
        matrix.bias[places.to(old.device)] = 0.0 if bias is None else bias[places].to(matrix.bias)
