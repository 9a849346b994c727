r"""Finds mentions of PII in a text.

One precompiled expression per kind proposes candidates in linear time; `phonenumbers`, `ipaddress` and check digits
(Luhn, the modulo 97 of IBANs) decide. The detector does not undo obfuscation: "john at example dot com", a value
wrapped over a line break and digits pulled apart ("5 5 5 0 1 8 7") are misses, as they are for a real defender.

    >>> [(pii.kind, pii.canonical) for pii in find("Mail Ann.Lee@Fenwick.COM or call (212) 555-0187.")]
    [('email', 'ann.lee@fenwick.com'), ('phone', '2125550187')]
"""

from __future__ import annotations

import bisect
import functools
import re
from collections.abc import Callable, Iterator, Sequence

import phonenumbers

from memdefense.errors import SpecError, hint

from .forms import KINDS, Pii, canonical, iban_rest, is_ip, luhn, trimmed

_WORD = "A-Za-z0-9À-ÖØ-öø-ɏ"
# Found by its "@"; the local part is sought in the 65 characters before it. All is bounded, so nothing is quadratic.
_EMAIL = re.compile(rf"@(?:[{_WORD}](?:[{_WORD}-]{{0,61}}[{_WORD}])?\.){{1,10}}[A-Za-z]{{2,24}}(?![{_WORD}])")
_LOCAL = re.compile(rf"[{_WORD}._%+'-]+\Z")
# Their values look like addresses and are none; folded lines belong to the header.
_IDENTIFIERS = re.compile(r"(?im)^([> \t]*)(?:message-id|references|in-reply-to)[ \t]*:.*(?:\n\1[ \t]+\S.*)*")
# The first character stands before the look-behinds, because `re` skips ahead quickly only to a leading set.
_PHONE = re.compile(
    r"[(+1-9](?<![\w+][0-9])(?<![0-9][./-][0-9])(?:"
    r"(?<=\()[2-9][0-9]{2}\)[ -]?[2-9][0-9]{2}[ .-]?[0-9]{4}"
    r"|(?<=\+)[1-9](?:[ ()./-]{0,2}[0-9]){6,14}"
    r"|(?<=1)[ .-]?(?:\([2-9][0-9]{2}\)[ -]?|[2-9][0-9]{2}[ ./-]?)[2-9][0-9]{2}[ .-]?[0-9]{4}"
    r"|(?<=[2-9])[0-9]{2}[ ./-]?[2-9][0-9]{2}[ .-]?[0-9]{4}"
    r")(?:(?=[ ]?(?:x|ext))|(?!\w|[./-][0-9]|@))"
)
_DATE = re.compile(r"(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])")
_CUE = re.compile(
    r"(?i)\b(?:(account|acct|acc|a/c|card)|order|invoice|ticket|tracking|confirmation|reference|ref|serial)s?\b\.?"
    r"(?:\s*(?:no|number|num|nr|id|is|[#:.=-])){0,4}\s*\Z"
)
_ACCOUNT = re.compile(
    r"[0-9](?<![\w.@=/+$][0-9])"
    r"(?:[0-9]{3}([ -])[0-9]{4}\1[0-9]{4}(?:\1[0-9]{4})?(?:\1[0-9]{1,3})?(?!\1[0-9])|[0-9]{7,18})(?!\w|[./-][0-9]|@)"
)
_CARD = re.compile(r"(?:[3-6][0-9]|2[2-7])[0-9]{11,17}")
_YEARS = re.compile(r"(?:(?:19|20)[0-9]{2}[ -]?)+")
_IBAN = re.compile(r"[A-Z](?<!\w[A-Z])[A-Z][0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
_SSN = re.compile(r"[0-8](?<![\w-][0-8])[0-9]{2}(?<!000)(?<!666)-(?!00)[0-9]{2}-(?!0000)[0-9]{4}(?!\w|-[0-9])")
_IPV4 = re.compile(r"[0-9](?<![\w.][0-9])(?<!ersion [0-9])[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?!\w|\.[0-9])")
_COLONS = re.compile(r":(?=[0-9A-Fa-f]{0,4}:)")
_IPV6 = re.compile(
    r"(?:[0-9A-Fa-f]{0,4}:){2,7}(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f]{0,4})(?!\w|:[0-9A-Fa-f:]|\.[0-9])"
)
_URL = re.compile(
    r"[hHfFwW](?<![\w@.].)(?i:(?:(?<=h)ttps?://|(?<=f)tp://)[\w\[]|(?<=w)ww\.[\w-]{1,63}\.\w)[^\s<>\"{}|\\^`]{0,2000}"
)
_JOINED = frozenset("./-$=@_")
_HEX = frozenset("0123456789abcdefABCDEF")
_LAST_GROUP = re.compile(r"[ ()./-]+\w+\Z")


def find(text: str, kinds: Sequence[str] = KINDS) -> list[Pii]:
    """Every mention of the given kinds, in the order of the text.

    Where mentions of these kinds overlap, the longest stays, then the one whose kind comes first in `KINDS`. Nothing is
    found in ``Message-ID:``, ``References:`` and ``In-Reply-To:`` header lines, quoted ones included.

    Raises:
        SpecError: a kind is none of `KINDS`.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise SpecError(f"patterns find no '{kind}'{hint(kind, KINDS)}")
    found = [(start, end, kind) for kind in KINDS if kind in kinds for start, end in _FINDERS[kind](text)]
    if not found:
        return []
    found.sort(key=lambda mention: (mention[0] - mention[1], KINDS.index(mention[2])))
    headers = [match.span() for match in _IDENTIFIERS.finditer(text)]
    kept: list[tuple[int, int, str]] = []
    for start, end, kind in found:
        header = bisect.bisect_right(headers, (start, len(text))) - 1
        if header >= 0 and start < headers[header][1]:
            continue
        at = bisect.bisect(kept, (start,))
        if (at and kept[at - 1][1] > start) or (at < len(kept) and kept[at][0] < end):
            continue
        kept.insert(at, (start, end, kind))
    return [Pii(kind, start, end, text[start:end], canonical(kind, text[start:end])) for start, end, kind in kept]


def _emails(text: str) -> Iterator[tuple[int, int]]:
    last = 0
    for match in _EMAIL.finditer(text):
        at, end = match.span()
        before = text[max(last, at - 65) : at]
        local = _LOCAL.search(before)
        # 64 characters are the longest local part there is; a longer run is no address.
        if local and len(local[0]) <= 64 and (length := len(local[0].rpartition("..")[2].lstrip(".'-%+"))):
            yield at - length, end
        last = end


def _phones(text: str) -> Iterator[tuple[int, int]]:
    for match in _PHONE.finditer(text):
        start, end = match.span()
        value = match[0]
        if value.isdigit():
            # A bare run is a phone number only where nothing says that it is some other number.
            if text[max(0, start - 1) : start] in _JOINED or _DATE.match(value[-10:]) or _cue(text, start):
                continue
        elif value.replace(" ", "").isdigit() and _in_row(text, start, end):
            continue
        if length := _good_length(value, _possible):
            yield start, start + length


def _accounts(text: str) -> Iterator[tuple[int, int]]:
    for match in _ACCOUNT.finditer(text):
        start, end = match.span()
        value, separator = match[0], match[1]
        if separator:
            before = text[max(0, start - 4) : start]
            if not (before[3:] == separator and before[:3].isdigit()) and not _YEARS.fullmatch(value):
                yield start, end
        elif (len(value) <= 17 and _cue(text, start) == "account") or (_CARD.fullmatch(value) and luhn(value)):
            yield start, end
    for match in _IBAN.finditer(text):
        if length := _good_length(match[0], lambda iban: iban_rest(iban) == 1):
            yield match.start(), match.start() + length


def _ips(text: str) -> Iterator[tuple[int, int]]:
    last = 0
    for dotted in _IPV4.finditer(text):
        if is_ip(dotted[0]):
            yield dotted.span()
    for colon in _COLONS.finditer(text):
        start = colon.start()
        if start < last:
            continue
        while start > max(last, colon.start() - 4) and text[start - 1] in _HEX:
            start -= 1
        match = _IPV6.match(text, start)
        if match is None or (start and (text[start - 1].isalnum() or text[start - 1] in "_:.")):
            continue
        value = match[0][:-1] if match[0].endswith(":") and not match[0].endswith("::") else match[0]
        last = start + len(value)
        # Times are the usual candidates and are ruled out without an exception; "a::b" is code, not an address.
        if ("::" in value or value.count(":") >= 6) and any(map(str.isdigit, value)) and is_ip(value):
            yield start, last


def _good_length(value: str, good: Callable[[str], bool]) -> int:
    """The length of the longest head of whole groups that is good, 0 where none is."""
    while not good(value):
        shorter = _LAST_GROUP.sub("", value)
        if shorter == value:
            return 0
        value = shorter
    return len(value)


@functools.lru_cache(maxsize=1 << 16)
def _possible(value: str) -> bool:
    try:
        return phonenumbers.is_possible_number(phonenumbers.parse(value, "US"))
    except phonenumbers.NumberParseException:
        return False


def _in_row(text: str, start: int, end: int) -> bool:
    """Whether a value whose groups stand apart by spaces is part of a longer row of numbers."""
    return bool(re.match("[0-9]{3} ", text[max(0, start - 4) : start]) or re.match(" [0-9]{3}", text[end : end + 4]))


def _cue(text: str, start: int) -> str:
    """What the words before a bare number call it: ``account``, ``other`` or nothing."""
    cue = _CUE.search(text[max(0, start - 48) : start])
    return "" if cue is None else "account" if cue[1] else "other"


_FINDERS: dict[str, Callable[[str], Iterator[tuple[int, int]]]] = {
    "email": _emails,
    "phone": _phones,
    "account": _accounts,
    "ssn": lambda text: (match.span() for match in _SSN.finditer(text)),
    "ip": _ips,
    "url": lambda text: ((match.start(), match.start() + len(trimmed(match[0]))) for match in _URL.finditer(text)),
}
