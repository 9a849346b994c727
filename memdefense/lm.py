"""A causal language model with its tokenizer, loaded from a hub id or a folder, and saved to one."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from memdefense.errors import ModelError
from memdefense.memory import keep_freed
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
    from collections.abc import Iterator, Sequence

# Where neither model nor tokenizer says how much it takes (transformers then says 10 ** 30).
_LONGEST_CONTEXT = 4096
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # to add up weights of so many bytes exactly
# What a configuration says of where it was read or written rather than of the model.
_BOOKKEEPING = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")


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
        keep_freed()
        folder = Path(name_or_folder).expanduser()
        name = str(folder) if folder.is_dir() else str(name_or_folder)
        _check_folder(folder, name)
        try:
            with _quiet():
                config = AutoConfig.from_pretrained(name, revision=revision)
                tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
                loaded: Any = AutoModelForCausalLM.from_pretrained(
                    name,
                    config=config,
                    revision=revision,
                    dtype=torch.float32,
                    use_safetensors=True,
                    output_loading_info=True,
                )
        except Exception as error:  # what a broken file or an unknown type of model raises is not documented
            raise ModelError(_why_not(name, folder, error)) from error
        model, read = loaded
        _check_loaded(name, model, read, tokenizer)
        commit = getattr(config, "_commit_hash", None)
        model.to(device)
        return cls(model.eval(), tokenizer, f"{name}@{commit}" if commit else name)

    def save(self, folder: Path) -> None:
        """Writes model (safetensors) and tokenizer; `load` reads them back unchanged."""
        with _quiet():
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

    def copy(self) -> LM:
        """The same weights in memory of their own."""
        return dataclasses.replace(self, model=copy.deepcopy(self.model))

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """No dropout, and no gradients of the weights, until it is left."""
        training = self.model.training
        wanted = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.model.train(False)
        for weight in wanted:
            weight.requires_grad_(False)
        try:
            yield
        finally:
            self.model.train(training)
            for weight in wanted:
                weight.requires_grad_(True)

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
                return length
        return min(int(self.tokenizer.model_max_length), _LONGEST_CONTEXT)

    @property
    def width(self) -> int:
        """The size of the hidden state."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text; with ``special`` as the tokenizer begins a text (its BOS, where it has one)."""
        ids = list(self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
        eos = self.tokenizer.eos_token_id
        # Some tokenizers also close a text; a prompt that ends in an end of text would be answered by a new one.
        if special and len(ids) > 1 and ids[-1] == eos:
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
            whole.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        config = {k: v for k, v in self.model.config.to_diff_dict().items() if k not in _BOOKKEEPING}
        spelling = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for passing in ("padding", "truncation"):  # left behind by whoever last asked for a padded batch
            spelling.pop(passing, None)
        ends = [self.tokenizer.bos_token, self.tokenizer.eos_token]
        whole.update(json.dumps([config, spelling, ends], sort_keys=True, default=str).encode())
        return whole.hexdigest()

    def fingerprint(self) -> tuple[object, ...]:
        """A sum of the bits of every weight, and whether the model is in training: one pass over the memory.

        It notices weights that changed in place, at a small part of what `digest` costs; it is no key.
        """
        sums = {
            name: int(tensor.detach().contiguous().view(_BITS[tensor.element_size()]).sum(dtype=torch.int64))
            for name, tensor in self.model.state_dict().items()
            if tensor.element_size() in _BITS
        }
        return (self.model.training, *sums.items())

    def restore(self, whole: LM) -> None:
        """Takes the weights of the same model, read anew."""
        self.model.load_state_dict(whole.model.state_dict())
        self.model.train(whole.model.training)

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


def _check_loaded(name: str, model: PreTrainedModel, read: dict[str, Any], tokenizer: object) -> None:
    missing = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in read.get(kind) or ())
    if missing:
        raise ModelError(
            f"'{name}' lacks {len(missing)} of the model's weights ({missing[0]}, ...), which would be random; "
            "is it a whole causal language model?"
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or not tokenizer.is_fast:
        raise ModelError(f"the tokenizer of '{name}' has no fast version (tokenizer.json), which offsets need")
    embedded = len(model.get_input_embeddings().get_parameter("weight"))
    if not 0 < tokenizer.vocab_size <= embedded:
        raise ModelError(
            f"the tokenizer of '{name}' knows {tokenizer.vocab_size} tokens and the model {embedded}; "
            "they do not belong together, or no tokenizer was saved beside the model"
        )


def _why_not(name: str, folder: Path, error: Exception) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if folder.is_dir():
        return f"cannot load the model in '{name}': {first}"
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    advice = (
        "HF_HUB_OFFLINE is set and it is not in the cache" if offline else "is the name right and the hub in reach?"
    )
    return (
        f"there is no folder '{name}' here, and it cannot be loaded from the hub ({advice}; a private one needs "
        f"HF_TOKEN): {first}"
    )


class _quiet:  # noqa: N801  (a context manager reads as a word)
    """Keeps transformers' progress bars and notices out of our output while a model is read or written."""

    def __enter__(self) -> None:
        self._level = transformers.logging.get_verbosity()
        self._bars = transformers.logging.is_progress_bar_enabled()
        transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]

    def __exit__(self, *_: object) -> None:
        transformers.logging.set_verbosity(self._level)
        if self._bars:
            transformers.logging.enable_progress_bar()  # type: ignore[no-untyped-call]


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
