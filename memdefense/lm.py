"""A causal language model with its tokenizer, loaded from a hub id or a folder, and saved to one."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from memdefense.errors import ModelError
from memdefense.target import (
    GREEDY,
    PLAIN,
    LocalTarget,
    LogprobTarget,
    Sampling,
    Signals,
    Target,
    TextTarget,
    WeightTarget,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

# What a prompt is never cut below, so that a model with an odd configuration still gets some context.
_SHORTEST_CONTEXT = 16


@dataclasses.dataclass(frozen=True)
class LM:
    """A causal language model and its tokenizer.

    Attributes:
        model: a plain transformers model; adapters are merged before it gets here.
        tokenizer: a fast tokenizer.
        origin: where it came from (name or folder, and the revision), for provenance only.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    origin: str = ""

    @classmethod
    def load(cls, name_or_folder: str | Path, *, revision: str | None = None, device: str = "cpu") -> LM:
        """Loads a model in float32 and its tokenizer from a hub id or a folder; safetensors only, no remote code.

        Args:
            name_or_folder: a hub id (``openai-community/gpt2``) or a folder in transformers' format.
            revision: a branch, tag or commit of the hub's repository.
            device: where the weights go.

        Raises:
            ModelError: nothing of that name, no safetensors in it, no tokenizer beside it, or not a causal LM.
        """
        name = str(name_or_folder)
        folder = Path(name)
        _check_folder(folder, name)
        try:
            with _quiet():
                tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
                config = AutoConfig.from_pretrained(name, revision=revision)
                model = AutoModelForCausalLM.from_pretrained(
                    name, config=config, revision=revision, dtype=torch.float32, use_safetensors=True
                )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ModelError(_why_not(name, folder, error)) from error
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(f"the tokenizer of '{name}' has no fast version (tokenizer.json), which offsets need")
        commit = getattr(config, "_commit_hash", None)
        return cls(model.to(device).eval(), tokenizer, f"{name}@{commit}" if commit else name)

    def save(self, folder: Path) -> None:
        """Writes model (safetensors) and tokenizer; `load` reads them back unchanged."""
        with _quiet():
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

    def copy(self) -> LM:
        """The same weights in memory of their own."""
        return dataclasses.replace(self, model=copy.deepcopy(self.model))

    def to(self, device: str) -> LM:
        """The same model on another device (moved, not copied)."""
        self.model.to(device)  # type: ignore[arg-type]
        return self

    @property
    def context(self) -> int:
        """The longest sequence the model takes, in tokens."""
        config = self.model.config.get_text_config()
        for name in ("max_position_embeddings", "n_positions", "n_ctx", "seq_length"):
            length = getattr(config, name, None)
            if isinstance(length, int) and length > 0:
                return max(length, _SHORTEST_CONTEXT)
        return max(min(int(self.tokenizer.model_max_length), 4096), _SHORTEST_CONTEXT)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text; with ``special`` as the tokenizer begins a text (its BOS, where it has one)."""
        ids = list(self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
        eos = self.tokenizer.eos_token_id
        # Some tokenizers also close a text; a prompt that ends in an end of text would be answered by a new one.
        if special and text and ids and ids[-1] == eos:
            ids.pop()
        return ids

    def separator(self) -> list[int]:
        """What stands between two documents in training: the end-of-text token, or an empty line without one."""
        if self.tokenizer.eos_token_id is not None:
            return [int(self.tokenizer.eos_token_id)]
        return self.encode("\n\n", special=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def digest(self) -> str:
        """A content digest of weights, configuration and tokenizer, the same on every device."""
        whole = hashlib.sha256()
        shared: dict[int, str] = {}
        for name, tensor in sorted(self.model.state_dict().items()):
            whole.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            if tensor.data_ptr() in shared and tensor.numel():
                whole.update(shared[tensor.data_ptr()].encode())  # tied weights are read once
                continue
            shared[tensor.data_ptr()] = name
            whole.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        whole.update(self.tokenizer.backend_tokenizer.to_str().encode())
        return whole.hexdigest()

    def parameters(self) -> int:
        """How many weights the model has."""
        return int(sum(weight.numel() for weight in self.model.parameters()))


def best_device() -> str:
    """``cuda`` or ``mps`` where there is one, else ``cpu``."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _check_folder(folder: Path, name: str) -> None:
    looks_local = folder.is_dir() or name.startswith((".", "/", "~")) or name.count("/") > 1 or os.sep + os.sep in name
    if not looks_local:
        return
    if not folder.is_dir():
        raise ModelError(f"there is no model folder '{name}'; give a folder in transformers' format or a hub id")
    files = {path.name for path in folder.iterdir()}
    if "config.json" not in files:
        raise ModelError(f"'{name}' holds no config.json; it is not a model in transformers' format")
    if not any(file.endswith(".safetensors") for file in files):
        pickles = sorted(file for file in files if file.endswith((".bin", ".pt", ".pth", ".ckpt")))
        found = (
            f"only pickled weights ({', '.join(pickles)}), which can run code when read" if pickles else "no weights"
        )
        raise ModelError(
            f"'{name}' holds {found}; convert it with transformers' save_pretrained (safetensors) and try again"
        )


def _why_not(name: str, folder: Path, error: Exception) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if folder.is_dir():
        return f"cannot load the model in '{name}': {first}"
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    advice = (
        "HF_HUB_OFFLINE is set and it is not in the cache" if offline else "is the name right and the hub in reach?"
    )
    return f"cannot load model '{name}' from the hub ({advice}; a private one needs HF_TOKEN): {first}"


class _quiet:  # noqa: N801  (a context manager reads as a word)
    """Keeps transformers' progress bars and notices out of our output while a model is read or written."""

    def __enter__(self) -> None:
        self._level = transformers.logging.get_verbosity()
        self._bars = transformers.logging.is_progress_bar_enabled()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        transformers.logging.set_verbosity(self._level)
        if self._bars:
            transformers.logging.enable_progress_bar()


__all__ = [
    "GREEDY",
    "LM",
    "PLAIN",
    "LocalTarget",
    "LogprobTarget",
    "Sampling",
    "Signals",
    "Target",
    "TextTarget",
    "WeightTarget",
    "best_device",
]
