"""One mail message as text, whatever state it is in."""

from __future__ import annotations

import email
import email.errors
import email.header
import html
import re
from typing import Literal, NamedTuple

Headers = Literal["all", "core", "none"]


class Message(NamedTuple):
    """What is kept of one message.

    Attributes:
        text: the headers asked for, an empty line, and the body; lines end in LF.
        body: where the body starts in ``text``.
        sender: the address in ``From``, in lower case, or "" where there is none.
        attachments: parts that were dropped.
        broken: whether something could not be read as its headers said.
    """

    text: str
    body: int
    sender: str
    attachments: int
    broken: bool


_FIELD = re.compile(rb"[!-9;-~]+[ \t]*:")
_CORE = re.compile(r"^(?:from|to|cc|date|subject)[ \t]*:.*(?:\n[ \t].*)*", re.IGNORECASE | re.MULTILINE)
_READ = re.compile(
    rb"^(from|content-type|content-transfer-encoding)[ \t]*:(.*(?:\n[ \t].*)*)", re.IGNORECASE | re.MULTILINE
)
_CHARSET = re.compile(rb"charset\s*=\s*[\"']?([\w.:+-]+)", re.IGNORECASE)
_ADDRESS = re.compile(r"[^\s<>\"'(),;:]+@[^\s<>\"'(),;:]+")
_UUENCODED = re.compile(r"^begin [0-7]{3,4} .+\n(?:.{1,61}\n)*?`?\n?end$", re.MULTILINE)
_MARKUP = re.compile(r"(?is)<(script|style|head)\b.*?</\1\s*>|<!--.*?-->|<[^<>]*>")
_PARAGRAPH = re.compile(r"(?i)<(?:br|/p|/div|/tr|/li|/h[1-6])\b[^<>]*>")


def parse(raw: bytes, headers: Headers = "core") -> Message:
    """Reads one message, whatever state it is in.

    The headers that decide are read by hand; a body that is encoded or has parts goes through `email`. Of the parts,
    the plain text is kept (the HTML, as text, where there is no plain one), and the rest counts as attachments. What a
    header says wrongly is decoded as UTF-8, then Windows-1252, then Latin-1.

    Args:
        headers: all of them as they are, the core ones (From, To, Cc, Date, Subject) in their order, or none.
    """
    raw = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\0", b"")
    if raw.startswith(b"From "):  # the separator line of an mbox
        raw = raw.partition(b"\n")[2]
    head, blank, payload = raw.partition(b"\n\n")
    broken = not blank
    if not _FIELD.match(head):
        head, payload, broken = b"", raw, True
    elif any(line[:1] not in (b" ", b"\t") and not _FIELD.match(line) for line in head.split(b"\n")):
        broken = True
    fields = {name.lower(): value.strip() for name, value in reversed(_READ.findall(head))}  # the first one counts
    kind = fields.get(b"content-type", b"").lower()
    coding = fields.get(b"content-transfer-encoding", b"").lower()
    attachments = 0
    if kind.startswith((b"text/plain", b"text;")) or b"/" not in kind:
        plain = coding in (b"", b"7bit", b"8bit", b"binary")
    else:
        plain = False
    if plain:
        charset = _CHARSET.search(kind)
        body, wrong = _decode(payload, charset[1].decode("ascii") if charset else "")
    else:
        body, attachments, wrong = _parts(head + b"\n\n" + payload, payload)
    if "begin " in body:
        body, cut = _UUENCODED.subn("", body)
        attachments += cut
    header, wrong_header = _decode(head, "")
    if "=?" in header:
        header = _FOLDED_WORD.sub(_word, header)
    sender, _ = _decode(fields.get(b"from", b""), "")
    address = _ADDRESS.search(sender)
    shown = header if headers == "all" else "\n".join(_CORE.findall(header)) if headers == "core" else ""
    body = body.strip("\n")
    text = f"{shown}\n\n{body}" if shown else body
    return Message(
        text=text,
        body=len(text) - len(body),
        sender=(address[0].strip(".") if address else " ".join(sender.split())).lower(),
        attachments=attachments,
        broken=broken or wrong or wrong_header,
    )


def _decode(data: bytes, charset: str) -> tuple[str, bool]:
    """The text, and whether the charset named (or UTF-8, where none is) did not fit."""
    if data.isascii() and charset.lower() not in ("utf-7", "utf-16", "utf-32", "iso-2022-jp", "hz-gb-2312"):
        return data.decode("ascii"), False
    if charset.lower() in ("iso-8859-1", "latin1", "latin-1"):
        charset = "cp1252"  # what senders of Latin-1 mean by the bytes 80 to 9f
    for place, name in enumerate((charset or "utf-8", "utf-8", "cp1252", "latin-1")):
        try:
            text = data.decode(name)
            text.encode("utf-8")  # some codecs let lone surrogates through, which no tokenizer takes
        except (LookupError, ValueError):
            continue
        return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", ""), place > 0
    raise AssertionError("unreachable: Latin-1 decodes every byte")


_FOLDED_WORD = re.compile(r"=\?[^?\s]+\?[bqBQ]\?[^?\n]*\?=(?:\s+(?==\?)=\?[^?\s]+\?[bqBQ]\?[^?\n]*\?=)*")


def _word(match: re.Match[str]) -> str:
    """RFC 2047 encoded words as text, or as they are where they cannot be read."""
    try:
        text = str(email.header.make_header(email.header.decode_header(match[0])))
        text.encode("utf-8")
    except (LookupError, ValueError, email.errors.HeaderParseError):
        return match[0]
    return " ".join(text.split())


def _parts(raw: bytes, payload: bytes) -> tuple[str, int, bool]:
    """The body, the number of parts dropped, and whether the structure is broken."""
    plain: list[str] = []
    markup: list[str] = []
    attachments, broken = 0, False
    try:
        message = email.message_from_bytes(raw)
        whole = not message.is_multipart()
        for part in message.walk():
            broken = broken or bool(part.defects)
            if part.is_multipart():
                continue
            kind = part.get_content_type()
            named = part.get_content_disposition() == "attachment" or part.get_filename() is not None
            if not (whole and kind.startswith("multipart/")) and (named or not kind.startswith("text/")):
                attachments += 1
                continue
            content = part.get_payload(decode=True)
            text, wrong = _decode(content if isinstance(content, bytes) else b"", part.get_content_charset() or "")
            broken = broken or wrong or bool(part.defects)  # decoding a payload finds further defects
            (markup if kind == "text/html" else plain).append(text)
    except Exception:
        # The standard parser raises errors of many types on hostile input; such a message keeps its raw body.
        text, _ = _decode(payload, "")
        return text, attachments, True
    if plain or not markup:
        return "\n".join(plain), attachments, broken
    return "\n".join(map(_strip, markup)), attachments, broken


def _strip(markup: str) -> str:
    """The text of an HTML page, without its tags."""
    text = html.unescape(_MARKUP.sub("", _PARAGRAPH.sub("\n", markup)))
    return re.sub(r"\n\s*\n+", "\n\n", re.sub(r"[ \t\xa0]+", " ", text)).strip()
