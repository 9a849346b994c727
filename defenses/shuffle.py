"""The control of every defense that replaces text: as much is replaced as by rmft, but anywhere."""

from __future__ import annotations

import dataclasses
import string
from typing import TYPE_CHECKING, ClassVar, Literal

from memdefense import pii
from memdefense.corpus import Document, Documents
from memdefense.defense import Defense

from .rmft import RMFT

if TYPE_CHECKING:
    import numpy as np

    from memdefense.lab import Lab

_CLASSES = (string.ascii_lowercase, string.ascii_uppercase, string.digits)


@dataclasses.dataclass(frozen=True)
class Shuffle(Defense):
    """As much random text as `rmft` writes, at random places of the same documents, PII or not.

    Noise in the training text slows all memorization a little. What a defense of PII is worth is what it gains over
    this one, which does not know where the PII is.

    No paper; all of it [ours]: each document gets as many random spans as rmft replaces mentions in it, of the same
    lengths in characters, placed uniformly among all ways in which they do not overlap. In a span every letter from A
    to Z becomes a random letter of its case and every digit from 0 to 9 a random digit; the rest stays, line breaks and
    letters beyond ASCII among it, as in rmft's replacements of numbers.

    Does not protect anything on purpose: a span that happens to fall on a value hits it, and where PII fills much of a
    document most values are hit.

    Attributes:
        kinds: the kinds of PII that count for the amount, as in `rmft`.
        keep: which mention of each value does not count, as in `rmft`.

    Raises:
        SpecError: a field has an unknown value.
    """

    name: ClassVar[str] = "shuffle"
    summary: ClassVar[str] = "Random text at random places, as much as rmft replaces: a trivial row."
    paper: ClassVar[str] = "no paper, a control [ours]"
    family: ClassVar[str] = "trivial"
    protects_not: ClassVar[str] = "anything on purpose: its spans fall on PII by chance alone"

    kinds: tuple[str, ...] = ()
    keep: Literal["first", "last", "none"] = "first"

    def __post_init__(self) -> None:
        pii.check_kinds(self.kinds, self.name)

    def curate(self, documents: Documents, lab: Lab, *, epoch: int = 0) -> Documents:
        mentions, replaced = RMFT(kinds=self.kinds, keep=self.keep).mentions(documents, lab)
        rng = lab.rng("shuffle")
        curated = [
            _noised(document, [found.end - found.start for found in own], rng)
            for document, own in zip(documents, replaced, strict=True)
        ]
        lab.note(
            values=len({(found.kind, found.canonical) for own in mentions for found in own}),
            replaced=sum(len(own) for own in replaced),
            characters=sum(found.end - found.start for own in replaced for found in own),
        )
        return curated


def _noised(document: Document, lengths: list[int], rng: np.random.Generator) -> Document:
    """The document with that many spans of those lengths, in random order and at random places, made noise."""
    if not lengths:
        return document
    ordered = [lengths[place] for place in rng.permutation(len(lengths))]
    free = len(document.text) - sum(lengths)
    # Each way to place them apart is one choice of the spans' ranks among spans and free characters.
    ranks = sorted(rng.choice(free + len(lengths), len(lengths), replace=False).tolist())
    pieces, done, before = [], 0, 0
    for number, (rank, length) in enumerate(zip(ranks, ordered, strict=True)):
        start = rank - number + before
        pieces += [document.text[done:start], _noise(document.text[start : start + length], rng)]
        done, before = start + length, before + length
    return dataclasses.replace(document, text="".join([*pieces, document.text[done:]]))


def _noise(text: str, rng: np.random.Generator) -> str:
    """Random letters for letters and digits for digits."""
    made = []
    for character in text:
        own = next((pool for pool in _CLASSES if character in pool), "")
        made.append(pii.pick(own, rng) if own else character)
    return "".join(made)
