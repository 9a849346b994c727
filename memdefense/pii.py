r"""Kinds of personally identifiable information (PII): find it, bring it to canonical form, replace it plausibly.

One precompiled expression per kind proposes candidates in linear time; `phonenumbers`, `ipaddress` and check digits
(Luhn, the modulo 97 of IBANs) decide. The detector does not undo obfuscation: "john at example dot com", a value
wrapped over a line break and digits pulled apart ("5 5 5 0 1 8 7") are misses, as they are for a real defender.

    >>> [(pii.kind, pii.canonical) for pii in find("Mail Ann.Lee@Fenwick.COM or call (212) 555-0187.")]
    [('email', 'ann.lee@fenwick.com'), ('phone', '2125550187')]
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import importlib
import importlib.util
import ipaddress
import re
from collections.abc import Callable, Container, Iterator, Sequence

import numpy as np
import phonenumbers

from memdefense.errors import DataError, ModelError, SpecError, hint

KINDS: tuple[str, ...] = ("email", "phone", "account", "ssn", "ip", "url")

LOCALS: tuple[str, ...] = tuple(
    re.findall(
        "[a-z]+",
        "abram adela alder alina alton amara anders anika ansel ardis arlo astrid aubin avery barlow basil becca "
        "benno bettina birch blaine bram brenna briony caleb calder camden carver celia cedric clara clement coral "
        "corwin dalton daria darrow deacon delia denby dora dorian draper edda edison elara elden eliza elmer ember "
        "emlyn ennis esme fabian faye felton fern finley flora forrest freya garrick gemma gideon glenna greer "
        "greta hadley halden harlow hazel helga holden hollis ida imogen ingram iris ivor jarvis jessamy jolene "
        "jorah juno keane keaton kendra kerrin kirby lambert larkin leland lenora linden lorna lowell lyle mabel "
        "marden marlow maren mercer milton mirren morley nadia nella nesbit nolan norris odell olive orla orson "
        "osgood paige palmer parry pella perrin petra piper quill quincy radley ramona reeve rhoda rosalind rowan "
        "rufus sabin selma shelby sheldon sibyl sorrel sutton tabor talia tansy tatum tessa thora tilda tobin "
        "torrance ulla upton valen vance verity vesper wade walden warrick wendell whitby willa winslow wren "
        "yardley yorick zelda zora",
    )
)
"""Neutral words for the local part of an e-mail address."""
DOMAINS: tuple[str, ...] = tuple(
    re.findall(
        "[a-z]+",
        "alderquay amberwick ashfennel barrowmint basaltine birchmoor bluntwater bramblegate brasswhistle "
        "brindlecote calderfen cedarnook chalkhollow cindermere clovermarsh copperlatch cragmellow crestwillow "
        "dapplemoor dewbarrow driftmallow duskfield eldernook emberquay fallowmint fenwhistle fernbarrow "
        "flintmeadow foxmallow frostlatch galewick gorsefield graniteloom greymallow harrowmint hazelquay "
        "heathermoss hollowpine inkwillow ironfennel ivorylatch juniperfen kestrelmoor kilnfield larchwater "
        "lintelgate loamwick lunarfennel maplequay marlstone meadowlatch mistbarrow mosswhistle nettlegate "
        "northfennel oakmellow ochremoor opalbarrow orchardfen otterwick pebblequay pinewhistle plumlatch "
        "quartzmeadow quillbarrow ravenfennel reedmallow rookwater rowanlatch rushmellow saffronmoor sedgewhistle "
        "slatemint sorrelquay sparrowfen stonemallow tallowgate tansymoor thistlequay tidemellow umberlatch "
        "vellumfield verdantquay wharfmint wickerfen willowslate wintermallow yarrowlatch",
    )
)
"""Invented first labels of a domain."""
SUFFIXES: tuple[str, ...] = ("com", "net", "org", "info", "biz", "us", "co.uk", "org.uk", "ca", "com.au", "de", "eu")
"""What stands after the first label of a domain."""


@dataclasses.dataclass(frozen=True, slots=True)
class Pii:
    """One mention of a value in a text: ``value == text[start:end]``; ``canonical`` tells values apart."""

    kind: str
    start: int
    end: int
    value: str
    canonical: str


Detector = Callable[[str], list[Pii]]

_TRIES = 10_000
_PRESIDIO = {
    "EMAIL_ADDRESS": "email",
    "PHONE_NUMBER": "phone",
    "CREDIT_CARD": "account",
    "IBAN_CODE": "account",
    "US_BANK_NUMBER": "account",
    "US_SSN": "ssn",
    "IP_ADDRESS": "ip",
    "URL": "url",
}
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
_EXTENSION = re.compile(r"(?i)[ ,;]*(?:x|ext(?:\.|n|ension)?|#)[ =.:]*[0-9]+\s*\Z")
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
_AUTHORITY = re.compile(r"\A([A-Za-z]*://)?([^/?#]*@)?([^/?#]*)")
_PART = re.compile(r"%[0-9A-Fa-f]{2}|\.[A-Za-z]{2,5}(?=[?#]|\Z)|[^\W\d_]{3,}|[0-9]")
_JOINED = frozenset("./-$=@_")
_HEX = frozenset("0123456789abcdefABCDEF")
_TRAILING = ".,;:!?'*>"
_LAST_GROUP = re.compile(r"[ ()./-]+\w+\Z")


def find(text: str, kinds: Sequence[str] = KINDS) -> list[Pii]:
    """Every mention of the given kinds, in the order of the text.

    Where mentions of these kinds overlap, the longest stays, then the one whose kind comes first in `KINDS`. Nothing is
    found in ``Message-ID:``, ``References:`` and ``In-Reply-To:`` header lines, quoted ones included.

    Raises:
        SpecError: a kind is unknown.
    """
    for kind in kinds:
        _check(kind)
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


def canonical(kind: str, value: str) -> str:
    """The form in which two mentions of one value are equal.

    E-mail: lower-cased, without ``mailto:`` and surrounding brackets or dots. Phone: the last ten digits (all where
    there are fewer), extension off. Account, SSN: the digits. IP: as `ipaddress` writes it. URL: scheme and host
    lower-cased, trailing punctuation off.

    Raises:
        SpecError: the kind is unknown.
        DataError: an IP address is none.
    """
    _check(kind)
    value = value.strip()
    if kind == "email":
        return value.strip("<>. ").lower().removeprefix("mailto:").strip("<>. ")
    if kind == "ip":
        try:
            return str(ipaddress.ip_address(value.strip("[]")))
        except ValueError as error:
            raise DataError("the value is no IP address; canonical('ip', ...) takes what find() gives") from error
    if kind == "url":
        return _AUTHORITY.sub(lambda m: (m[1] or "").lower() + (m[2] or "") + m[3].lower(), _trimmed(value))
    if kind == "phone":
        return _digits(_EXTENSION.sub("", value))[-10:]
    return _digits(value)


def fake(kind: str, value: str, rng: np.random.Generator, *, avoid: Container[str] = ()) -> str:
    """A plausible random value of the same kind and written format: digits are redrawn, separators stay.

    An e-mail address comes from the pools and keeps its number of dots in the local part; a North American phone number
    gets the exchange 555, another keeps its country; a card keeps its issuer and stays Luhn-valid; an IBAN keeps its
    letters and stays valid; a URL keeps its scheme, its shape and a file name's extension.

    Args:
        kind: one of `KINDS`.
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
    words = [pick(LOCALS, rng) for _ in range(dots + 1)]
    if not dots:
        words[0] = pick(("", *"abcdefghijklmnopqrstuvwxyz"), rng) + words[0]
    return ".".join(words)


