from __future__ import annotations

import dataclasses
import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from memdefense.errors import ModelError
from memdefense.lm import LM


@pytest.fixture
def folder(tiny_lm: LM, tmp_path: Path) -> Path:
    tiny_lm.save(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("which", ["tiny_lm", "tiny_llama"])
def test_saving_and_loading_changes_nothing(which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    lm: LM = request.getfixturevalue(which)
    lm.save(tmp_path / "model")
    again = LM.load(tmp_path / "model")
    assert again.digest() == lm.digest() == lm.copy().digest()
    assert again.model.dtype == torch.float32
    assert not again.model.training
    assert again.context == 64
    assert again.encode("Please call") == lm.encode("Please call")
    ids = torch.tensor([lm.encode("Please call Anna")])
    assert torch.equal(again.model(input_ids=ids).logits, lm.model(input_ids=ids).logits)
    again.save(tmp_path / "second")
    assert LM.load(tmp_path / "second").digest() == lm.digest()


def test_half_precision_weights_are_read_in_float32(tiny_lm: LM, tmp_path: Path) -> None:
    half = tiny_lm.copy()
    half.model.to(torch.bfloat16)  # type: ignore[arg-type]
    half.save(tmp_path / "half")
    assert LM.load(tmp_path / "half").model.dtype == torch.float32


def test_the_digest_sees_every_weight_the_configuration_and_the_tokenizer(tiny_lm: LM) -> None:
    digest = tiny_lm.digest()
    for name, weight in tiny_lm.model.named_parameters():
        other = tiny_lm.copy()
        with torch.no_grad():
            other.model.get_parameter(name).flatten()[weight.numel() // 2] += 1e-3
        assert other.digest() != digest, name
    other = tiny_lm.copy()
    other.model.config.activation_function = "relu"
    assert other.digest() != digest
    other = tiny_lm.copy()
    other.tokenizer.eos_token = "a"
    assert other.digest() != digest
    tiny_lm.tokenizer.eos_token = "<|endoftext|>"


def test_asking_the_tokenizer_for_a_padded_batch_leaves_the_digest(tiny_lm: LM) -> None:
    digest = tiny_lm.digest()
    tiny_lm.tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=3)
    assert tiny_lm.digest() == digest
    assert len(tiny_lm.encode("a longer text, of more than three tokens")) > 3


def test_a_copy_has_weights_of_its_own(tiny_lm: LM) -> None:
    digest = tiny_lm.digest()
    other = tiny_lm.copy()
    with torch.no_grad():
        next(other.model.parameters()).zero_()
    assert tiny_lm.digest() == digest != other.digest()
    assert other.parameters() == tiny_lm.parameters() == sum(w.numel() for w in tiny_lm.model.parameters())


def test_the_context_is_the_models_own_however_short(tiny_lm: LM) -> None:
    other = tiny_lm.copy()
    other.model.config.n_positions = 8
    assert other.context == 8


def test_a_closing_token_is_left_out_and_a_lone_opening_one_kept(tiny_lm: LM, tiny_llama: LM) -> None:
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    spelling = Tokenizer.from_str(tiny_lm.tokenizer.backend_tokenizer.to_str())
    eos = "<|endoftext|>"
    spelling.post_processor = processors.TemplateProcessing(single=f"{eos} $A {eos}", special_tokens=[(eos, 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=spelling, bos_token=eos, eos_token=eos)  # type: ignore[no-untyped-call]
    lm = dataclasses.replace(tiny_lm, tokenizer=tokenizer)
    assert lm.encode("Anna") == [0, *tiny_lm.encode("Anna")]
    assert lm.encode("") == [0]
    assert lm.separator() == [0]


def refused(name: str | Path, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        LM.load(name)


def test_missing_and_empty_folders(tmp_path: Path, folder: Path) -> None:
    refused(tmp_path / "nowhere", "no model folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"no config\.json")
    (folder / "model.safetensors").unlink()
    refused(folder, "no weights")


def test_pickles_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, r"only pickled weights \(pytorch_model\.bin\)")


def test_a_folder_without_a_tokenizer(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()
    refused(folder, "token")


def test_broken_weights(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(folder, "cannot load the model in")


def test_weights_that_would_be_made_up_are_an_error(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, "lacks 1 of the model's weights")


def test_a_tokenizer_of_another_model(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    weights["transformer.wte.weight"] = weights["transformer.wte.weight"][:100].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    refused(folder, "do not belong together")


def test_not_a_causal_language_model(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    refused(folder, "cannot load the model in")
    (folder / "config.json").write_text(json.dumps({"model_type": "no-such-type"}))
    refused(folder, "cannot load the model in")


def test_a_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert LM.load("~/model").context == 64
    shutil.rmtree(folder)
    refused("~/model", "no model folder")


def test_offline_the_network_is_not_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants as hub

    def connect(*_: object, **__: object) -> None:
        pytest.fail("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    refused("nobody/no-such-model", "HF_HUB_OFFLINE is set")
    refused("no-such-model", "there is no folder 'no-such-model' here")
