"""The cache of a generation against transformers' own."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GenerationConfig,
    GPT2Config,
    MambaConfig,
    OpenAIGPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from memdefense.keyvalues import ReservedLayer, reserved


def states(tokens: int, seed: int, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 2, tokens, 4, generator=drawn), torch.randn(rows, 2, tokens, 4, generator=drawn)


def both(room: int, *pieces: int) -> tuple[ReservedLayer, DynamicLayer]:
    mine, theirs = ReservedLayer(room), DynamicLayer()  # type: ignore[no-untyped-call]
    for seed, tokens in enumerate(pieces):
        for given, own in zip(theirs.update(*states(tokens, seed)), mine.update(*states(tokens, seed)), strict=True):
            assert torch.equal(given, own)
    return mine, theirs


def same(mine: ReservedLayer, theirs: DynamicLayer) -> None:
    for own, given in ((mine.keys, theirs.keys), (mine.values, theirs.values)):
        assert own is not None
        assert given is not None
        assert torch.equal(own, given)
    assert mine.get_seq_length() == theirs.get_seq_length()


def test_holds_what_transformers_holds_and_copies_nothing() -> None:
    mine, theirs = both(9, 5, 1, 1)
    same(mine, theirs)
    assert mine.keys is not None
    before = mine.keys.data_ptr()
    mine.update(*states(1, 7))
    assert mine.keys.data_ptr() == before
    assert mine.get_seq_length() == 8


@pytest.mark.parametrize("room", [1, 5, 6])
def test_what_outgrows_its_room_moves(room: int) -> None:
    same(*both(room, 5, 1, 3, 1))


def test_rows_selected_repeated_or_cropped_go_on_as_their_own() -> None:
    mine, theirs = both(20, 5, 1)
    for layer in (mine, theirs):
        layer.batch_select_indices(torch.tensor([2, 0]))
        layer.update(*states(1, 3, rows=2))
        layer.batch_repeat_interleave(2)
        layer.update(*states(2, 4, rows=4))
        layer.crop(-2)
        layer.update(*states(1, 5, rows=4))
        layer.reorder_cache(torch.tensor([1, 1, 3, 0]))  # type: ignore[arg-type]
        layer.update(*states(1, 6, rows=4))
    same(mine, theirs)
    for layer in (mine, theirs):
        layer.reset()
        layer.update(*states(2, 8))
    same(mine, theirs)


def built(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()  # type: ignore[no-untyped-call]
    return model


def generated(model: PreTrainedModel, **extra: object) -> torch.Tensor:
    ids = torch.randint(3, 50, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    settings = GenerationConfig(max_new_tokens=9, min_new_tokens=9, pad_token_id=0, eos_token_id=1)  # type: ignore[no-untyped-call]
    made: torch.Tensor = model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=mask,
        generation_config=settings,
        output_logits=True,
        return_dict_in_generate=True,
        **extra,
    ).logits
    return torch.stack(list(made))


def test_a_generation_has_the_logits_of_transformers_cache() -> None:
    model = built(GPT2Config(n_embd=16, n_head=2, n_layer=2, vocab_size=50, n_positions=64))
    cache = reserved(model, 21)
    assert torch.equal(generated(model), generated(model, **cache))
    assert [type(layer) for layer in cache["past_key_values"].layers] == [ReservedLayer] * 2


def test_a_sliding_window_stays_transformers_own() -> None:
    config = Gemma2Config(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        vocab_size=50,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
    )
    model = built(config)
    cache = reserved(model, 21)
    assert [type(layer) for layer in cache["past_key_values"].layers] == [DynamicSlidingWindowLayer, ReservedLayer]
    assert torch.equal(generated(model), generated(model, **cache))


def test_models_that_know_no_cache_or_keep_a_state_are_given_nothing() -> None:
    mamba = MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=50, state_size=4)
    assert reserved(built(mamba), 21) == {}
    first = built(OpenAIGPTConfig(n_embd=16, n_head=2, n_layer=1, vocab_size=50, n_positions=64))
    assert reserved(first, 21) == {}
    assert len(generated(first)) == 9