def presidio_detector() -> Detector:
    """Microsoft Presidio's detector with its default English model: the `KINDS`, names and the rest, dates left out.

    Entities without a counterpart in `KINDS` keep Presidio's name in lower case (``person``, ``location``); their
    canonical form is the case-folded text with single spaces. They cannot be given to `fake`.

    Raises:
        ModelError: the extra or its language model is not installed.
    """
    if importlib.util.find_spec("presidio_analyzer") is None:
        raise ModelError("the presidio detector needs an extra: pip install memdefense[presidio]")
    # Presidio would otherwise download the model by itself, and end the process where it cannot.
    if importlib.util.find_spec("en_core_web_lg") is None:
        raise ModelError("the presidio detector needs its language model: python -m spacy download en_core_web_lg")
    engine = importlib.import_module("presidio_analyzer").AnalyzerEngine()

    def detect(text: str) -> list[Pii]:
        found: list[Pii] = []
        for result in sorted(engine.analyze(text=text, language="en"), key=lambda r: (r.start, -r.end, -r.score)):
            if result.entity_type == "DATE_TIME" or (found and result.start < found[-1].end):
                continue
            value = text[result.start : result.end]
            kind = _PRESIDIO.get(result.entity_type, result.entity_type.lower())
            ours = kind in KINDS and (kind != "ip" or _is_ip(value))
            form = canonical(kind, value) if ours else " ".join(value.casefold().split())
            found.append(Pii(kind, result.start, result.end, value, form))
        return found

    return detect


