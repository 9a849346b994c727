r"""The answer key of real text: every value that either of two detectors finds.

The first is `memdefense.pii.find`, which is also what a defense has. The second, here, is written apart from it and
looks for what people do to addresses and numbers: written out ("jane at corp dot com"), set apart ("jane @ corp.com"),
wrapped over a line break and the quote marks after it, digits in loose groups ("5 5 5 / 0 1 8 7"). So a defense is also
scored on values that its detector cannot see, though of what neither finds there is no account.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydivsufsort import divsufsort, sa_search

from memdefense import pii
from memdefense.corpus import Documents, Occurrence, Secret


class Mention(NamedTuple):
    """``text[start:end]`` writes a value in some form; ``plain`` is what the first detector finds."""

    start: int
    end: int
    kind: str
    value: str
    form: str


def find_secrets(
    train: Documents, held_out: Documents, name: Callable[[str, str], str]
) -> tuple[list[Secret], dict[str, int]]:
    """The values of both splits, with all their occurrences.

    A member is a value that occurs in ``train``. A non-member is one of ``held_out`` that stands nowhere in ``train``,
    not even inside a longer word, or for a number inside the digits of a document with all else taken out. The group
    is the author of the document of the first occurrence.

    Args:
        name: makes an id from a prefix and a text.

    Returns:
        The secrets, members first, in the order of their first occurrence; and counts: ``contained`` (held-out values
        that some longer string of ``train`` contains), ``mentions``, and those of only the second detector,
        ``hidden_mentions``.
    """
    texts = {document.id: document for document in (*train, *held_out)}
    members, counts = _values(train)
    others, more = _values(held_out)
    fresh = {key: occurrences for key, occurrences in others.items() if key not in members}
    contained = _contained(list(fresh), train)
    secrets = []
    for member, values in ((True, members), (False, fresh)):
        for (kind, value), occurrences in values.items():
            if (kind, value) in contained and not member:
                continue
            first = occurrences[0]
            origin = texts[first.document]
            before = origin.text[max(0, first.start - 200) : first.start]
            secrets.append(
                Secret(
                    id=name("s-", f"{kind}\x1f{value}"),
                    kind=kind,
                    value=value,
                    member=member,
                    group=origin.author,
                    occurrences=tuple(occurrences),
                    guessable=kind == "email" and guessable(value, before),
                )
            )
    return secrets, {
        "contained": len(contained),
        "mentions": counts[0] + more[0],
        "hidden_mentions": counts[1] + more[1],
    }


def _values(documents: Documents) -> tuple[dict[tuple[str, str], list[Occurrence]], tuple[int, int]]:
    found: defaultdict[tuple[str, str], list[Occurrence]] = defaultdict(list)
    total = hidden = 0
    for document in documents:
        for mention in mentions(document.text):
            total += 1
            hidden += mention.form != "plain"
            place = Occurrence(document.id, mention.start, mention.end, mention.form)
            found[mention.kind, mention.value].append(place)
    return dict(found), (total, hidden)


def mentions(text: str) -> list[Mention]:
    """Every mention that either detector finds, in the order of the text, without overlaps.

    Where both see something, the first detector's reading stands, except that an address which goes on after a line
    break is read to its end.
    """
    zones = [match.span() for match in _IDENTIFIERS.finditer(text)]
    kept = [Mention(hit.start, hit.end, hit.kind, hit.canonical, "plain") for hit in pii.find(text)]
    known = {(mention.start, mention.end) for mention in kept}
    for other in sorted([*_emails(text), *_phones(text)]):
        if (other.start, other.end) in known:
            continue
        rivals = [mention for mention in kept if mention.start < other.end and other.start < mention.end]
        if all(
            rival.kind == "email" and other.form == "wrapped" and other.start <= rival.start and rival.end < other.end
            for rival in rivals
        ):
            kept = [mention for mention in kept if mention not in rivals] + [other]
    zones += [(m.start, m.end) for m in kept if m.kind == "email" and _x500(text, m.start)]
    return sorted(m for m in kept if not any(start < m.end and m.start < end for start, end in zones))


# Identifiers of messages look like addresses and belong to nobody.
_IDENTIFIERS = re.compile(
    r"^[> \t]*(?:message-id|in-reply-to|references|content-id|resent-message-id)[ \t]*:.*(?:\n[> ]*[ \t]+.*)*"
    r"|\bcid:\S+",
    re.IGNORECASE | re.MULTILINE,
)
_TOPS = r"(?:com|net|org|edu|gov|mil|int|biz|info|us|uk|ca|mx|br|de|fr|it|es|nl|ch|no|se|jp|au|nz|in)"
_BREAK = r"[ \t]{0,2}=?\n[>| \t]{0,8}"
_LABEL = r"[A-Za-z0-9][A-Za-z0-9-]{0,62}"
_LOCAL = r"(?<![\w.%+@-])(?P<local>[A-Za-z0-9_](?:[\w.%+'-]{0,62}[\w%+-])?)"
_BEFORE = re.compile(rf"{_LOCAL}(?P<gap>{_BREAK}|[ \t]{{0,2}})\Z", re.ASCII)
_AFTER = re.compile(
    rf"@(?P<gap>{_BREAK}|[ \t]{{0,2}})"
    rf"(?P<domain>{_LABEL}(?:(?:{_BREAK})?\.{_LABEL})*(?:\.{_BREAK}(?:{_LABEL}\.)*{_TOPS}\b)?)",
    re.ASCII,
)
_MARK_AT = r"[(\[{<]\s?(?:at|@)\s?[)\]}>]"
_MARK_DOT = r"[(\[{<]\s?(?:dot|\.)\s?[)\]}>]"
_IN_WORDS = re.compile(
    rf"{_LOCAL}\s{{0,3}}(?:(?P<marked>{_MARK_AT})|(?<=\s)at(?=\s))\s{{0,3}}"
    rf"(?P<domain>{_LABEL}(?:(?:\s{{0,3}}{_MARK_DOT}\s{{0,3}}|\s{{1,3}}dot\s{{1,3}}|\.){_LABEL})+)",
    re.ASCII | re.IGNORECASE,
)
_WORDED = re.compile(rf"{_MARK_AT}|\sdot\s", re.ASCII | re.IGNORECASE)
_DOT = re.compile(r"(?i)\s*[(\[{<]\s?(?:dot|\.)\s?[)\]}>]\s*|\s+dot\s+|\.")
_SPACE = re.compile(r"[\s>|=]+")
_TOP = re.compile(_TOPS)
_X500 = re.compile(r"(?i)(?:^|[/\s<])(?:O|OU|CN)=[^@\s]*$")


def _emails(text: str) -> Iterator[Mention]:
    for after in _AFTER.finditer(text):
        before = _BEFORE.search(text[max(0, after.start() - 80) : after.start()])
        if not before or not any(map(str.isalpha, before["local"])):
            continue
        start = max(0, after.start() - 80) + before.start()
        domain = _SPACE.sub("", after["domain"]).lower().rstrip("-")
        whole, end = text[start : after.end()], after.end() - (after["domain"][-1] == "-")
        form = "wrapped" if "\n" in whole else "spaced" if before["gap"] or after["gap"] else "loose"
        top = domain.rpartition(".")[2]
        real = bool(_TOP.fullmatch(top)) if form != "loose" else top.isalpha() and len(top) > 1
        if "." in domain and real:
            yield Mention(start, end, "email", f"{before['local'].lower()}@{domain}", form)
    if _WORDED.search(text):
        for match in _IN_WORDS.finditer(text):
            labels = _DOT.split(match["domain"].lower())
            # "at" alone stands between any two words; only with every "dot" spelled is it an address
            spelled = match["marked"] or "." not in match["domain"]
            spelled = spelled and (match["marked"] or labels[0] not in ("the", "a", "an", "this", "that", "our", "my"))
            if spelled and _TOP.fullmatch(labels[-1]):
                value = f"{match['local'].lower()}@{'.'.join(labels)}"
                yield Mention(match.start(), match.end(), "email", value, "at-dot")


def _x500(text: str, start: int) -> bool:
    """Whether the place is inside a directory name such as ``/O=ORG/CN=RECIPIENTS/CN=``."""
    return text[max(0, start - 1) : start] == "=" and bool(_X500.search(text[max(0, start - 120) : start]))


_GAP = r"(?:[ \t]{0,2}[-./)(]?[ \t]{0,2}|[ \t]?[-./)]?[ \t]?=?\n[>| \t]{0,8}\(?)"
_NATIONAL = re.compile(
    rf"(?a:(?<![\w$.,/+-])(?<![\d)][ ])(?:\+?1{_GAP})?\(?[2-9]\d\d{_GAP}[2-9]\d\d{_GAP}\d{{4}}"
    r"(?![\d%]|[-./,]\d|[ ]\d{2}))"
)
_ABROAD = re.compile(r"(?a:(?<![\w+])(?:\+|\b011[ -])[2-9]\d{0,2}(?:[ .()/-]{1,3}\d{1,8}){2,7}(?!\d))")
_SPLIT = re.compile(r"(?a:(?<![\w.,/-])(?<!\d[ ])(?:\d[ .\-/_]{1,3}){9,10}\d(?![\w]|[ .\-/_]{1,3}\d))")
_CUE = re.compile(r"(?i)(?:phone|tel|fax|call|cell|mobile|pager|dial|direct|office|home)[^\n]{0,20}$")


def _phones(text: str) -> Iterator[Mention]:
    for pattern in (_NATIONAL, _ABROAD, _SPLIT):
        for match in pattern.finditer(text):
            digits = re.sub(r"\D", "", match[0])
            if pattern is _NATIONAL:
                bare = match[0].isdigit()  # ten digits in a row may be any number, unless the line says otherwise
                if bare and not _CUE.search(text[max(0, match.start() - 40) : match.start()]):
                    continue
            elif pattern is _SPLIT:
                local = digits.removeprefix("1") if len(digits) == 11 else digits
                if not re.fullmatch(r"[2-9]\d\d[2-9]\d{6}", local):
                    continue
            elif not 9 <= len(digits) <= 18:
                continue
            form = "wrapped" if "\n" in match[0] else "split" if pattern is _SPLIT else "loose"
            yield Mention(match.start(), match.end(), "phone", digits[-10:], form)


_BLOCK = 1 << 24


def _contained(values: Sequence[tuple[str, str]], train: Documents) -> set[tuple[str, str]]:
    """Those of ``values`` that some string of ``train`` contains: in lower case, or for numbers among its digits."""
    found: set[tuple[str, str]] = set()
    for numeric in (False, True):
        wanted = [key for key in values if key[1].isdigit() == numeric]
        block: list[bytes] = []
        size = 0
        for number, document in enumerate(train, start=1):
            text = re.sub(r"[^0-9]", "", document.text) if numeric else document.text.lower()
            block.append(text.encode("utf-8", "surrogatepass"))
            size += len(block[-1])
            if wanted and (size > _BLOCK or number == len(train)):
                whole = b"\n".join(block)
                # A suffix array finds each of thousands of values in the time of a few comparisons.
                order: npt.NDArray[np.int32] = divsufsort(whole)
                found.update(key for key in wanted if sa_search(whole, order, key[1].lower().encode())[0])
                block, size = [], 0
    return found


def guessable(address: str, before: str) -> bool:
    """Whether an address follows from the text before it: a simple rule, not a judgement.

    It does if its local part holds a word of at least four letters that stands before it, or is made of a first name's
    initial and a last name (``jdoe``, ``doej``) where the two stand there side by side.

    Args:
        before: the 200 characters before its first occurrence.
    """
    local = address.partition("@")[0]
    words = re.findall(r"[^\W\d_]+", before.lower())
    if {part for part in re.findall(r"[^\W\d_]+", local) if len(part) >= 4} & set(words):
        return True
    handle = re.sub(r"[\W\d_]", "", local)
    pairs = [pair for two in itertools.pairwise(words) for pair in (two, two[::-1])]
    return any(len(last) >= 3 and handle in (first[0] + last, last + first[0]) for first, last in pairs)
