"""Kinds of personally identifiable information (PII): find it, bring it to canonical form, replace it plausibly."""

from __future__ import annotations

from .detect import find
from .fakes import fake, local_part, pick
from .forms import KINDS, NAMES, Pii, canonical, check_kinds
from .words import DOMAINS, LOCALS, SUFFIXES

__all__ = [
    "DOMAINS",
    "KINDS",
    "LOCALS",
    "NAMES",
    "SUFFIXES",
    "Pii",
    "canonical",
    "check_kinds",
    "fake",
    "find",
    "local_part",
    "pick",
]
