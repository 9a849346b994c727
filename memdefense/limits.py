"""Changes a run makes to a benchmark's corpus on the user's word: general text added, or a sample taken."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from memdefense.corpus import Corpus, Document, Secret
from memdefense.errors import DataError

Item = TypeVar("Item", Document, Secret)
_PIECE = 1500  # characters of a general document


def with_general_text(corpus: Corpus, path: Path) -> Corpus:
    """The corpus with the paragraphs of a text file as its general split.

    Raises:
        DataError: no such file, or no text in it.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"cannot read general text from {path}: {error.strerror}; see --general-text") from error
    pieces: list[str] = [""]
    for paragraph in text.replace("\r\n", "\n").split("\n"):
        if len(pieces[-1]) + len(paragraph) > _PIECE and pieces[-1].strip():
            pieces.append("")
        pieces[-1] += paragraph + "\n"
    general = [Document(f"general-{place:06d}", piece.strip()) for place, piece in enumerate(pieces) if piece.strip()]
    if not general:
        raise DataError(f"{path} holds no text; give --general-text a file with some")
    return dataclasses.replace(corpus, general=general)


def limited_corpus(corpus: Corpus, limit: int) -> Corpus:
    """The corpus with at most ``limit`` members, non-members, held-out and general documents, chosen by a hash.

    The training documents stay: what is trained is not changed, only what is measured.
    """
    held_out = _sample(corpus.held_out, limit)
    kept = {document.id for document in held_out}
    members = [secret for secret in corpus.secrets if secret.member]
    others = [
        dataclasses.replace(secret, occurrences=places)
        for secret in corpus.secrets
        if not secret.member and (places := tuple(o for o in secret.occurrences if o.document in kept))
    ]
    chosen = {secret.id: secret for secret in (*_sample(members, limit), *_sample(others, limit))}
    return dataclasses.replace(
        corpus,
        held_out=held_out,
        general=_sample(corpus.general, limit),
        secrets=[chosen[secret.id] for secret in corpus.secrets if secret.id in chosen],
    )


def _sample(items: Sequence[Item], limit: int) -> list[Item]:
    ids = [item.id for item in items]
    first = sorted(range(len(items)), key=lambda place: hashlib.sha256(ids[place].encode()).digest())[:limit]
    return [items[place] for place in sorted(first)]
