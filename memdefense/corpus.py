"""The private text, what is secret in it, and who was put in or left out.

A `Corpus` is frozen: everything downstream is a function of it. Its seed is a field of the benchmark, so that a run's
seed changes the training and not the data.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

import jsonlines

from memdefense.errors import DataError
from memdefense.plugin import Plugin

if TYPE_CHECKING:
    from memdefense.lab import Lab
    from memdefense.lm import LM
    from memdefense.train import TrainConfig


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """One text of one author; ``id`` is unique in its corpus and survives curation."""

    id: str
    text: str
    author: str = ""


Documents = Sequence[Document]


class Redrawn(Sequence[Document]):
    """Curated documents that are drawn afresh for every epoch; as a sequence, those of epoch 0.

    Args:
        first: the documents of epoch 0.
        draw: gives the documents of any epoch.
    """

    def __init__(self, first: Documents, draw: Callable[[int], Documents]) -> None:
        self._first = tuple(first)
        self._draw = draw

    def epoch(self, number: int) -> Documents:
        """The documents of one epoch, counted from 0."""
        return self._first if number == 0 else self._draw(number)

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Document]: ...
    def __getitem__(self, index: int | slice) -> Document | Sequence[Document]:
        return self._first[index]

    def __len__(self) -> int:
        return len(self._first)


@dataclasses.dataclass(frozen=True, slots=True)
class Occurrence:
    """One mention of a secret in the original text: ``text[start:end]`` of ``document``.

    Attributes:
        form: how it is written; ``plain`` is the ordinary form, other names are the benchmark's (``wrapped``,
            ``at-dot``).
    """

    document: str
    start: int
    end: int
    form: str = "plain"


@dataclasses.dataclass(frozen=True, slots=True)
class Secret:
    """One distinct PII value, never one mention.

    Attributes:
        id: unique in the corpus; what rows and outcomes show instead of the value.
        kind: the kind of PII (``email``, ``phone``, ...).
        value: the canonical form (`memdefense.pii.canonical`).
        member: whether the value stands in the training text.
        group: the person it belongs to; the cluster of every interval.
        occurrences: where it stands in the original text (``train`` for members, ``held_out`` for the others).
        twin: an equally guessable value of the same kind that a coin left out, or "" where the corpus has none.
        guessable: whether the value follows from its context (an address made of the person's name).
    """

    id: str
    kind: str
    value: str
    member: bool
    group: str
    occurrences: tuple[Occurrence, ...]
    twin: str = ""
    guessable: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Canary:
    """A planted value: a coin decided before any defense whether its document is in ``train``, ``copies`` times.

    Attributes:
        documents: the ids of its copies in ``train``; none where the coin left it out.
        prefix: the text right before the value.
        value: the planted random value; all values of a benchmark share one format.
    """

    id: str
    documents: tuple[str, ...]
    prefix: str
    value: str
    copies: int
    member: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Corpus:
    """Everything a run needs of its data.

    Attributes:
        public: what the base model may be pretrained on; may be empty.
        train: the private text, canary documents of members among it.
        held_out: text of the same distribution that nothing is trained on.
        general: text from elsewhere, for utility; may be empty.
        secrets: members and non-members, by value.
        kinds: the kinds of PII the secrets are of.
        counts: what was read, skipped and repaired while it was made.
        sources: where in the data a document stands, by its id; what is published leaves it out.
    """

    public: Documents
    train: Documents
    held_out: Documents
    general: Documents = ()
    secrets: Sequence[Secret] = ()
    canaries: Sequence[Canary] = ()
    kinds: tuple[str, ...] = ()
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for split in ("public", "train", "held_out", "general", "secrets", "canaries"):
            object.__setattr__(self, split, tuple(getattr(self, split)))
        if not self.train:
            raise DataError("the corpus has no training documents; check the data and its filters")

    @property
    def exchangeable(self) -> bool:
        """Whether every member has a twin, so that the chance level is exact."""
        members = [secret for secret in self.secrets if secret.member]
        return bool(members) and all(secret.twin for secret in members)

    @property
    def planted(self) -> frozenset[str]:
        """The ids of the training documents that hold a canary."""
        return frozenset(name for canary in self.canaries for name in canary.documents)

    def copy(self) -> Corpus:
        """The same corpus, less its sources, in records of its own: what is done to them does not reach ours."""
        return Corpus(
            public=_own(self.public),
            train=_own(self.train),
            held_out=_own(self.held_out),
            general=_own(self.general),
            secrets=_own(self.secrets),
            canaries=_own(self.canaries),
            kinds=self.kinds,
            counts=dict(self.counts),
        )

    def digest(self) -> str:
        """A content digest of everything but counts and sources."""
        whole = hashlib.sha256()
        for split in (self.public, self.train, self.held_out, self.general):
            whole.update(digest_documents(split).encode())
        records: list[Secret | Canary] = [*self.secrets, *self.canaries]
        for record in records:
            whole.update(json.dumps(dataclasses.asdict(record), sort_keys=True).encode())
        return whole.hexdigest()


class Benchmark(Plugin, ABC):
    """Private data with an answer key, a model before the private text, and how it is trained.

    A frozen dataclass whose fields (the corpus seed among them) decide the corpus; ``version`` changes whenever the
    same fields would give another corpus.
    """

    version: ClassVar[str] = "1"

    @abstractmethod
    def corpus(self) -> Corpus:
        """Builds the corpus; the same fields always give the same one."""

    @property
    @abstractmethod
    def config(self) -> TrainConfig:
        """How the undefended model is trained on ``train``."""

    def base(self, lab: Lab) -> LM:
        """The model before the private text; overridden by benchmarks that bring a model of their own."""
        raise DataError(
            f"benchmark '{self.name}' brings no model of its own: give one with --model, a hub id or a folder"
        )


Record = TypeVar("Record", Document, Secret, Canary)


def _own(records: Sequence[Record]) -> list[Record]:
    return [dataclasses.replace(record) for record in records]


def digest_documents(documents: Iterable[Document]) -> str:
    """A content digest of documents in their order (id, text and author)."""
    whole = hashlib.sha256()
    for document in documents:
        for part in (document.id, document.text, document.author):
            data = part.encode("utf-8", "surrogatepass")
            whole.update(len(data).to_bytes(8, "little"))
            whole.update(data)
    return whole.hexdigest()


def write_documents(path: Path, documents: Iterable[Document], sources: Mapping[str, str] | None = None) -> None:
    """Writes documents as JSON Lines with the keys ``id``, ``text``, ``author``, and ``source`` where it is known."""
    with jsonlines.open(path, "w") as lines:
        for document in documents:
            source = {"source": sources[document.id]} if sources and document.id in sources else {}
            lines.write({"id": document.id, "text": document.text, "author": document.author, **source})


def read_documents(path: Path) -> Iterator[Document]:
    """Reads what `write_documents` wrote.

    Raises:
        DataError: a line is no JSON object with ``id`` and ``text``.
    """
    try:
        with jsonlines.open(path) as lines:
            for line in lines:
                record: dict[str, Any] = line
                yield Document(str(record["id"]), str(record["text"]), str(record.get("author", "")))
    except (jsonlines.InvalidLineError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a documents file: {error}") from error
