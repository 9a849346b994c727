from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from memdefense.bench import Bench
from memdefense.corpus import Document
from memdefense.errors import DataError, ModelError, SpecError
from memdefense.lab import Lab
from memdefense.lm import LM
from memdefense.sibling import smaller
from memdefense.store import Store
from memdefense.train import TrainConfig


def build(kind: str, lm: LM) -> LM:
    size = {"vocab_size": len(lm.tokenizer), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    if kind == "neo":
        neo = GPTNeoConfig.from_dict(
            {"hidden_size": 48, "num_layers": 4, "num_heads": 3, "attention_types": [[["global", "local"], 2]], **size}
        )
        return LM(GPTNeoForCausalLM(neo), lm.tokenizer)
    wide = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 6}
    if kind == "neox":
        return LM(GPTNeoXForCausalLM(GPTNeoXConfig.from_dict({**wide, **size})), lm.tokenizer)
    return LM(LlamaForCausalLM(LlamaConfig.from_dict({**wide, "num_key_value_heads": 2, **size})), lm.tokenizer)


@pytest.mark.parametrize(("kind", "heads"), [("neo", 2), ("neox", 3), ("llama", 3)])
def test_a_sibling_is_of_the_same_kind_and_runs(tiny_lm: LM, kind: str, heads: int) -> None:
    large = build(kind, tiny_lm)
    small = smaller(large, 2, seed=0)
    config = small.model.config
    assert type(small.model) is type(large.model)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (24, 2, heads)
    assert small.parameters() < large.parameters() / 2
    assert small.tokenizer is large.tokenizer
    with torch.no_grad():
        logits = small.model(input_ids=torch.arange(9)[None]).logits
    assert logits.shape == (1, 9, len(tiny_lm.tokenizer))
    if kind == "llama":
        assert (config.num_key_value_heads, config.intermediate_size, config.head_dim) == (1, 48, 8)


def test_the_seed_decides_the_weights_and_leaves_torchs_own(tiny_lm: LM) -> None:
    state = torch.get_rng_state()
    digests = [smaller(tiny_lm, 2, seed=seed).digest() for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(state, torch.get_rng_state())


def test_what_cannot_shrink_is_refused(tiny_lm: LM) -> None:
    with pytest.raises(ModelError, match="2 layers and width 32 cannot be shrunk by 3"):
        smaller(tiny_lm, 3, seed=0)
    with pytest.raises(SpecError, match="never larger"):
        smaller(tiny_lm, 0, seed=0)


def lab_of(lm: LM, folder: Path, public: list[Document]) -> Lab:
    config = TrainConfig(epochs=1.0, batch_size=4, block_size=32, dtype="float32")
    return Lab(Bench(Store(folder)), who="x", seed=0, originals=public, public=public, config=config, base=lm)


def test_a_fresh_one_knows_the_public_text_and_comes_from_the_store(tiny_lm: LM, tmp_path: Path) -> None:
    public = [Document(f"p{n}", f"The meeting on day {n} is moved to the large room. " * 4) for n in range(40)]
    lab = lab_of(tiny_lm, tmp_path, public)
    assert lab.fresh().digest() == tiny_lm.digest()
    small = lab.fresh(2)
    assert small.digest() == lab.fresh(2).digest()
    ids = torch.tensor([small.encode(public[0].text)[:32]])
    with torch.no_grad():
        fitted, raw = (float(lm.model(input_ids=ids, labels=ids).loss) for lm in (small, smaller(tiny_lm, 2, seed=0)))
    assert fitted < raw - 1
    assert len([m for m in lab._bench.store.manifests() if m["kind"] == "fit"]) == 1
    with pytest.raises(DataError, match="no public text"):
        lab_of(tiny_lm, tmp_path, []).fresh(2)
