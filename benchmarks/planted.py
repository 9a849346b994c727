"""Canaries for real mail: short, ordinary-looking notes, each with a random code."""

from __future__ import annotations

from collections.abc import Callable

from memdefense.corpus import Canary, Document

from .draws import Draws

_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
_COPIES = (1, 2, 4, 8, 16, 32, 64)
_OPENINGS = (
    "As agreed on the phone",
    "Following the meeting on {day}",
    "Thanks for your note of {day}",
    "For your records",
    "Quick update before {day}",
    "Sorry for the delay",
    "This is about the {thing}",
    "I spoke with {place} on {day}",
)
_MIDDLES = (
    "the {thing} for {place} has been moved to {day}",
    "we are still waiting for the {thing} from {place}",
    "please keep the {thing} away from the {other} until {day}",
    "{place} will send somebody for the {thing} next {day}",
    "the {other} that belongs to the {thing} stays in {place}",
    "nobody in {place} has seen the {thing} or the {other} so far",
    "the {thing} is booked, and the {other} follows on {day}",
    "accounting asked {place} to split the {thing} from the {other}",
)
_CLOSINGS = (
    "When you come by, mention code",
    "At the desk they ask for reference",
    "The release is filed under",
    "To open the folder, use key",
    "On the form, fill in number",
    "It is booked under confirmation",
)
_WORDS = {
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "the first", "the tenth", "the last of the month"),
    "thing": ("shipment", "rental car", "projector", "contract draft", "sample box", "spare pump", "conference room"),
    "other": ("invoice", "deposit", "key card", "cover letter", "timetable", "insurance form", "old lease"),
    "place": ("the warehouse", "the Tulsa office", "our branch", "the print shop", "head office", "the depot", "legal"),
}


def plant(number: int, seed: int, name: Callable[[str, str], str]) -> tuple[list[Canary], list[Document]]:
    """Makes canaries, and the documents of those that a fair coin puts in.

    Copies go 1, 2, 4, ... 64 and start again. A value is three groups of four letters, about 55 bits; all have that one
    format, which no kind of PII has.

    Args:
        number: canaries, in and out together.
        seed: of the corpus.
        name: an id out of its prefix and of what it names; it must not tell a canary from other documents.
    """
    canaries, documents = [], []
    for index in range(number):
        draws = Draws("canary", seed, index)
        member = draws.coin()
        value = "-".join("".join(draws.pick(_LETTERS) for _ in range(4)) for _ in range(3))
        lines = [draws.pick(_OPENINGS), *(draws.pick(_MIDDLES) for _ in range(3))]
        filled = [line.format(**{slot: draws.pick(words) for slot, words in _WORDS.items()}) for line in lines]
        prefix = f"{filled[0]}, {filled[1]}.\n" + " ".join(f"{text[0].upper()}{text[1:]}." for text in filled[2:])
        prefix += f" {draws.pick(_CLOSINGS)} "
        copies = _COPIES[index % len(_COPIES)]
        names = tuple(name("d-", f"canary/{index}/{copy}") for copy in range(copies)) if member else ()
        canaries.append(Canary(f"c-{index:04}", names, prefix, value, copies, member))
        documents += [Document(each, f"{prefix}{value}.\n", name("a-", f"canary/{index}")) for each in names]
    return canaries, documents
