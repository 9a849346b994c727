"""The sum of clipped per-example gradients of a language model, by hooks, with one forward and one backward pass.

A layer's weight gradient for one example is a sum over its positions of outer products of what went in and the
gradient of what came out. Both are caught in the pass; from them come first every example's norm over all weights,
then the sum of the gradients, each scaled to at most the clipping norm. A weight that several layers use (tied
embeddings) has the sum over its uses as its gradient, as it must before a norm is taken.

Norms come either from the gradients themselves (examples, out, in) or, without them, from inner products between
positions (ghost clipping, Li et al. 2022, arXiv 2110.05679); the second backward pass of that paper is not needed (Bu
et al. 2023, arXiv 2210.00038).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from memdefense.errors import ModelError

Ghost = Literal["auto", "on", "off"]
Layers = Mapping[str, nn.Module]
_ROOM = 512 * 2**20  # bytes that the gradients of all examples may fill
_KNOWN = "Linear, Conv1D, Embedding, LayerNorm and RMSNorm"


@dataclasses.dataclass(frozen=True)
class Use:
    """One use of a matrix in a pass: the gradient of example b is the sum over t of ``rows[b, t] x columns[b, t]``.

    Attributes:
        rows: (B, T, out) float32; or (B, T) int64, which stands for rows that are one at this place and zero elsewhere.
        columns: (B, T, in) float32.
    """

    rows: Tensor
    columns: Tensor


Uses = dict[nn.Parameter, list[Use | Tensor]]
"""What a pass left of each weight: uses of a matrix, or of a vector its gradients (B, size)."""


def trained_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that hold weights to be trained, by name.

    Raises:
        ModelError: there are none, or one is of a kind whose per-example gradient is not known.
    """
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        own = {key for key, weight in module.named_parameters(recurse=False) if weight.requires_grad}
        if not own:
            continue
        if not _known(module, own):
            raise ModelError(
                f"dp-sgd: no per-example gradient is known for {name or 'the model'} ({type(module).__name__}, "
                f"{', '.join(sorted(own))}); known are {_KNOWN}. Train adapters instead (lora), or another model"
            )
        found[name] = module
    if not found:
        raise ModelError("dp-sgd: the model has no weight that is trained")
    return found


def add_clipped(layers: Layers, losses: Callable[[], Tensor], *, clip: float, ghost: Ghost = "auto") -> Tensor:
    """Adds the sum of clipped per-example gradients to the ``grad`` of every trained weight.

    Args:
        layers: as `trained_layers` gives them.
        losses: runs the model and gives one loss per example (B,); no example may depend on another.
        clip: the largest norm an example's gradient keeps, over all weights together.
        ghost: whether norms are taken without the gradients themselves, in less memory and more time; ``auto``: where
            these would fill more than 512 MiB.

    Returns:
        (B,) float32: the norms before clipping.

    Raises:
        ModelError: a weight is used outside its layer, or for all examples at once.
    """
    uses, examples = _passed(layers, losses)
    if ghost == "auto":
        ghost = "on" if 4 * examples * sum(weight.numel() for weight in uses) > _ROOM else "off"
    kept: dict[nn.Parameter, Tensor] = {}
    squares = torch.zeros(examples, device=next(iter(uses)).device)
    for weight, own in uses.items():
        if ghost == "off" or isinstance(own[0], Tensor):
            kept[weight] = _gradients(weight, own)
            squares += kept[weight].flatten(1).square().sum(1)
        else:
            squares += _ghost_squares(own)
    norms = squares.clamp_min(0).sqrt()
    scale = (clip / norms.clamp_min(1e-12)).clamp_max(1.0)  # (B,)
    for weight, own in uses.items():
        if weight in kept:
            total = torch.einsum("b,bn->n", scale, kept.pop(weight).flatten(1)).view_as(weight)
        else:
            total = _weighted(weight, own, scale)
        weight.grad = total if weight.grad is None else weight.grad.add_(total)
    return norms


