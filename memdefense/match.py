"""Whether a continuation begins with a value, however it is written: the one rule for values, twins and strangers.

A value and its twin must be judged alike, and the twin was never written down in any form. So a value is spelled out
as a pattern of all its written forms, and the beginning of a continuation is held against it. A value that goes on
(``ann@corp.com`` in ``ann@corp.com.au``, or a number with more digits) is another value.
"""

from __future__ import annotations

import functools
import re

import numpy as np

from memdefense import pii

# What may stand before a value: white space, brackets and quotes; a dash or a colon only where a blank follows.
_OPENING = re.compile(r"(?:[ \t\n<(\[{\"'*`“”„‟‘’‚‛«»‹›]|[-:](?=[ \t\n]))*")
# A line break, with what begins a quoted line.
_FOLD = r"(?:[ \t]*=?\n[>| \t]*)?"
_AT = r"\s*(?:@|[(\[{<]\s?(?:at|@)\s?[)\]}>]|(?<=\s)at(?=\s))\s*" + _FOLD
_DOT = r"(?:\.|\s*[(\[{<]\s?(?:dot|\.)\s?[)\]}>]\s*|\s+dot\s+)" + _FOLD
_APART = r"[\s()+./|>–-]*"
_NUMBER = re.compile(rf"(?:{_APART}\d)*")
_DIGITS = ("phone", "account", "ssn")
# An international prefix with a country code and a trunk zero.
_ABROAD = rf"(?:\+|00|011){_APART}(?:\d{_APART}){{1,4}}"


def begins(text: str, kind: str, value: str) -> bool:
    """Whether ``text`` begins with the value, in any written form.

    Args:
        text: a continuation; white space, opening brackets, quotes and "- " or ": " at its beginning are passed over.
        kind: the kind of PII.
        value: its canonical form.
    """
    head = _OPENING.sub("", text[: 4 * len(value) + 60], count=1)
    if not value or not head:
        return False
    if _pattern(kind, value).match(head):
        return True
    # What has no pattern here, such as an IBAN with its letters or an IPv6 address written out, the detector reads.
    return kind in pii.KINDS and any(p.start == 0 and p.canonical == value for p in pii.find(head, [kind]))


def edits(text: str, kind: str, value: str) -> float:
    """How far the beginning of ``text`` is from the value: edits (Levenshtein) as a share of the value's characters.

    0 where `begins` holds, and at most 1. The beginning that is nearest counts, whatever follows it. Letter case does
    not matter; of a number only the digits at the beginning of the text do, however they are separated.

    Args:
        text: a continuation.
        kind: the kind of PII.
        value: its canonical form, not empty.
    """
    if begins(text, kind, value):
        return 0.0
    head = _OPENING.sub("", text[: 4 * len(value) + 60], count=1)
    if kind in _DIGITS:
        head = "".join(filter(str.isdecimal, _NUMBER.match(head)[0]))  # type: ignore[index]
        heads = [head, head[1:]] if kind == "phone" and head.startswith(("0", "1")) else [head]
    else:
        heads = [head.lower()]
    return min(_distance(value.lower(), one[: 2 * len(value)]) for one in heads) / len(value)


def written_like(written: str, kind: str, value: str) -> str:
    """A value as it would stand where another of its kind is written: a number takes the other's separators.

    Args:
        written: a mention in its ordinary form.
        kind: the kind of both.
        value: the canonical form that is spelled out.
    """
    places = [place for place, letter in enumerate(written) if letter.isdecimal()]
    if kind not in _DIGITS or len(places) < len(value):
        return value
    letters = list(written)
    for place, digit in zip(places[-len(value) :], value, strict=True):
        letters[place] = digit
    return "".join(letters)


def _distance(value: str, text: str) -> int:
    """The fewest edits that turn a beginning of ``text`` into ``value``."""
    letters, places = np.array(list(text), dtype="U1"), np.arange(len(text) + 1)
    row = places
    for number, letter in enumerate(value, 1):
        step = np.minimum(row[1:] + 1, row[:-1] + (letters != letter))
        # What is left of a place reaches it by insertions, one each.
        row = np.minimum.accumulate(np.concatenate([[number], step]) - places) + places
    return int(row.min())


@functools.lru_cache(maxsize=1 << 14)
def _pattern(kind: str, value: str) -> re.Pattern[str]:
    if kind in _DIGITS:
        # Before a national number stands the North American 1, or a trunk zero. A canonical form is the last ten
        # digits, so that a zero before fewer makes another value.
        trunk = "[01]" if len(value) == 10 else "1"
        country = rf"[(]?(?:{_ABROAD}|{trunk}{_APART})?" if kind == "phone" else ""
        return re.compile(rf"{country}{_APART}{_APART.join(value)}(?!\d)")
    if kind == "email":
        spelled = {"@": _AT, ".": _DOT}
        body = "".join(spelled.get(letter) or re.escape(letter) + _FOLD for letter in value[:-1])
        return re.compile(rf"(?:mailto:)?{body}{re.escape(value[-1])}(?![-.@]?\w)", re.IGNORECASE)
    if kind in ("url", "ip"):
        return re.compile(rf"{re.escape(value)}(?![^\s<>\"'(),;]*[\w/])", re.IGNORECASE)
    return re.compile(rf"{re.escape(value)}(?!\w)", re.IGNORECASE)
