"""Values of PII: their kinds, the canonical form, and the checks that tell a value from another number."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Iterable

from memdefense.errors import DataError, SpecError, hint

KINDS: tuple[str, ...] = ("email", "phone", "account", "ssn", "ip", "url")
"""What `find` finds."""
NAMES: tuple[str, ...] = ("person", "location", "organization", "group", "identifier")
"""What patterns cannot tell and other detectors may find: names, nationalities and the like (group), other numbers."""

EXTENSION = re.compile(r"(?i)[ ,;]*(?:x|ext(?:\.|n|ension)?|#)[ =.:]*[0-9]+\s*\Z")
"""An extension behind a phone number."""
AUTHORITY = re.compile(r"\A([A-Za-z]*://)?([^/?#]*@)?([^/?#]*)")
"""Scheme, user and host of a URL."""
_TRAILING = ".,;:!?'*>"


@dataclasses.dataclass(frozen=True, slots=True)
class Pii:
    """One mention of a value in a text: ``value == text[start:end]``; ``canonical`` tells values apart."""

    kind: str
    start: int
    end: int
    value: str
    canonical: str


def canonical(kind: str, value: str) -> str:
    """The form in which two mentions of one value are equal.

    E-mail: lower-cased, without ``mailto:`` and surrounding brackets or dots. Phone: the last ten digits (all where
    there are fewer), extension off. Account, SSN: the digits. IP: as `ipaddress` writes it. URL: scheme and host
    lower-cased, trailing punctuation off. `NAMES`: case-folded, with single spaces.

    Raises:
        SpecError: the kind is unknown.
        DataError: an IP address is none.
    """
    check_kinds([kind], "canonical()")
    if kind in NAMES:
        return " ".join(value.casefold().split())
    value = value.strip()
    if kind == "email":
        return value.strip("<>. ").lower().removeprefix("mailto:").strip("<>. ")
    if kind == "ip":
        try:
            return str(ipaddress.ip_address(value.strip("[]")))
        except ValueError as error:
            raise DataError("the value is no IP address; canonical('ip', ...) takes what find() gives") from error
    if kind == "url":
        return AUTHORITY.sub(lambda m: (m[1] or "").lower() + (m[2] or "") + m[3].lower(), trimmed(value))
    if kind == "phone":
        return digits_of(EXTENSION.sub("", value))[-10:]
    return digits_of(value)


def check_kinds(kinds: Iterable[str], who: str) -> None:
    """Raises a SpecError that names the plugin for a field ``kinds`` with one that is none of `KINDS` and `NAMES`."""
    for kind in kinds:
        if kind not in (*KINDS, *NAMES):
            raise SpecError(f"{who}: kinds cannot be '{kind}'{hint(kind, (*KINDS, *NAMES))}")


def digits_of(value: str) -> str:
    """The ASCII digits of a value."""
    return re.sub(r"[^0-9]", "", value)


def trimmed(url: str) -> str:
    """A URL without the punctuation of the sentence around it."""
    end, unopened = len(url), url.count(")") - url.count("(")
    while end and (url[end - 1] in _TRAILING or (url[end - 1] == ")" and unopened > 0)):
        unopened -= url[end - 1] == ")"
        end -= 1
    return url[:end]


def luhn(digits: str) -> bool:
    """Whether the check digit of a card number holds."""
    total = sum(map(int, digits[-1::-2])) + sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return total % 10 == 0


def is_ip(value: str) -> bool:
    """Whether a value is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def iban_rest(value: str) -> int:
    """An IBAN modulo 97, which is 1 where its check digits hold."""
    plain = value.replace(" ", "")
    return int("".join(str(int(character, 36)) for character in plain[4:] + plain[:4])) % 97
