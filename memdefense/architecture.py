"""Where the feed-forward and attention matrices of a transformer lie, so that a method on weights is written once.

Known are the blocks of GPT-2, GPT-Neo, GPT-NeoX and the Llama type (Llama, Mistral, Qwen2 and whatever else keeps
their module names and adds what its parts give to the residual stream as it is). Builds of these names with a norm or
a factor on the way (Gemma 2 and 3, Granite), with values elsewhere (GPTBigCode) or with heads that are mixed by learned
factors (DiffLlama) are refused. Matrices read alike whether they are stored as ``Linear`` (out, in) or ``Conv1D`` (in,
out).

    >>> blocks = blocks_of(lm)
    >>> blocks[-1].down.weight.shape        # (width, inner)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from memdefense.errors import ModelError


@dataclasses.dataclass(frozen=True)
class Matrix:
    """One linear map of a block, ``y = W x + b``.

    Attributes:
        module: the layer that applies it, for hooks.
        name: its path in the model, such as ``transformer.h.3.mlp.c_fc``.
    """

    module: nn.Module
    name: str

    @property
    def parameter(self) -> nn.Parameter:
        """The weight as the module stores it."""
        return self.module.get_parameter("weight")

    @property
    def weight(self) -> Tensor:
        """The weight W (out, in), detached: a view, so a change in place changes the model."""
        stored = self.parameter.detach()
        return stored.T if isinstance(self.module, Conv1D) else stored

    @property
    def bias(self) -> Tensor | None:
        """The bias b (out,), detached, or None."""
        bias = getattr(self.module, "bias", None)
        return bias.detach() if isinstance(bias, nn.Parameter) else None


@dataclasses.dataclass(frozen=True)
class Block:
    """One transformer block.

    Attributes:
        module: the block; its forward gives the residual stream after it.
        norm: the layer norm before the attention.
        ffn: the feed-forward part; its forward gives what it adds to the residual stream.
        up: its first matrices (inner, width): one, or gate and up.
        down: its last matrix (width, inner).
        attention: the attention; the first item of its forward is what it adds to the residual stream.
        value: the matrix that holds the value projection.
        value_rows: (width of the heads,) int64: the row of ``value`` that makes input j of ``out``.
        out: the matrix from the heads back to the residual stream (width, width of the heads).
    """

    module: nn.Module
    norm: nn.Module
    ffn: nn.Module
    up: tuple[Matrix, ...]
    down: Matrix
    attention: nn.Module
    value: Matrix
    value_rows: Tensor
    out: Matrix


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Module paths within a model and within a block."""

    layers: str
    last: str  # the norm after all blocks; the first GPT, whose norms stand after the parts, has none
    norm: str
    ffn: str
    up: tuple[str, ...]
    down: str
    attention: str
    value: str
    out: str


_LAYOUTS = {
    "GPT-2": _Layout(
        "transformer.h",
        "transformer.ln_f",
        "ln_1",
        "mlp",
        ("mlp.c_fc",),
        "mlp.c_proj",
        "attn",
        "attn.c_attn",
        "attn.c_proj",
    ),
    "GPT-Neo": _Layout(
        "transformer.h",
        "transformer.ln_f",
        "ln_1",
        "mlp",
        ("mlp.c_fc",),
        "mlp.c_proj",
        "attn",
        "attn.attention.v_proj",
        "attn.attention.out_proj",
    ),
    "GPT-NeoX": _Layout(
        "gpt_neox.layers",
        "gpt_neox.final_layer_norm",
        "input_layernorm",
        "mlp",
        ("mlp.dense_h_to_4h",),
        "mlp.dense_4h_to_h",
        "attention",
        "attention.query_key_value",
        "attention.dense",
    ),
    "Llama": _Layout(
        "model.layers",
        "model.norm",
        "input_layernorm",
        "mlp",
        ("mlp.gate_proj", "mlp.up_proj"),
        "mlp.down_proj",
        "self_attn",
        "self_attn.v_proj",
        "self_attn.o_proj",
    ),
}
# Of a norm between the feed-forward part and the residual stream.
_AFTER = ("post_feedforward_layernorm", "post_mlp_layernorm", "post_norm2")


