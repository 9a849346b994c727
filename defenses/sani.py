"""SANI: half of the last layer's neurons are reset, and the model is repaired on the text without its private words."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from memdefense import pii
from memdefense.corpus import Documents
from memdefense.defense import Defense, Point
from memdefense.errors import ModelError, SpecError

if TYPE_CHECKING:
    from memdefense.architecture import Block
    from memdefense.lab import Lab
    from memdefense.lm import LM
    from memdefense.pii import Pii
    from memdefense.spans import Span

_WORD = re.compile(r"\w+")


@dataclasses.dataclass(frozen=True)
class SANI(Defense):
    """Erase and repair: a random share of the last layer's neurons is reset, then the model is fine-tuned once more.

    In the repair the black-listed words stay in the context and are never a target, so that what the reset destroyed
    grows back without them. Black-listed are the PII that the defender's detector finds and every word that stands in
    the documents of fewer than ``rare`` authors. There is one operating point after the reset and one after each epoch
    of repair: five by default.

    Paper: Boutet & Magnana, arXiv 2510.21322: half of the last layer's neurons, 1-2 epochs of repair, ``rare=2``; a
    "drastic" fall of memorization, without a number.

    Does not protect what other layers remember, nor what the detector misses and several authors write. A black-listed
    word is not unlearned: the repair merely stops teaching it.

    Deviates [ours]: the paper repairs masked language models, where a black-listed word is never masked out; here its
    tokens are no target of the next-token loss. It leaves open what a neuron is and what it is reset to: a neuron of
    the feed-forward part with its rows of the first matrices and its column of the last, or of the attention with its
    row of the value matrix and the columns that read it; weights and biases are those of another model of the same
    configuration, as its own code initialises it. A word is a run of letters and digits, whatever its case; a document
    without an author is an author's only one. The repair follows the run's own training configuration, its schedule
    stretched over all epochs of repair behind as many steps of warm-up. Four epochs, of which the paper's are the first
    two.

    Private words that are no target are forgotten in the repair, with the reset or without it, and perplexity, which
    counts them, rises. What was measured stands in leaderboard/FINDINGS.md.

    With LoRA the adapter is merged before the reset, and the repair trains a new one.

    Attributes:
        kinds: the kinds of PII that are black-listed; empty for all that the detector finds.
        rare: words of fewer authors than this are black-listed; 0 switches it off.
        ratio: the share of neurons that is reset in each layer.
        layers: how many of the last layers.
        reset: ``init`` draws them anew, ``zero`` removes them (at zero on both sides they learn nothing in the repair).
        target: which neurons: of the feed-forward part, of the attention, or of both.
        epochs: of repair.
        stages: ``both``, or one alone: ``erase`` shows what the reset does, ``repair`` what more training does.

    Raises:
        SpecError: a field is out of its range.
        ModelError: the model has fewer layers than asked for, or none that are known.
        DataError: the black list leaves nothing to repair on.
    """

    name: ClassVar[str] = "sani"
    summary: ClassVar[str] = "Resets half of the last layer's neurons, then fine-tunes with private words as no target."
    paper: ClassVar[str] = "Boutet & Magnana, arXiv 2510.21322"
    family: ClassVar[str] = "weights"
    protects_not: ClassVar[str] = (
        "what other layers remember, and PII that the detector misses and several authors write"
    )

    kinds: tuple[str, ...] = ()
    rare: int = 2
    ratio: float = 0.5
    layers: int = 1
    reset: Literal["init", "zero"] = "init"
    target: Literal["ffn", "attention", "both"] = "ffn"
    epochs: int = 4
    stages: Literal["both", "erase", "repair"] = "both"

    def __post_init__(self) -> None:
        pii.check_kinds(self.kinds, self.name)
        if not 0 < self.ratio <= 1:
            raise SpecError(f"sani: ratio is {self.ratio}; give a share above 0 and at most 1")
        for field in ("layers", "epochs"):
            if getattr(self, field) < 1:
                raise SpecError(f"sani: {field} is {getattr(self, field)}; it must be at least 1")
        if self.rare < 0:
            raise SpecError(f"sani: rare is {self.rare}; it cannot be negative")

    def edit(self, model: LM, documents: Documents, lab: Lab) -> Iterator[Point]:
        listed = _BlackList(self, documents, lab)
        lab.note(values=len(listed.values), rare_words=len(listed.words), listed_share=listed.share(documents))
        if not listed.values and not listed.words:
            yield Point("unchanged", 1.0, model)
            return
        if self.stages != "repair":
            lab.note(neurons_reset=self._erase(model, lab))
            yield Point("erased", 1.0, model)
        if self.stages != "erase":
            config = dataclasses.replace(lab.config, epochs=float(self.epochs), steps=0, checkpoints=self.epochs)
            for epoch, point in enumerate(lab.fit(model, documents, blank=listed, config=config), start=1):
                yield Point(f"repair-{epoch}", 1.0, point.model)

    def _erase(self, model: LM, lab: Lab) -> int:
        """Resets neurons in place; returns how many."""
        from memdefense.architecture import blocks_of

        from .neurons import reset, untrained_blocks

        blocks = blocks_of(model.model)
        if self.layers > len(blocks):
            raise ModelError(f"sani: layers is {self.layers}, but the model has {len(blocks)}; ask for fewer")
        rng = lab.rng("sani/neurons")
        parts = ("ffn", "attention") if self.target == "both" else (self.target,)
        fresh: Sequence[Block | None] = [None] * len(blocks)
        if self.reset == "init":
            fresh = untrained_blocks(model.model, lab.rng("sani/weights"))
        return sum(
            reset(block, part, ratio=self.ratio, fresh=new, rng=rng)
            for block, new in list(zip(blocks, fresh, strict=True))[-self.layers :]
            for part in parts
        )


class _BlackList:
    """Says which spans of a text are black-listed.

    Attributes:
        values: the distinct PII values found, as (kind, canonical form).
        words: the rare words, in lower case.
    """

    def __init__(self, defense: SANI, documents: Documents, lab: Lab) -> None:
        self._kinds = defense.kinds
        self._lab = lab
        self.values = {(hit.kind, hit.canonical) for document in documents for hit in self._found(document.text)}
        authors: dict[str, set[str]] = defaultdict(set)
        for document in documents:
            for word in {found.group().casefold() for found in _WORD.finditer(document.text)} if defense.rare else ():
                authors[word].add(f"author/{document.author}" if document.author else f"document/{document.id}")
        self.words = {word for word, known in authors.items() if len(known) < defense.rare}

    def __call__(self, text: str) -> list[Span]:
        rare = [found.span() for found in _WORD.finditer(text) if found.group().casefold() in self.words]
        return sorted({(hit.start, hit.end) for hit in self._found(text)}.union(rare))

    def share(self, documents: Documents) -> float:
        """The share of the characters that is black-listed."""
        listed = total = 0
        for document in documents:
            total += len(document.text)
            done = 0
            for start, end in self(document.text):
                listed += max(0, end - max(start, done))
                done = max(done, end)
        return listed / max(1, total)

    def _found(self, text: str) -> list[Pii]:
        return self._lab.find(text, self._kinds)
