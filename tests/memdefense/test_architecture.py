"""The map of blocks, against the modules' own forward."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    DiffLlamaConfig,
    DogeConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPTBigCodeConfig,
    GraniteConfig,
    OpenAIGPTConfig,
    PreTrainedConfig,
    Qwen2MoeConfig,
)

from memdefense.architecture import Block, Matrix, blocks_of, inner_width
from memdefense.errors import ModelError
from memdefense.lm import LM

BUILDS = ("GPT-2", "GPT-Neo", "GPT-NeoX", "Llama")
SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
GPT: dict[str, Any] = {"vocab_size": 50, "n_positions": 8, "n_embd": 16, "n_layer": 2, "n_head": 2}


def caught(lm: LM, module: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """What goes into a module and what comes out, on a fixed row of tokens."""
    seen: list[Tensor] = []

    def keep(_: torch.nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], result: Any) -> None:
        given = inputs[0] if inputs else named["hidden_states"]
        seen.extend([given.clone(), (result[0] if isinstance(result, tuple) else result).clone()])

    handle = module.register_forward_hook(keep, with_kwargs=True)
    with torch.no_grad():
        lm.model(torch.arange(12)[None] * 7)
    handle.remove()
    return seen[0], seen[1]


def applied(matrix: Matrix, inputs: Tensor) -> Tensor:
    result = torch.einsum("oi,...i->...o", matrix.weight, inputs)
    return result if matrix.bias is None else result + matrix.bias


@pytest.mark.parametrize("build", BUILDS)
def test_every_matrix_is_its_modules_forward(four_builds: dict[str, LM], build: str) -> None:
    blocks = blocks_of(four_builds[build].model)
    assert len(blocks) == 3
    for block in blocks:
        for matrix in (*block.up, block.down, block.value, block.out):
            given, result = caught(four_builds[build], matrix.module)
            torch.testing.assert_close(applied(matrix, given), result, rtol=1e-4, atol=1e-4)
            assert dict(four_builds[build].model.named_modules())[matrix.name] is matrix.module
    assert inner_width(blocks) == blocks[0].down.weight.shape[1] == {"GPT-2": 128}.get(build, 64)


@pytest.mark.parametrize("build", BUILDS)
def test_up_and_down_make_the_feed_forward_part(four_builds: dict[str, LM], build: str) -> None:
    for block in blocks_of(four_builds[build].model):
        given, result = caught(four_builds[build], block.ffn)
        hidden = [applied(matrix, given) for matrix in block.up]
        if build == "Llama":
            inner = torch.nn.functional.silu(hidden[0]) * hidden[1]
        else:
            inner = torch.nn.functional.gelu(hidden[0], approximate="none" if build == "GPT-NeoX" else "tanh")
        torch.testing.assert_close(applied(block.down, inner), result, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("build", BUILDS)
def test_norm_block_and_attention_are_where_they_should_be(four_builds: dict[str, LM], build: str) -> None:
    """out = in + attention + feed-forward; the norm stands before the attention; a block's out is the next one's in."""
    lm = four_builds[build]
    blocks = blocks_of(lm.model)
    outs: list[Tensor] = []
    for block in blocks:
        given, result = caught(lm, block.module)
        normed_in, normed = caught(lm, block.norm)
        attention_in, attention = caught(lm, block.attention)
        torch.testing.assert_close(normed_in, given)
        torch.testing.assert_close(attention_in, normed)
        torch.testing.assert_close(result, given + attention + caught(lm, block.ffn)[1], rtol=1e-4, atol=1e-4)
        if outs:
            torch.testing.assert_close(given, outs[-1])
        outs.append(result)


@pytest.mark.parametrize("build", BUILDS)
def test_a_value_row_makes_its_input_of_out_and_no_other(four_builds: dict[str, LM], build: str) -> None:
    lm = LM(four_builds[build].model, four_builds[build].tokenizer).copy()
    block = blocks_of(lm.model)[1]
    rows = block.value_rows
    before, _ = caught(lm, block.out.module)
    assert len(rows) == before.shape[-1] == block.out.weight.shape[1]
    for row in sorted(set(rows.tolist())):
        weight, bias = block.value.weight, block.value.bias
        kept = weight[row].clone(), None if bias is None else bias[row].clone()
        weight[row] = 0
        if bias is not None:
            bias[row] = 0
        after, _ = caught(lm, block.out.module)
        made = rows == row
        assert int(made.sum()) == (2 if build == "Llama" else 1)  # two heads share one value head
        assert bool((after[..., made] == 0).all())
        assert bool((before[..., made] != 0).all())
        torch.testing.assert_close(after[..., ~made], before[..., ~made])
        weight[row] = kept[0]
        if bias is not None and kept[1] is not None:
            bias[row] = kept[1]


@pytest.mark.parametrize("build", BUILDS)
def test_a_change_in_place_changes_the_model(four_builds: dict[str, LM], build: str) -> None:
    lm = four_builds[build].copy()
    digest = lm.digest()
    block: Block = blocks_of(lm.model)[2]
    block.down.weight[3, 5] += 1
    assert lm.digest() != digest
    stored = block.down.parameter.detach()
    assert float((stored.T if build == "GPT-2" else stored)[3, 5]) == float(block.down.weight[3, 5])


def test_unknown_blocks_are_named() -> None:
    config = BloomConfig(vocab_size=50, hidden_size=16, n_layer=1, n_head=2)
    with pytest.raises(ModelError, match=r"BloomForCausalLM has blocks .*as GPT-2 it lacks transformer\.h\.0\.ln_1"):
        blocks_of(BloomForCausalLM(config))


@pytest.mark.parametrize(
    ("config", "unsupported"),
    [
        (Gemma2Config(**SMALL, head_dim=8), "has model.layers.0.post_feedforward_layernorm on the way"),
        (Gemma3TextConfig(**SMALL, head_dim=8), "has model.layers.0.post_feedforward_layernorm on the way"),
        (GraniteConfig(**SMALL, residual_multiplier=0.2), "has model.layers.0.residual_multiplier on the way"),
        (DogeConfig(**SMALL), "has model.layers.0.input_residual on the way"),
        (DiffLlamaConfig(**SMALL), "has model.layers.0.self_attn.lambda_q1 on the way"),
        (GPTBigCodeConfig(**GPT), "has a Linear as transformer.h.0.attn.c_attn in place of a Conv1D"),
        (
            GPTBigCodeConfig(**GPT, multi_query=False),
            "has a Linear as transformer.h.0.attn.c_attn in place of a Conv1D",
        ),
        (OpenAIGPTConfig(**GPT), "lacks transformer.ln_f"),
        (Qwen2MoeConfig(**SMALL, mlp_only_layers=[0]), "lacks model.layers.1.mlp.gate_proj"),
    ],
    ids=[
        "Gemma-2",
        "Gemma-3",
        "Granite",
        "Doge",
        "DiffLlama",
        "BigCode",
        "BigCode, many values",
        "GPT",
        "experts above",
    ],
)
def test_blocks_of_known_names_and_another_build_are_refused(config: PreTrainedConfig, unsupported: str) -> None:
    with pytest.raises(ModelError, match=rf"has blocks .*it {re.escape(unsupported)}.*it works on GPT-2"):
        blocks_of(AutoModelForCausalLM.from_config(config))  # type: ignore[no-untyped-call]


def test_a_factor_of_one_changes_nothing() -> None:
    model = AutoModelForCausalLM.from_config(GraniteConfig(**SMALL))  # type: ignore[no-untyped-call]
    assert len(blocks_of(model)) == 2


def test_a_layer_that_is_not_linear_is_named(four_builds: dict[str, LM]) -> None:
    lm = four_builds["Llama"].copy()
    blocks_of(lm.model)[1].module.mlp.down_proj = torch.nn.Bilinear(64, 64, 32)  # type: ignore[union-attr]
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.down_proj is a Bilinear, not a plain linear layer"):
        blocks_of(lm.model)
