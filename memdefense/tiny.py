"""A benchmark that runs in a second: for the conformance check, and for tests that need a whole run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from memdefense.corpus import Benchmark, Corpus, Document, Occurrence, Secret

if TYPE_CHECKING:
    from memdefense.lab import Lab
    from memdefense.lm import LM
    from memdefense.train import TrainConfig

_FIRST = ("mira", "jonas", "tess", "omar", "lena", "paul", "ines", "carl", "ruth", "hugo")
_LAST = ("okafor", "brandt", "sorel", "haddad", "quist", "marsh", "vidal", "ostrow")
_TEXT = (
    "Dear all, the {thing} for {place} is ready.\nPlease tell {first} by Friday, since nobody else may sign for it.\n"
    "Write to {email} with any question about the {thing}; a copy goes to accounting, as it did in spring.\n"
    "If the line is busy try again after lunch: {email}\n"
)
_THINGS = ("projector", "spare pump", "contract", "sample box", "invoice")
_PLACES = ("the warehouse", "the north office", "head office", "the depot")


@dataclasses.dataclass(frozen=True)
class TinyBenchmark(Benchmark):
    """Forty short letters, each with an address of its writer, and a GPT-2 of three layers that trains for six.

    Every address has a twin that a coin left out. Nothing can be learned from its numbers; it shows that a plugin runs.

    Attributes:
        seed: of the coins and of the model's weights.
    """

    name: ClassVar[str] = "tiny"
    summary: ClassVar[str] = "Forty letters and a model of three layers, for checks of plugins."

    seed: int = 0

    def corpus(self) -> Corpus:
        letters = [self._letter(place) for place in range(40)]
        train, held_out = letters[:24], letters[24:36]
        secrets = [
            self._secret(place, [document for document, _ in split])
            for split, people in ((train, range(12)), (held_out, range(12, 18)))
            for place in people
        ]
        return Corpus(
            public=[Document(f"public-{i}", _TEXT.format(**_words(i), email="desk@example.com")) for i in range(8)],
            train=[document for document, _ in train],
            held_out=[document for document, _ in held_out],
            general=[document for document, _ in letters[36:]],
            secrets=secrets,
            kinds=("email",),
        )

    @property
    def config(self) -> TrainConfig:
        from memdefense.train import TrainConfig

        return TrainConfig(
            steps=6, learning_rate=5e-3, batch_size=4, block_size=64, dtype="float32", checkpoints=2, warmup_steps=1
        )

    def base(self, lab: Lab) -> LM:
        """Fresh weights, and a byte-level BPE of the public letters."""
        from memdefense.small_model import untrained

        return untrained(lab.public, vocabulary=400, layers=3, width=32, heads=2, context=128, seed=self.seed)

    def _letter(self, place: int) -> tuple[Document, str]:
        person = place // 2
        email = self._pair(person)[0]
        return Document(f"d{place:02d}", _TEXT.format(**_words(place), email=email), f"p{person:02d}"), email

    def _pair(self, person: int) -> tuple[str, str]:
        """The address of a person and its twin; a coin says which is which."""
        first, last = _FIRST[person % len(_FIRST)], _LAST[person % len(_LAST)]
        pair = (f"{first}.{last}{10 + person}@example.com", f"{first}.{last}{50 + person}@example.com")
        return pair if (person * 7 + self.seed * 5) % 3 else (pair[1], pair[0])

    def _secret(self, person: int, documents: Sequence[Document]) -> Secret:
        value, twin = self._pair(person)
        places = [
            Occurrence(document.id, found.start(), found.end())
            for document in documents
            for found in re.finditer(re.escape(value), document.text)
        ]
        return Secret(f"s{person:02d}", "email", value, person < 12, f"p{person:02d}", tuple(places), twin)


def _words(place: int) -> dict[str, str]:
    return {
        "thing": _THINGS[place % len(_THINGS)],
        "place": _PLACES[place // 3 % len(_PLACES)],
        "first": _FIRST[place // 2 % len(_FIRST)].capitalize(),
    }
