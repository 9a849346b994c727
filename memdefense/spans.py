"""Which tokens spell which characters of a text, so that a method can act on what the detector found and on no more.

A token belongs to a span if it shares a character with it. Characters are counted in the text as it is given; ids are
those of ``lm.encode(text)``, a beginning-of-text token included, which belongs to no span.

    >>> found = lab.find(text)
    >>> token_spans(lm, text, [(pii.start, pii.end) for pii in found])      # one range of tokens per finding
    [(4, 11), (15, 23)]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from memdefense.lm import LM

Span = tuple[int, int]
"""From the first character (or token) to the one after the last."""


def token_offsets(lm: LM, text: str) -> npt.NDArray[np.int64]:
    """Where in the text each token of ``lm.encode(text)`` stands: (tokens, 2), start and end in characters."""
    encoded = lm.tokenizer(text, add_special_tokens=True, return_offsets_mapping=True, verbose=False)
    offsets = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    return offsets[: len(lm.encode(text))]  # which may leave out an end of text


def token_spans(lm: LM, text: str, spans: Sequence[Span]) -> list[Span]:
    """The tokens of each span, as a range of ``lm.encode(text)``: one range per span, (0, 0) where it has no token.

    Args:
        lm: whose tokenizer it is.
        text: what is tokenized.
        spans: ranges of characters; they may overlap, and so may the ranges of tokens.
    """
    if not spans:
        return []
    offsets = token_offsets(lm, text)
    ranges = []
    for span in spans:
        inside = np.flatnonzero(_shares(offsets, span))
        ranges.append((int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0))
    return ranges


def token_mask(lm: LM, text: str, spans: Sequence[Span]) -> npt.NDArray[np.bool_]:
    """Whether each token of ``lm.encode(text)`` shares a character with any of the spans: (tokens,)."""
    if not spans:
        return np.zeros(len(lm.encode(text)), dtype=np.bool_)
    offsets = token_offsets(lm, text)
    mask = np.zeros(len(offsets), dtype=np.bool_)
    for span in spans:
        mask |= _shares(offsets, span)
    return mask


def _shares(offsets: npt.NDArray[np.int64], span: Span) -> npt.NDArray[np.bool_]:
    """Whether each token has a character in the span; a special token has none at all."""
    start, end = np.maximum(offsets[:, 0], span[0]), np.minimum(offsets[:, 1], span[1])
    shares: npt.NDArray[np.bool_] = start < end
    return shares


__all__ = ["Span", "token_mask", "token_offsets", "token_spans"]
