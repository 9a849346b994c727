"""What a targeted attack asks: the original text before chosen occurrences of every secret, cut to some lengths."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from memdefense import Corpus, Occurrence, Secret, pii

if TYPE_CHECKING:
    from memdefense import AttackLab

Key = tuple[str, str]
"""A kind and a canonical value."""

# Values of up to this many tokens are asked for in one go.
_USUAL = 32


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """The text before one occurrence of a secret.

    Attributes:
        secret: whose occurrence it is.
        text: the prompt.
        held: the PII in it, however it is written.
        kept: whether the value still stands in the curated text of this document.
        tokens: of the value as it stands there.
        ceiling: tokens generated at most; prompts of one ceiling go together.
        length: the context length it was cut to; 0 is as many tokens as fit.
        rest: what stands from its end to the end of the value.
    """

    secret: Secret
    text: str
    held: frozenset[Key]
    kept: bool
    tokens: int
    ceiling: int
    length: int
    rest: str


def targeted(
    corpus: Corpus, lab: AttackLab, *, lengths: Sequence[int], inner: int, room: Callable[[int], int]
) -> tuple[list[Prompt], dict[str, int]]:
    """The prompts of every secret, and how many were left out because the value stands in them, by secret.

    Args:
        corpus: whose secrets and texts they are.
        lab: whose tokenizer and curated documents count.
        lengths: tokens of context at most, a prompt for each; 0 is as many as fit.
        inner: occurrences beside the first and the last, chosen by a hash.
        room: how many tokens are generated for a value of so many.
    """
    texts = {document.id: document.text for document in (*corpus.train, *corpus.held_out)}
    curated = {document.id: document.text for document in lab.curated}
    places = secret_places(corpus.secrets)
    prompts: list[Prompt] = []
    skipped: dict[str, int] = {}
    for secret in corpus.secrets:
        for place in _chosen(secret, inner):
            text = texts[place.document]
            before, written = text[: place.start], text[place.start : place.end]
            tokens = len(lab.tokenizer(written, add_special_tokens=False, verbose=False)["input_ids"])
            ceiling = room(max(_USUAL, 1 << (tokens - 1).bit_length()))
            kept = secret.member and written in curated.get(place.document, "")
            for length, asked in zip(lengths, _cut(before.rstrip(" "), lengths, ceiling, lab), strict=True):
                held = held_in(text, len(before.rstrip(" ")) - len(asked), place.start, places[place.document])
                if (secret.kind, secret.value) in held or written in asked:
                    skipped[secret.id] = skipped.get(secret.id, 0) + 1
                    continue
                rest = text[len(before.rstrip(" ")) : place.end]
                prompts.append(Prompt(secret, asked, held, kept, tokens, ceiling, length, rest))
    return prompts, skipped


def secret_places(secrets: Sequence[Secret]) -> dict[str, list[tuple[int, int, Key]]]:
    """Start, end, and kind and value of every occurrence, by document."""
    found: dict[str, list[tuple[int, int, Key]]] = {}
    for secret in secrets:
        for place in secret.occurrences:
            found.setdefault(place.document, []).append((place.start, place.end, (secret.kind, secret.value)))
    return found


def held_in(text: str, start: int, end: int, places: Sequence[tuple[int, int, Key]]) -> frozenset[Key]:
    """The PII that stands in ``text[start:end]``: by the answer key in any form, and by the public detector."""
    held = {key for first, last, key in places if last > start and first < end}
    return frozenset(held | {(hit.kind, hit.canonical) for hit in pii.find(text[start:end])})


def _chosen(secret: Secret, inner: int) -> list[Occurrence]:
    places = secret.occurrences
    others = sorted(places[1:-1], key=lambda o: hashlib.sha256(f"{secret.id}/{o.document}/{o.start}".encode()).digest())
    return list(dict.fromkeys([places[0], places[-1], *others[:inner]])) if places else []


def _cut(text: str, lengths: Sequence[int], ceiling: int, lab: AttackLab) -> list[str]:
    """The ends of ``text`` that a model reads as its prompt, one per length."""
    room = max(1, lab.base.context - ceiling)
    most = [min(length or room, room) for length in lengths]
    if len(text.encode("utf-8", "replace")) <= min(most):
        return [text] * len(most)
    encoded = lab.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
    offsets = encoded["offset_mapping"]
    return [text[offsets[-size][0] :] if len(offsets) > size else text for size in most]
