"""Whether a continuation begins with a value, however it is written: the one rule for values, twins and strangers.

A value and its twin must be judged alike, and the twin was never written down in any form. So a value is spelled out
as a pattern of all its written forms, and the beginning of a continuation is held against it. A value that goes on
(``ann@corp.com`` in ``ann@corp.com.au``, or a number with more digits) is another value.
"""

from __future__ import annotations

import functools
import re

from memdefense import pii

_OPENING = " \t\n<([{\"'*"
# A line break, with what begins a quoted line.
_FOLD = r"(?:[ \t]*=?\n[>| \t]*)?"
_AT = r"\s*(?:@|[(\[{<]\s?(?:at|@)\s?[)\]}>]|(?<=\s)at(?=\s))\s*" + _FOLD
_DOT = r"(?:\.|\s*[(\[{<]\s?(?:dot|\.)\s?[)\]}>]\s*|\s+dot\s+)" + _FOLD
_APART = r"[\s()+./|>–-]*"
_DIGITS = ("phone", "account", "ssn")
# Before a national number: the North American 1, or an international prefix with a country code and a trunk zero.
_COUNTRY = rf"(?:(?:\+|00|011){_APART}(?:\d{_APART}){{1,4}}|1{_APART})?"


def begins(text: str, kind: str, value: str) -> bool:
    """Whether ``text`` begins with the value, in any written form.

    Args:
        text: a continuation; white space and opening brackets or quotes at its beginning are passed over.
        kind: the kind of PII.
        value: its canonical form.
    """
    head = text[: 4 * len(value) + 60].lstrip(_OPENING)
    if not value or not head:
        return False
    if _pattern(kind, value).match(head):
        return True
    # What has no pattern here, such as an IBAN with its letters or an IPv6 address written out, the detector reads.
    return kind in pii.KINDS and any(p.start == 0 and p.canonical == value for p in pii.find(head, [kind]))


@functools.lru_cache(maxsize=1 << 14)
def _pattern(kind: str, value: str) -> re.Pattern[str]:
    if kind in _DIGITS:
        country = rf"[(]?{_COUNTRY}" if kind == "phone" else ""
        return re.compile(rf"{country}{_APART}{_APART.join(value)}(?!\d)")
    if kind == "email":
        spelled = {"@": _AT, ".": _DOT}
        body = "".join(spelled.get(letter) or re.escape(letter) + _FOLD for letter in value[:-1])
        return re.compile(rf"(?:mailto:)?{body}{re.escape(value[-1])}(?![-.@]?\w)", re.IGNORECASE)
    if kind in ("url", "ip"):
        return re.compile(rf"{re.escape(value)}(?![^\s<>\"'(),;]*[\w/])", re.IGNORECASE)
    return re.compile(rf"{re.escape(value)}(?!\w)", re.IGNORECASE)
