"""Every error a user can cause, so that the command line can print it without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MemdefenseError(Exception):
    """Something the user can mend: the message says what happened, where, and what to do next."""


class SpecError(MemdefenseError):
    """A plugin spec, field or option that cannot be understood."""


class DataError(MemdefenseError):
    """Data that is missing, empty, broken or too small for what was asked."""


class ModelError(MemdefenseError):
    """A model or tokenizer that cannot be loaded or cannot do what was asked of it."""


class StoreError(MemdefenseError):
    """The store cannot be read or written."""


class PluginError(MemdefenseError):
    """A plugin broke its contract; the message names the plugin and the hook."""


class NotApplicable(MemdefenseError):  # noqa: N818  (a verdict on a pair, not a mistake)
    """Raised by a plugin for a pair that makes no sense; becomes an ``n/a`` row with the message as its reason."""


def hint(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the nearest known names, or the whole list where nothing is near.

    Args:
        word: what the user wrote.
        known: the names that would have been understood.
    """
    names = sorted(set(known))
    near = difflib.get_close_matches(word.lower().replace("_", "-"), names, n=2, cutoff=0.6)
    if near:
        return "; did you mean " + " or ".join(f"'{name}'" for name in near) + "?"
    return f"; known: {', '.join(names)}" if names else "; none is known here"
