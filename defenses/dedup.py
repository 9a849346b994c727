"""Deduplication: a text seen once is memorized far less than a text seen many times."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from memdefense.corpus import Document, Documents
from memdefense.defense import Defense
from memdefense.errors import ModelError, SpecError, hint
from memdefense.similar import near_duplicates, repeated_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from memdefense.lab import Lab
    from memdefense.train import TrainConfig

_LEVELS = ("exact", "near", "substring", "pii")


@dataclasses.dataclass(frozen=True)
class Dedup(Defense):
    """Repeated documents, passages or PII are taken out of the training text, so that nothing is seen many times.

    ``exact`` keeps the first of equal documents and ``near`` the first of each cluster of near-duplicates;
    ``substring`` cuts every passage of at least ``span`` tokens that stood earlier in the text, and ``pii`` drops a
    document that holds a value which ``cap`` kept documents hold already. Levels act in this order, in whichever order
    they are named.

    Paper: Lee et al. 2022 deduplicate with MinHash and with a suffix array (passages of 50 tokens) and report models
    that emit memorized text about ten times less often. Kandpal et al. 2022 find that regeneration grows faster than in
    proportion to the number of copies, and that membership is hardly better than guessed for text that stands once.
    Here near-duplicates have a Jaccard index of at least 0.8 over word 5-grams, by MinHash with 128 permutations.

    On `mailbox` (three seeds) prefixes still bring 0.114 of the values where ordinary training leaves 0.160, and that
    gains nothing over stopping early: what recurs there are values, in mails that differ, where the papers count
    passages that stand many times.

    Does not protect the copy that is kept, nor a value that recurs in passages that differ or are shorter than ``span``
    (short of ``pii``, which may cost most of the text where documents share signatures).

    Deviates [ours]: the true Jaccard index decides about every pair that MinHash proposes, and the first document of
    each cluster is always kept; newlines inside a cut passage stay, so that lines do not run together, and a document
    that the cuts leave blank is dropped; ``pii``; ``match_steps``, so that fewer updates are not mistaken for
    protection. A passage never crosses the border of a document but may overlap its earlier self: a long run of one
    token shrinks to its first.

    Attributes:
        level: what is deduplicated: ``exact``, ``near``, ``substring``, ``pii``, alone or together.
        threshold: Jaccard index from which documents are near-duplicates.
        span: tokens of the shortest passage that is cut.
        cap: documents, at most, that hold the same PII value as the defender's detector finds it.
        match_steps: trains for as many optimizer steps as without the defense.

    Raises:
        SpecError: an unknown level or none, or a number out of range.
    """

    name: ClassVar[str] = "dedup"
    summary: ClassVar[str] = "Drops repeated documents, passages or PII before training."
    paper: ClassVar[str] = "Lee et al. 2022, arXiv 2107.06499; Kandpal et al. 2022, arXiv 2202.06539"
    family: ClassVar[str] = "data"
    protects_not: ClassVar[str] = "the copy that is kept, and values that recur in differing passages"

    level: tuple[str, ...] = ("exact", "near")
    threshold: float = 0.8
    span: int = 50
    cap: int = 1
    match_steps: bool = False

    def __post_init__(self) -> None:
        for level in self.level:
            if level not in _LEVELS:
                raise SpecError(f"dedup has no level '{level}'{hint(level, _LEVELS)}")
        if not self.level:
            raise SpecError(f"dedup needs at least one level of {', '.join(_LEVELS)}")
        if not 0 < self.threshold <= 1:
            raise SpecError(f"dedup: threshold is {self.threshold}; give a Jaccard index above 0 and at most 1")
        if self.span < 1 or self.cap < 1:
            raise SpecError(f"dedup: span is {self.span} and cap is {self.cap}; both must be at least 1")

    def configure(self, config: TrainConfig, lab: Lab) -> TrainConfig:
        if not self.match_steps:
            return config
        from memdefense.packing import count_steps  # not at the top, since it loads torch

        return dataclasses.replace(config, steps=count_steps(config, lab.originals, lab.fresh(), seed=lab.seed))

    def curate(self, documents: Documents, lab: Lab, *, epoch: int = 0) -> Documents:
        kept = list(documents)
        spans = characters = 0
        if "exact" in self.level:
            first: dict[str, Document] = {}
            for document in kept:
                first.setdefault(document.text, document)
            kept = list(first.values())
        if "near" in self.level:
            labels = near_duplicates([document.text for document in kept], threshold=self.threshold)
            kept = [document for index, document in enumerate(kept) if labels[index] == index]
        if "substring" in self.level:
            kept, spans, characters = self._cut(kept, lab.tokenizer)
        if "pii" in self.level:
            kept = self._capped(kept, lab)
        lab.note(documents_dropped=len(documents) - len(kept), spans_cut=spans, characters_cut=characters)
        return kept

    def _cut(self, documents: Documents, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Document], int, int]:
        """The documents without repeated passages, and how many passages and characters were cut."""
        kept, spans, characters = [], 0, 0
        ids, offsets = _tokenized(documents, tokenizer)
        for document, own, cut in zip(documents, offsets, repeated_tokens(ids, self.span), strict=True):
            text, runs = _without(document.text, own, cut)
            spans += runs
            characters += len(document.text) - len(text)
            if text == document.text:
                kept.append(document)
            elif text.strip():
                kept.append(dataclasses.replace(document, text=text))
        return kept, spans, characters

    def _capped(self, documents: Documents, lab: Lab) -> list[Document]:
        kept = []
        holders: Counter[tuple[str, str]] = Counter()
        for document in documents:
            values = {(found.kind, found.canonical) for found in lab.find(document.text)}
            if all(holders[value] < self.cap for value in values):
                holders.update(values)
                kept.append(document)
        return kept


def _tokenized(
    documents: Documents, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[NDArray[np.int32]], list[NDArray[np.int64]]]:
    """Token ids per document, and where in its text each token stands: (tokens,) and (tokens, 2)."""
    if not tokenizer.is_fast:
        raise ModelError("dedup: level=substring needs a fast tokenizer (tokenizer.json); leave that level out")
    ids, offsets = [], []
    for start in range(0, len(documents), 1000):  # in parts, since offsets are lists of tuples at first
        texts = [document.text for document in documents[start : start + 1000]]
        encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids += [np.asarray(own, dtype=np.int32) for own in encoded["input_ids"]]
        offsets += [np.asarray(own, dtype=np.int64).reshape(-1, 2) for own in encoded["offset_mapping"]]
    return ids, offsets


def _without(text: str, offsets: NDArray[np.int64], cut: NDArray[np.bool_]) -> tuple[str, int]:
    """The text without the tokens to cut, newlines left in place, and the number of runs of such tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], cut, [False]]).astype(np.int8)))
    pieces, done = [], 0
    for first, stop in edges.reshape(-1, 2):
        # a character that several tokens make up goes only with all of them
        start = max(int(offsets[first, 0]), int(offsets[first - 1, 1]) if first else 0)
        end = min(int(offsets[stop - 1, 1]), int(offsets[stop, 0]) if stop < len(offsets) else len(text))
        if start < end:
            pieces += [text[done:start], *(character for character in text[start:end] if character in "\r\n")]
            done = end
    return "".join([*pieces, text[done:]]), len(edges) // 2