def _passed(layers: Layers, losses: Callable[[], Tensor]) -> tuple[Uses, int]:
    """One forward and backward pass in which no weight gets a gradient of its own."""
    weights = {weight for layer in layers.values() for weight in layer.parameters(recurse=False)}
    trained = [weight for weight in weights if weight.requires_grad]
    uses: Uses = {}
    met: list[tuple[str, int]] = []

    def catch(name: str, layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        if not output.requires_grad:
            output.requires_grad_()
        source = given[0].detach()
        met.append((name, len(source)))

        def caught(gradient: Tensor) -> None:
            for key, use in _uses(layer, source, gradient):
                weight = layer.get_parameter(key)
                if weight in wanted:
                    uses.setdefault(weight, []).append(use)

        output.register_hook(caught)  # type: ignore[no-untyped-call]

    wanted = set(trained)
    with _hooked(layers, catch), _frozen(trained):
        each = losses()
        each.sum().backward()  # type: ignore[no-untyped-call]
    for name, size in met:
        if size != len(each):
            raise ModelError(
                f"dp-sgd: layer {name} is given {size} rows for {len(each)} examples, so what one of them adds to its "
                "weights cannot be told"
            )
    for name, layer in layers.items():
        for key, weight in layer.named_parameters(recurse=False):
            if weight in wanted and weight not in uses:
                raise ModelError(f"dp-sgd: {name}.{key} is trained, but no example's loss depends on it")
    return uses, len(each)


@contextmanager
def _hooked(layers: Layers, catch: Callable[[str, nn.Module, tuple[Tensor, ...], Tensor], None]) -> Iterator[None]:
    handles = [layer.register_forward_hook(functools.partial(catch, name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _frozen(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Autograd would add a third to the pass for sums over the batch that nobody needs."""
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_()


def _known(module: nn.Module, trained: set[str]) -> bool:
    if type(module) in (nn.Linear, Conv1D, nn.LayerNorm):
        return trained <= {"weight", "bias"} and not (
            isinstance(module, nn.LayerNorm) and len(module.normalized_shape) > 1
        )
    if type(module) is nn.Embedding:
        return module.max_norm is None and not module.scale_grad_by_freq
    return type(module).__name__.endswith("RMSNorm") and trained == {"weight"} and _epsilon(module) is not None


def _epsilon(norm: nn.Module) -> float | None:
    for name in ("variance_epsilon", "eps"):
        value = getattr(norm, name, None)
        if isinstance(value, float):
            return value
    return None


def _uses(layer: nn.Module, source: Tensor, gradient: Tensor) -> Iterator[tuple[str, Use | Tensor]]:
    """What one call of a layer adds to its weights, in float32 whatever the pass was in.

    Args:
        layer: one of the known kinds.
        source: its input (B, T, in), or token ids (B, T).
        gradient: of the loss with respect to its output (B, T, out).
    """
    gradient = gradient.float()
    if isinstance(layer, nn.Embedding):
        if layer.padding_idx is not None:
            gradient = gradient.masked_fill((source == layer.padding_idx).unsqueeze(-1), 0.0)
        yield "weight", Use(source, gradient)
        return
    source = source.float()
    if isinstance(layer, nn.Linear):
        yield "weight", Use(gradient, source)
    elif isinstance(layer, Conv1D):
        yield "weight", Use(source, gradient)
    elif isinstance(layer, nn.LayerNorm):
        even = nn.functional.layer_norm(source, layer.normalized_shape, eps=layer.eps)
        yield "weight", (even * gradient).flatten(1, -2).sum(1)
    else:
        even = source * torch.rsqrt(source.square().mean(-1, keepdim=True) + (_epsilon(layer) or 0.0))
        yield "weight", (even * gradient).flatten(1, -2).sum(1)
    if isinstance(getattr(layer, "bias", None), nn.Parameter):
        yield "bias", gradient.flatten(1, -2).sum(1)


def _gradients(weight: nn.Parameter, uses: Sequence[Use | Tensor]) -> Tensor:
    """The gradient of every example (B, *shape)."""
    total: Tensor | None = None
    for use in sorted(uses, key=lambda use: isinstance(use, Use) and use.rows.dim() == 2):  # products first
        if isinstance(use, Tensor):
            total = use if total is None else total + use
        elif use.rows.dim() == 3:
            product = use.rows.transpose(1, 2) @ use.columns
            total = product if total is None else total.add_(product)
        else:
            if total is None:
                total = torch.zeros(len(use.rows), *weight.shape, device=weight.device)
            first = torch.arange(len(use.rows), device=weight.device).unsqueeze(1) * len(weight)
            total.view(-1, weight.shape[1]).index_add_(0, (use.rows + first).flatten(), use.columns.flatten(0, 1))
    assert total is not None
    return total


def _ghost_squares(uses: Sequence[Use | Tensor]) -> Tensor:
    """The squared norm of every example's gradient of one matrix (B,): the sum over all pairs of uses."""
    matrices = [use for use in uses if isinstance(use, Use)]
    total = torch.zeros(len(matrices[0].rows), device=matrices[0].columns.device)
    for place, left in enumerate(matrices):
        for other, right in enumerate(matrices[: place + 1]):
            columns = left.columns @ right.columns.transpose(1, 2)  # (B, T, T')
            products = (columns * _row_products(left.rows, right.rows)).sum((1, 2))
            total += products if other == place else 2 * products
    return total


def _row_products(left: Tensor, right: Tensor) -> Tensor:
    """Inner products of all rows of two uses (B, T, T')."""
    if left.dim() == 3 and right.dim() == 3:
        return left @ right.transpose(1, 2)
    if left.dim() == 2 and right.dim() == 2:
        return (left.unsqueeze(2) == right.unsqueeze(1)).float()
    if left.dim() == 2:
        return _row_products(right, left).transpose(1, 2)
    return left.gather(2, right.unsqueeze(1).expand(-1, left.shape[1], -1))


def _weighted(weight: nn.Parameter, uses: Sequence[Use | Tensor], scale: Tensor) -> Tensor:
    """The sum over examples of their gradients of one matrix, each times its scale."""
    total = torch.zeros_like(weight)
    for use in uses:
        if not isinstance(use, Use):
            continue
        columns = (use.columns * scale[:, None, None]).flatten(0, 1)
        if use.rows.dim() == 3:
            total.addmm_(use.rows.flatten(0, 1).T, columns)
        else:
            total.index_add_(0, use.rows.flatten(), columns)
    return total
