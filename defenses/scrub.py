"""Scrubbing: every piece of PII that the detector finds is masked, or replaced by a pseudonym, before training."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import TYPE_CHECKING, ClassVar, Literal

from memdefense import pii
from memdefense.corpus import Documents
from memdefense.defense import Defense

if TYPE_CHECKING:
    from memdefense.lab import Lab
    from memdefense.pii import Pii


@dataclasses.dataclass(frozen=True)
class Scrub(Defense):
    """No mention of PII that the detector finds reaches the training text: what was never read cannot be memorized.

    ``mask`` writes the kind in place of the value, such as ``<EMAIL>``. ``pseudonymise`` writes a plausible value
    instead, the same for every mention of one value, so that who wrote to whom can still be learned. Loss and training
    stay ordinary.

    Paper: Lukas et al. 2023, who scrub with a named entity tagger and find that what it misses is still leaked.

    Does not protect what the detector misses, nor what the words around a value tell of a person. A model trained on
    masks writes masks; one trained on pseudonyms memorizes them as it would have the true values.

    Deviates [ours]: the suite's own detector finds no names, which theirs is for (``--detector presidio`` does);
    ``pseudonymise``. A pseudonym has the written form of the value's first mention, is no value of the text, and no two
    values share one. A person's full name and first name alone are two values, so that they get two pseudonyms.

    Attributes:
        method: ``mask`` or ``pseudonymise``.
        kinds: the kinds of PII that are scrubbed; empty for all that the detector finds.

    Raises:
        SpecError: an unknown method or kind.
        DataError: no value outside those of the text was drawn.
    """

    name: ClassVar[str] = "scrub"
    summary: ClassVar[str] = "Masks every mention of PII that the detector finds before training."
    paper: ClassVar[str] = "Lukas et al. 2023, arXiv 2302.00539"
    family: ClassVar[str] = "data"
    protects_not: ClassVar[str] = "PII the detector misses, and what the words around a value tell"

    method: Literal["mask", "pseudonymise"] = "mask"
    kinds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        pii.check_kinds(self.kinds, self.name)

    def curate(self, documents: Documents, lab: Lab, *, epoch: int = 0) -> Documents:
        mentions = [lab.find(document.text, self.kinds) for document in documents]
        written = self._written([found for own in mentions for found in own], lab)
        curated = []
        for document, own in zip(documents, mentions, strict=True):
            pieces, done = [], 0
            for found in sorted(own, key=lambda found: found.start):
                pieces += [document.text[done : found.start], written[found.kind, found.canonical]]
                done = found.end
            text = "".join([*pieces, document.text[done:]])
            curated.append(dataclasses.replace(document, text=text) if own else document)
        lab.note(values=len(written), replaced=sum(len(own) for own in mentions))
        return curated

    def _written(self, mentions: list[Pii], lab: Lab) -> dict[tuple[str, str], str]:
        """What stands for each value, by kind and canonical form."""
        first: dict[tuple[str, str], str] = {}
        for found in mentions:
            first.setdefault((found.kind, found.canonical), found.value)
        if self.method == "mask":
            return {key: f"<{key[0].upper()}>" for key in first}
        taken: dict[str, set[str]] = defaultdict(set)  # true values, then pseudonyms too
        for kind, value in first:
            taken[kind].add(value)
        rng = lab.rng("scrub")
        written = {}
        for (kind, value), spelled in first.items():
            drawn = pii.fake(kind, spelled, rng, avoid=taken[kind])
            taken[kind].add(pii.canonical(kind, drawn))
            written[kind, value] = drawn
        return written