def blocks_of(model: PreTrainedModel) -> list[Block]:
    """The blocks of a model, from the first to the last.

    Raises:
        ModelError: the blocks are of another build; the message names the module that is missing or unsupported.
    """
    why: dict[str, str] = {}
    for name, layout in _LAYOUTS.items():
        layers = _module(model, layout.layers)
        if not isinstance(layers, nn.ModuleList) or not len(layers):
            continue
        other = _other(model, layers, layout)
        if other:
            why[name] = other
            continue
        return [_block(model, layer, f"{layout.layers}.{place}", layout) for place, layer in enumerate(layers)]
    kind = type(model).__name__
    looked = "; ".join(f"as {name} it {other}" for name, other in why.items())
    raise ModelError(
        f"{kind} has blocks this method does not know ({looked or 'no list of blocks was found'}); "
        f"it works on {', '.join(_LAYOUTS)} blocks"
    )


def inner_width(blocks: Sequence[Block]) -> int:
    """How many feed-forward neurons a block has."""
    return int(blocks[0].down.weight.shape[1])


def _other(model: PreTrainedModel, layers: nn.ModuleList, layout: _Layout) -> str:
    """What makes blocks another build than a layout's; empty where they are of that build."""
    if _module(model, layout.last) is None:
        return f"lacks {layout.last}"
    for place, layer in enumerate(layers):
        name = f"{layout.layers}.{place}"
        for path in _paths(layout):
            if _module(layer, path) is None:
                return f"lacks {name}.{path}"
        # GPTBigCode has GPT-2's names, and in this matrix one value head for all or every head's by its query and key.
        if layout is _LAYOUTS["GPT-2"] and isinstance(_module(layer, layout.value), nn.Linear):
            return f"has a Linear as {name}.{layout.value} in place of a Conv1D"
        between = [path for path in _AFTER if not isinstance(_module(layer, path), nn.Identity | None)]
        # Factors that are learned, of the block's own or of its attention's own.
        between += [path for path, _ in layer.named_parameters(recurse=False)]
        heads = layout.value.rpartition(".")[0]
        between += [f"{heads}.{path}" for path, _ in layer.get_submodule(heads).named_parameters(recurse=False)]
        if getattr(layer, "residual_multiplier", 1.0) != 1.0:
            between.append("residual_multiplier")
        if between:
            return f"has {name}.{between[0]} on the way to the residual stream"
    return ""


def _paths(layout: _Layout) -> tuple[str, ...]:
    return (layout.norm, layout.ffn, *layout.up, layout.down, layout.attention, layout.value, layout.out)


def _module(root: nn.Module, path: str) -> nn.Module | None:
    here: object = root
    for name in path.split("."):
        here = getattr(here, name, None)
        if not isinstance(here, nn.Module):
            return None
    return here if isinstance(here, nn.Module) else None


def _block(model: PreTrainedModel, layer: nn.Module, name: str, layout: _Layout) -> Block:
    def matrix(path: str) -> Matrix:
        module = layer.get_submodule(path)
        if not isinstance(module, nn.Linear | Conv1D):
            raise ModelError(
                f"{name}.{path} is a {type(module).__name__}, not a plain linear layer; "
                "merge adapters and load the weights unquantised"
            )
        return Matrix(module, f"{name}.{path}")

    value, out = matrix(layout.value), matrix(layout.out)
    return Block(
        layer,
        layer.get_submodule(layout.norm),
        layer.get_submodule(layout.ffn),
        tuple(matrix(path) for path in layout.up),
        matrix(layout.down),
        layer.get_submodule(layout.attention),
        value,
        _value_rows(model, layout, value, out),
        out,
    )


def _value_rows(model: PreTrainedModel, layout: _Layout, value: Matrix, out: Matrix) -> Tensor:
    config = model.config.get_text_config()
    heads = int(config.num_attention_heads)
    joined = int(out.weight.shape[1])
    size = joined // heads
    rows = torch.arange(joined)
    if layout is _LAYOUTS["GPT-2"]:  # queries, keys and values one below another
        return rows + 2 * joined
    if layout is _LAYOUTS["GPT-NeoX"]:  # query, key and value of a head together
        return rows // size * (3 * size) + 2 * size + rows % size
    shared = heads // (int(value.weight.shape[0]) // size)  # heads that share one value head
    return rows // size // shared * size + rows % size


__all__ = ["Block", "Matrix", "blocks_of", "inner_width"]
