"""A small GPT-2 with a byte-level BPE of its own, both made from public documents alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memdefense.corpus import Documents
    from memdefense.lm import LM

_END = "<|endoftext|>"


def untrained(
    documents: Documents, *, vocabulary: int, layers: int, width: int, heads: int, context: int, seed: int
) -> LM:
    """A GPT-2 (Radford et al. 2019) with fresh weights, and a tokenizer trained on ``documents``.

    No dropout, so that two arms of a comparison differ by their data alone; embeddings tied; weights in float32.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    from memdefense.lm import LM

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((document.text for document in documents), trainer)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe,
        eos_token=_END,
        pad_token=_END,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=context,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        activation_function="gelu_pytorch_tanh",  # GPT-2's own gelu as one kernel instead of eight
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
    model.train(False)
    return LM(model, tokenizer)
