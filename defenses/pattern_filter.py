"""A filter on what is said: personal data that the defender's detector finds in the output does not get out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from memdefense import Defense, Documents, SpecError, pii

if TYPE_CHECKING:
    from memdefense import Lab, Target
    from memdefense.pii import Pii
    from memdefense.target import Again

# Public texts on which false positives are counted, and how many characters of each the filter reads.
_CLEAN, _LENGTH = 300, 200
_ROUNDS = 100  # of masking: a mask can uncover a value, as where it ends a word that a number stood in


@dataclasses.dataclass(frozen=True)
class PatternFilter(Defense):
    """Every continuation is searched for PII, and what is found is masked, drawn anew, or not said at all.

    ``redact`` puts a mask such as ``<EMAIL>`` in place of each value. ``resample`` draws the continuation again, up to
    ``tries`` times, and masks what is found in the last. ``refuse`` answers nothing instead. The note
    ``false_positive_rate`` is the share of public texts with something to stop in the first 200 characters of their
    second half, read behind the first.

    Paper: a stand-in [ours] for the pattern filter of arXiv 2508.14062, which publishes no patterns.

    Does not touch log-probabilities or weights, so membership attacks see the undefended model; nor does it stop what
    the detector misses (an address spelled out, a number broken over lines), or a value that breaks off where the
    answer ends: who asks for a few tokens at a time learns all but the last part.

    Deviates [ours]: everything but the idea. The detector is the defender's, all kinds. It reads the continuation alone
    and behind its prompt, so that a value begun by the prompt is found too. A value that stands whole in the prompt is
    no news and may be said, unless ``prompted=block``. What is masked is searched again until nothing is found. What
    was asked for greedily is drawn again at temperature 1. A false positive is any PII in public text, whoever it
    belongs to: none of it is private.

    Attributes:
        action: what is done about a continuation with PII: ``redact``, ``resample`` or ``refuse``.
        kinds: the kinds of PII that are stopped; empty for all that the detector finds.
        prompted: whether a value that stands in the prompt may be said: ``allow`` or ``block``.
        tries: how often ``resample`` draws again.

    Raises:
        SpecError: a field has an unknown value.
    """

    name: ClassVar[str] = "pattern-filter"
    summary: ClassVar[str] = "Stops PII that the defender's detector finds in the output."
    paper: ClassVar[str] = "a stand-in for arXiv 2508.14062"
    family: ClassVar[str] = "generation"
    protects_not: ClassVar[str] = "log-probabilities, PII the detector misses, and values asked for piece by piece"

    action: Literal["redact", "resample", "refuse"] = "redact"
    kinds: tuple[str, ...] = ()
    prompted: Literal["allow", "block"] = "allow"
    tries: int = 3

    def __post_init__(self) -> None:
        pii.check_kinds(self.kinds, self.name)
        if self.tries < 1:
            raise SpecError(f"pattern-filter: tries is {self.tries}; it must be at least 1")

    @classmethod
    def grid(cls) -> Sequence[Defense]:
        return [
            cls(),
            cls(action="resample"),
            cls(action="refuse"),
            cls(prompted="block"),
            cls(action="refuse", prompted="block"),
        ]

    @property
    def last(self) -> bool:
        return True

    def guard(self, target: Target, documents: Documents, lab: Lab) -> Target:
        seed = int(lab.rng("resample").bit_generator.random_raw()) >> 2
        text = _Filter(self, functools.partial(lab.find, kinds=self.kinds), seed)
        clean = [document.text for document in lab.public[:_CLEAN] if len(document.text) > 1]
        halves = [(text[: len(text) // 2], text[len(text) // 2 :][:_LENGTH]) for text in clean]
        lab.note(clean_texts=len(halves))
        if halves:
            lab.note(false_positive_rate=sum(bool(text.found(*half)) for half in halves) / len(halves))
        return target.guarded(text=text)


@dataclasses.dataclass(frozen=True)
class _Filter:
    """The text guard."""

    rule: PatternFilter
    find: Callable[[str], list[Pii]]
    seed: int

    def __call__(self, prompts: Sequence[str], continuations: Sequence[str], again: Again) -> list[str]:
        said = list(continuations)
        rows = [row for row, text in enumerate(said) if self.found(prompts[row], text)]
        if self.rule.action == "refuse":
            for row in rows:
                said[row] = ""
            return said
        for attempt in range(self.rule.tries if self.rule.action == "resample" else 0):
            if not rows:
                break
            for row, text in zip(rows, again(rows, self.seed + attempt), strict=True):
                said[row] = text
            rows = [row for row in rows if self.found(prompts[row], said[row])]
        for row in rows:
            said[row] = self.masked(prompts[row], said[row])
        return said

    def masked(self, prompt: str, text: str) -> str:
        """A continuation in which nothing is found any more; nothing at all where masking comes to no end."""
        for _ in range(_ROUNDS):
            spans = self.found(prompt, text)
            if not spans:
                return text
            for start, end, kind in reversed(spans):
                text = text[:start] + f"<{kind.upper()}>" + text[end:]
        return ""

    def found(self, prompt: str, text: str) -> list[tuple[int, int, str]]:
        """Start, end and kind of what is stopped in a continuation, in order and apart from each other."""
        known = {(hit.kind, hit.canonical) for hit in self.find(prompt)} if self.rule.prompted == "allow" else set()
        spans = []
        for whole, before in ((prompt + text, len(prompt)), (text, 0)):
            for hit in self.find(whole):
                if (hit.kind, hit.canonical) not in known and hit.end > before:
                    spans.append((max(0, hit.start - before), hit.end - before, hit.kind))
        apart: list[tuple[int, int, str]] = []
        for start, end, kind in sorted(spans, key=lambda span: (span[0], -span[1])):
            if apart and start < apart[-1][1]:
                first, last, name = apart[-1]
                apart[-1] = (first, max(last, end), name)
            else:
                apart.append((start, end, kind))
        return apart
