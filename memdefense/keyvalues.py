"""Keys and values that a pass finds ready.

Of a generation they are written in place, where transformers' own cache copies all at each token; of a beginning that
many rows share they are computed once.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class ReservedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's keys and values, in room taken once for the whole generation.

    The numbers are those of `DynamicLayer`; only the copying is saved.

    Args:
        room: tokens there is room for; more are held too, by moving.
    """

    def __init__(self, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._room = room
        self._held: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes the new states behind those held, and gives all, as views (B, heads, tokens, width)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        had = self.get_seq_length()
        now = had + key_states.shape[-2]
        if self._held is None or not self._fits(now):
            room = max(self._room, now)
            self._held = _moved(self.keys, key_states, had, room), _moved(self.values, value_states, had, room)
        for held, states in zip(self._held, (key_states, value_states), strict=True):
            held[..., had:now, :] = states
        self.keys, self.values = (held[..., :now, :] for held in self._held)
        return self.keys, self.values

    def _fits(self, tokens: int) -> bool:
        """Whether what is held is what was written, and has the room: selected or repeated rows are copies."""
        if self._held is None or self.keys is None or not self.keys.numel():
            return False
        return tokens <= self._held[0].shape[-2] and self.keys.data_ptr() == self._held[0].data_ptr()


class SharedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's keys and values of a beginning that all rows of a pass share; what a pass adds is not kept.

    Args:
        keys: of the beginning, (1, heads, tokens, width).
        values: the same.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)
        self.keys, self.values = self._beginning = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The beginning's states before the new ones of each row, (B, heads, tokens, width)."""
        keys, values = self._beginning
        return _behind(keys, key_states), _behind(values, value_states)


def reserved(model: Any, tokens: int) -> dict[str, DynamicCache]:
    """What ``model.generate`` takes to keep at most ``tokens`` tokens a row; empty where that would save nothing.

    Layers that hold something else than all keys and values (a sliding window, a state) stay transformers' own.
    """
    cache = _cache(model)
    if cache is None:
        return {}
    own = [type(layer) is DynamicLayer for layer in cache.layers]
    cache.layers = [ReservedLayer(tokens) if mine else layer for layer, mine in zip(cache.layers, own, strict=True)]
    return {"past_key_values": cache} if any(own) else {}


def shares(model: Any) -> bool:
    """Whether rows with one beginning can share it: every layer holds all keys and values and nothing else."""
    cache = _cache(model)
    return cache is not None and bool(cache.layers) and all(type(layer) is DynamicLayer for layer in cache.layers)


def shared(model: Any, ids: list[int]) -> DynamicCache:
    """The keys and values of a beginning, for any number of passes over rows that go on from it.

    Only for a model that `shares`; each pass gives its rows' tokens alone, and a mask over the beginning and them.
    """
    cache = _cache(model)
    assert cache is not None
    row = torch.tensor([ids], device=model.device)
    given = {"input_ids": row, "attention_mask": torch.ones_like(row), **last_logits(model, 1)}
    model(**given, past_key_values=cache, use_cache=True)
    held: list[Any] = cache.layers
    cache.layers = [SharedLayer(layer.keys, layer.values) for layer in held]
    return cache


def last_logits(model: Any, tokens: int) -> dict[str, int]:
    """What a pass takes to make the logits of its last tokens alone; empty where the model makes all anyway."""
    return {"logits_to_keep": tokens} if model._supports_logits_to_keep() else {}


def _cache(model: Any) -> DynamicCache | None:
    """An empty cache of a model, or None where it takes none of this kind."""
    named = "past_key_values" in inspect.signature(model.forward).parameters  # others refuse the argument
    if not named or not model._supports_default_dynamic_cache() or model.config.is_encoder_decoder:
        return None
    return DynamicCache(config=model.config.get_text_config(decoder=True))


def _behind(beginning: Tensor, states: Tensor) -> Tensor:
    return torch.cat([beginning.expand(len(states), -1, -1, -1), states], -2)


def _moved(before: Tensor | None, states: Tensor, had: int, room: int) -> Tensor:
    fresh = states.new_empty(*states.shape[:-2], room, states.shape[-1])
    if before is not None and had:
        fresh[..., :had, :] = before
    return fresh
