"""The memory of a generation: keys and values written in place; transformers' own cache copies all at each token."""

from __future__ import annotations

import inspect
from typing import Any

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


def reserved(model: Any, tokens: int) -> dict[str, DynamicCache]:
    """What ``model.generate`` takes to keep at most ``tokens`` tokens a row; empty where that would save nothing.

    Layers that hold something else than all keys and values (a sliding window, a state) stay transformers' own.
    """
    named = "past_key_values" in inspect.signature(model.forward).parameters  # others refuse the argument
    if not named or not model._supports_default_dynamic_cache() or model.config.is_encoder_decoder:
        return {}
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    own = [type(layer) is DynamicLayer for layer in cache.layers]
    cache.layers = [ReservedLayer(tokens) if mine else layer for layer, mine in zip(cache.layers, own, strict=True)]
    return {"past_key_values": cache} if any(own) else {}


def _moved(before: Tensor | None, states: Tensor, had: int, room: int) -> Tensor:
    fresh = states.new_empty(*states.shape[:-2], room, states.shape[-1])
    if before is not None and had:
        fresh[..., :had, :] = before
    return fresh
