"""Whether a continuation begins with a value, however it is written: the one rule for values, twins and strangers.

A value and its twin must be judged alike, and the twin was never written down in any form. So continuations are
brought to the canonical form from their beginning on, and compared there.
"""

from __future__ import annotations

import re

_AT = re.compile(r"\s*(?:@|\(at\)|\[at\]|(?<=\s)at(?=\s))\s*", re.IGNORECASE)
_DOT = re.compile(r"\s*(?:\(dot\)|\[dot\]|(?<=\s)dot(?=\s))\s*", re.IGNORECASE)
_QUOTE = re.compile(r"\n[>\s]*")
_NUMBER = re.compile(r"[\d\s()+./\-–>]*")
_DIGITS = ("phone", "account", "ssn")


def begins(text: str, kind: str, value: str) -> bool:
    """Whether ``text`` begins with the value, in any written form.

    Args:
        text: a continuation; white space and opening brackets at its beginning are passed over.
        kind: the kind of PII.
        value: its canonical form.
    """
    head = text[: 4 * len(value) + 40].lstrip(" \t\n<([\"'")
    if kind in _DIGITS:
        number = _NUMBER.match(head)
        digits = re.sub(r"\D", "", number.group() if number else "")
        return digits.startswith(value) or (kind == "phone" and digits.startswith("1" + value))
    if kind == "email":
        joined = _QUOTE.sub("", head.lower())
        return any(form.startswith(value) for form in (head.lower(), joined, _DOT.sub(".", _AT.sub("@", joined))))
    return head.lower().startswith(value.lower())
