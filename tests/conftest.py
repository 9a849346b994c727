"""Models small enough to train inside a test, and a store of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from memdefense.benchmarks.small_model import untrained
from memdefense.corpus import Document
from memdefense.lm import LM
from memdefense.store import Store

torch.set_num_threads(1)  # models this small are slowed by threads that wait for each other

SENTENCES = [
    "The meeting on Tuesday is moved to the large room on the second floor.",
    "Please call Anna at +1 415 555 0134 or write to anna.bell@example.com before noon.",
    "We shipped 24 boxes yesterday; the invoice 7731-09 follows by mail.",
    "Could you send the report to the team, and keep the old one for reference?",
]


@pytest.fixture(scope="session")
def tiny_lm() -> LM:
    """A GPT-2 of two layers and width 32 with a byte-level BPE and 64 positions; weights from seed 0."""
    documents = [Document(f"s{place}", text) for place, text in enumerate(SENTENCES)]
    lm: LM = untrained(documents, vocabulary=320, layers=2, width=32, heads=2, context=64, seed=0)
    return lm


@pytest.fixture(scope="session")
def tiny_llama(tiny_lm: LM) -> LM:
    """A Llama of two layers and width 32 with the tokenizer of `tiny_lm`."""
    config = LlamaConfig(
        vocab_size=tiny_lm.model.config.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=tiny_lm.tokenizer.pad_token_id,
        bos_token_id=tiny_lm.tokenizer.bos_token_id,
        eos_token_id=tiny_lm.tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.train(False)
    return LM(model, tiny_lm.tokenizer)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store below the test's own folder."""
    return Store(tmp_path / "store")
