"""Plausible values in place of real ones; every draw is the same for a seed in every NumPy version."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Sequence

import numpy as np

from memdefense.errors import DataError

from . import words
from .forms import AUTHORITY, EXTENSION, NAMES, canonical, digits_of, iban_rest, is_ip, luhn

_TRIES = 10_000
_PART = re.compile(r"%[0-9A-Fa-f]{2}|\.[A-Za-z]{2,5}(?=[?#]|\Z)|[^\W\d_]{3,}|[0-9]")


def fake(kind: str, value: str, rng: np.random.Generator, *, avoid: Container[str] = ()) -> str:
    """A plausible random value of the same kind and written format: digits are redrawn, separators stay.

    An e-mail address comes from the pools and keeps its number of dots in the local part; a North American phone number
    gets the exchange 555, another keeps its country; a card keeps its issuer and stays Luhn-valid; an IBAN keeps its
    letters and stays valid; a URL keeps its scheme, its shape and a file name's extension. Of `NAMES`, each word
    becomes another, capitalised as it was, each lone letter and digit another; of an identifier all letters and digits.

    Args:
        kind: one of `KINDS` and `NAMES`.
        value: what is replaced, as written.
        rng: only its raw bits are read, whose stream NumPy guarantees over versions.
        avoid: canonical forms that are drawn again, beside that of ``value`` itself.

    Raises:
        SpecError: the kind is unknown.
        DataError: nothing outside ``avoid`` was drawn.
    """
    own = canonical(kind, value)
    for _ in range(_TRIES):
        drawn = _FAKES[kind](value, rng)
        form = canonical(kind, drawn)
        if form != own and form not in avoid:
            return drawn
    raise DataError(f"no {kind} value outside the {kind} values to avoid in {_TRIES:,} draws; avoid fewer values")


def pick(pool: Sequence[str], rng: np.random.Generator) -> str:
    """One entry of a pool, each equally likely; the same for a seed in every NumPy version."""
    # NumPy guarantees the bits of a generator over versions, not what its methods make of them.
    return pool[int(rng.bit_generator.random_raw()) % len(pool)]


def local_part(dots: int, rng: np.random.Generator) -> str:
    """A plausible local part of an e-mail address with that many dots."""
    parts = [pick(words.LOCALS, rng) for _ in range(dots + 1)]
    if not dots:
        parts[0] = pick(("", *"abcdefghijklmnopqrstuvwxyz"), rng) + parts[0]
    return ".".join(parts)


def _fill(value: str, digits: str) -> str:
    """The value with its digits replaced in turn."""
    each = iter(digits)
    return re.sub("[0-9]", lambda _: next(each), value)


def _random(length: int, rng: np.random.Generator, first: str = "0123456789") -> str:
    return "".join(pick("0123456789" if place else first, rng) for place in range(length))


def _fake_email(value: str, rng: np.random.Generator) -> str:
    local = canonical("email", value).rpartition("@")[0]
    drawn = f"{local_part(local.count('.'), rng)}@{pick(words.DOMAINS, rng)}.{pick(words.SUFFIXES, rng)}"
    return drawn.upper() if value.isupper() else drawn


def _fake_phone(value: str, rng: np.random.Generator) -> str:
    digits = digits_of(EXTENSION.sub("", value))
    if "+" in value and digits[:1] != "1":
        # The country code and what says whether the number is possible; three digits hold every country code.
        drawn = digits[:3] + _random(len(digits) - 3, rng)
    elif len(digits) in (10, 11):
        # Area codes have no 9 in the middle and do not end in 11.
        area = pick("23456789", rng) + pick("02345678", rng) + pick("0123456789", rng)
        drawn = digits[:-10] + area + "555" + _random(4, rng)
    else:
        drawn = _random(len(digits), rng, "23456789")
    return _fill(value, drawn + _random(len(digits_of(value)) - len(drawn), rng))


def _fake_account(value: str, rng: np.random.Generator) -> str:
    digits = digits_of(value)
    if value[:2].isalpha():
        drawn = _fill(value, "00" + _random(len(digits) - 2, rng))
        return _fill(drawn, f"{98 - iban_rest(drawn):02d}" + digits_of(drawn)[2:])
    if 13 <= len(digits) <= 19 and luhn(digits):
        head = digits[:2] + _random(len(digits) - 3, rng)
        return _fill(value, next(head + check for check in "0123456789" if luhn(head + check)))
    # From 3 on, so that groups of four are no row of years.
    return _fill(value, _random(len(digits), rng, "3456789"))


def _fake_ssn(value: str, rng: np.random.Generator) -> str:
    area = int(_random(3, rng, "012345678")) % 665 + 1
    return _fill(value, f"{area:03d}{int(_random(2, rng)) % 99 + 1:02d}{int(_random(4, rng)) % 9999 + 1:04d}")


def _fake_ip(value: str, rng: np.random.Generator) -> str:
    if ":" not in value:
        return ".".join(str(int(_random(3, rng)) % 211 + 12) for _ in range(4))
    head, colon, tail = value.rpartition(":")
    if "." in tail:
        return head + colon + _fake_ip(tail, rng)
    several = len(re.findall("[0-9A-Fa-f]+", value)) > 1
    digits = "0123456789" + ("ABCDEF" if value.isupper() else "abcdef")

    def redraw(group: re.Match[str]) -> str:
        # The first group says what network it is; a leading digit keeps the others apart from words.
        if several and not group.start():
            return group[0]
        return pick("123456789", rng) + "".join(pick(digits, rng) for _ in group[0][1:])

    return re.sub("[0-9A-Fa-f]+", redraw, value)


def _fake_url(value: str, rng: np.random.Generator) -> str:
    def part(match: re.Match[str]) -> str:
        kept = match[0][0] in "%."
        return match[0] if kept else pick("0123456789" if match[0].isdigit() else words.LOCALS, rng)

    def authority(match: re.Match[str]) -> str:
        if is_ip(match[3]):
            host = _fake_ip(match[3], rng)
        else:
            host = (
                f"{'www.' * match[3].lower().startswith('www.')}{pick(words.DOMAINS, rng)}.{pick(words.SUFFIXES, rng)}"
            )
        return (match[1] or "") + _PART.sub(part, match[2] or "") + host

    rest = AUTHORITY.sub("", value)
    return AUTHORITY.sub(authority, value.removesuffix(rest)) + _PART.sub(part, rest)


def _fake_name(value: str, rng: np.random.Generator) -> str:
    def word(match: re.Match[str]) -> str:
        found = match[0]
        if len(found) == 1:
            return _fake_identifier(found, rng)
        drawn = pick(words.LOCALS, rng) + pick(words.ENDINGS, rng) + pick(words.ENDINGS, rng)
        return drawn.upper() if found.isupper() else drawn if found[0].islower() else drawn.capitalize()

    return re.sub(r"[^\W\d_]+|[0-9]", word, value)


def _fake_identifier(value: str, rng: np.random.Generator) -> str:
    def sign(match: re.Match[str]) -> str:
        if match[0].isdigit():
            return _random(1, rng)
        return pick("ABCDEFGHIJKLMNOPQRSTUVWXYZ" if match[0].isupper() else "abcdefghijklmnopqrstuvwxyz", rng)

    return re.sub(r"[^\W\d_]|[0-9]", sign, value)


_FAKES: dict[str, Callable[[str, np.random.Generator], str]] = {
    "email": _fake_email,
    "phone": _fake_phone,
    "account": _fake_account,
    "ssn": _fake_ssn,
    "ip": _fake_ip,
    "url": _fake_url,
    **dict.fromkeys(NAMES, _fake_name),
    "identifier": _fake_identifier,
}
