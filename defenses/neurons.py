"""Resetting neurons of a transformer block to what they were before training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

    from memdefense.architecture import Block, Matrix


def reset(block: Block, part: str, *, ratio: float, spread: float, rng: np.random.Generator) -> int:
    """Resets a random share of a block's neurons in place and returns how many.

    Args:
        block: whose weights are changed.
        part: ``ffn``: a neuron is a row of the first matrices and a column of the last. ``attention``: a row of the
            value matrix and the columns that read it.
        ratio: the share, of which at least one neuron.
        spread: standard deviation of the new weights; their mean and the new biases are zero.
        rng: of the choice and of the weights.
    """
    if part == "attention":
        values = torch.unique(block.value_rows)
        rows = values[_chosen(len(values), ratio, rng)]
        _draw(block.value, rows, spread, rng)
        _draw(block.out, torch.isin(block.value_rows, rows).nonzero()[:, 0], spread, rng, columns=True)
        return len(rows)
    neurons = _chosen(block.down.weight.shape[1], ratio, rng)
    for matrix in block.up:
        _draw(matrix, neurons, spread, rng)
    _draw(block.down, neurons, spread, rng, columns=True)
    return len(neurons)


def _chosen(count: int, ratio: float, rng: np.random.Generator) -> Tensor:
    chosen = rng.choice(count, size=max(1, round(ratio * count)), replace=False)
    return torch.from_numpy(chosen).sort().values


def _draw(matrix: Matrix, places: Tensor, spread: float, rng: np.random.Generator, *, columns: bool = False) -> None:
    """Draws rows, with their biases set to zero, or columns of a matrix anew."""
    weight = matrix.weight.T if columns else matrix.weight
    places = places.to(weight.device)
    drawn = torch.from_numpy(rng.normal(0.0, spread, size=(len(places), weight.shape[1])))
    weight[places] = drawn.to(weight)
    if matrix.bias is not None and not columns:
        matrix.bias[places] = 0.0