def _check(kind: str) -> None:
    if kind not in KINDS:
        raise SpecError(f"unknown kind of PII '{kind}'{hint(kind, KINDS)}")


def _digits(value: str) -> str:
    return re.sub(r"[^0-9]", "", value)


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
        elif (len(value) <= 17 and _cue(text, start) == "account") or (_CARD.fullmatch(value) and _luhn(value)):
            yield start, end
    for match in _IBAN.finditer(text):
        if length := _good_length(match[0], lambda iban: _iban_rest(iban) == 1):
            yield match.start(), match.start() + length


def _ips(text: str) -> Iterator[tuple[int, int]]:
    last = 0
    for dotted in _IPV4.finditer(text):
        if _is_ip(dotted[0]):
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
        if ("::" in value or value.count(":") >= 6) and any(map(str.isdigit, value)) and _is_ip(value):
            yield start, last


def _trimmed(url: str) -> str:
    end, unopened = len(url), url.count(")") - url.count("(")
    while end and (url[end - 1] in _TRAILING or (url[end - 1] == ")" and unopened > 0)):
        unopened -= url[end - 1] == ")"
        end -= 1
    return url[:end]


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


def _luhn(digits: str) -> bool:
    total = sum(map(int, digits[-1::-2])) + sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return total % 10 == 0


def _is_ip(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def _iban_rest(value: str) -> int:
    plain = value.replace(" ", "")
    return int("".join(str(int(character, 36)) for character in plain[4:] + plain[:4])) % 97


def _fill(value: str, digits: str) -> str:
    """The value with its digits replaced in turn."""
    each = iter(digits)
    return re.sub("[0-9]", lambda _: next(each), value)


def _random(length: int, rng: np.random.Generator, first: str = "0123456789") -> str:
    return "".join(pick("0123456789" if place else first, rng) for place in range(length))


def _fake_email(value: str, rng: np.random.Generator) -> str:
    local = canonical("email", value).rpartition("@")[0]
    drawn = f"{local_part(local.count('.'), rng)}@{pick(DOMAINS, rng)}.{pick(SUFFIXES, rng)}"
    return drawn.upper() if value.isupper() else drawn


def _fake_phone(value: str, rng: np.random.Generator) -> str:
    digits = _digits(_EXTENSION.sub("", value))
    if "+" in value and digits[:1] != "1":
        # The country code and what says whether the number is possible; three digits hold every country code.
        drawn = digits[:3] + _random(len(digits) - 3, rng)
    elif len(digits) in (10, 11):
        # Area codes have no 9 in the middle and do not end in 11.
        area = pick("23456789", rng) + pick("02345678", rng) + pick("0123456789", rng)
        drawn = digits[:-10] + area + "555" + _random(4, rng)
    else:
        drawn = _random(len(digits), rng, "23456789")
    return _fill(value, drawn + _random(len(_digits(value)) - len(drawn), rng))


def _fake_account(value: str, rng: np.random.Generator) -> str:
    digits = _digits(value)
    if value[:2].isalpha():
        drawn = _fill(value, "00" + _random(len(digits) - 2, rng))
        return _fill(drawn, f"{98 - _iban_rest(drawn):02d}" + _digits(drawn)[2:])
    if 13 <= len(digits) <= 19 and _luhn(digits):
        head = digits[:2] + _random(len(digits) - 3, rng)
        return _fill(value, next(head + check for check in "0123456789" if _luhn(head + check)))
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
        return match[0] if kept else pick("0123456789" if match[0].isdigit() else LOCALS, rng)

    def authority(match: re.Match[str]) -> str:
        if _is_ip(match[3]):
            host = _fake_ip(match[3], rng)
        else:
            host = f"{'www.' * match[3].lower().startswith('www.')}{pick(DOMAINS, rng)}.{pick(SUFFIXES, rng)}"
        return (match[1] or "") + _PART.sub(part, match[2] or "") + host

    rest = _AUTHORITY.sub("", value)
    return _AUTHORITY.sub(authority, value.removesuffix(rest)) + _PART.sub(part, rest)


_FINDERS: dict[str, Callable[[str], Iterator[tuple[int, int]]]] = {
    "email": _emails,
    "phone": _phones,
    "account": _accounts,
    "ssn": lambda text: (match.span() for match in _SSN.finditer(text)),
    "ip": _ips,
    "url": lambda text: ((match.start(), match.start() + len(_trimmed(match[0]))) for match in _URL.finditer(text)),
}
_FAKES: dict[str, Callable[[str, np.random.Generator], str]] = {
    "email": _fake_email,
    "phone": _fake_phone,
    "account": _fake_account,
    "ssn": _fake_ssn,
    "ip": _fake_ip,
    "url": _fake_url,
}
