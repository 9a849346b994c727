"""Which model of a pool is trained on which half of the text, and what a model says of each unit."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from memdefense import Corpus, Document

from .shadow_scores import Bools, Floats, token_logits

if TYPE_CHECKING:
    from memdefense import AttackLab, LogprobTarget
    from memdefense.access import Target

# Apart from every seed of a run, and the same for all of them: one pool serves all seeds.
_SEED = 10_000


@dataclasses.dataclass(frozen=True)
class Unit:
    """A document or an author whose membership is asked for.

    Attributes:
        id: of the document, or the author's name.
        key: what the coin is tossed for.
        documents: its text.
        member: whether it is of the training text.
    """

    id: str
    key: str
    documents: tuple[Document, ...]
    member: bool


@dataclasses.dataclass(frozen=True)
class Reading:
    """What one model says of every unit, each (U,), from one pass; NaN where a unit has no predicted token.

    Attributes:
        logit: mean of the tokens' log p / (1 - p).
        mean: of the tokens' log-probabilities.
        whole: their sum.
        accuracy: the share of tokens that were the most probable ones.
        tokens: how many there are.
    """

    logit: Floats
    mean: Floats
    whole: Floats
    accuracy: Floats
    tokens: Floats

    def of(self, chosen: Bools) -> Reading:
        """Of some of the units."""
        return Reading(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True)
class Pool:
    """Models that each went through the whole defended pipeline on a half of the training and held-out text.

    Attributes:
        inside: (models, keys) whether a model is trained on what has that key.
        places: the column of each key.
        number: other numbers toss other coins.
    """

    inside: Bools
    places: Mapping[str, int]
    number: int
    _dealt: tuple[tuple[str, Document], ...]

    def half(self, model: int) -> list[Document]:
        """What a model is trained on."""
        return [document for key, document in self._dealt if self.inside[model, self.places[key]]]

    def target(self, model: int, lab: AttackLab) -> Target:
        """A model, trained now or taken from the store."""
        return lab.defend(self.half(model), _SEED + 1000 * self.number + model)


def pool_of(corpus: Corpus, by: str, models: int, number: int) -> Pool:
    """Tosses the coins; a larger pool holds the smaller one of the same number.

    Args:
        corpus: whose training and held-out text is dealt.
        by: what a coin is tossed for, ``document`` or ``author``.
        models: how many there are, an even number.
        number: other numbers toss other coins.
    """
    dealt = tuple((key_of(document, by), document) for document in (*corpus.train, *corpus.held_out))
    keys = sorted({key for key, _ in dealt})
    return Pool(halves(keys, models, number), {key: place for place, key in enumerate(keys)}, number, dealt)


def key_of(document: Document, by: str) -> str:
    """What a document's coin is tossed for: its author, or its text, so that a copy never stands on the other side."""
    if by == "author":
        return f"author/{document.author or document.id}"
    return "text/" + hashlib.sha256(document.text.encode("utf-8", "replace")).hexdigest()


def units_of(corpus: Corpus, by: str) -> tuple[list[Unit], int]:
    """The units of the training text and of the held-out text, and how many are of both and can be neither.

    Canary documents are left out, and of documents with one text all but the first.
    """
    planted = corpus.planted
    whose: dict[str, list[tuple[Document, bool]]] = {}
    for split, member in ((corpus.train, True), (corpus.held_out, False)):
        for document in split:
            if document.text.strip() and document.id not in planted:
                whose.setdefault(key_of(document, by), []).append((document, member))
    units, both = [], 0
    for key, found in whose.items():
        documents, sides = [document for document, _ in found], {member for _, member in found}
        if len(sides) > 1:
            both += 1
            continue
        first = documents[0]
        if by == "author":
            units.append(Unit(first.author or first.id, key, tuple(documents), sides.pop()))
        else:
            units.append(Unit(first.id, key, (first,), sides.pop()))
    return units, both


def halves(keys: Sequence[str], models: int, seed: int) -> Bools:
    """(models, keys): whether a model is trained on what has that key, by a seeded coin.

    Models come in pairs, each trained on what the other is not, so every key is in exactly half of them.
    """
    inside: npt.NDArray[np.bool_] = np.zeros((models, len(keys)), dtype=np.bool_)
    for place, key in enumerate(keys):
        coins = hashlib.sha256(f"shadow/{seed}/{key}".encode()).digest()
        for pair in range(models // 2):
            side = coins[pair // 8 % len(coins)] >> pair % 8 & 1
            inside[2 * pair + side, place] = True
    return inside


def read(target: LogprobTarget, units: Sequence[Unit]) -> Reading:
    """What a model says of every unit; members and others are asked for in one call each."""
    columns = np.full((5, len(units)), np.nan)
    for member in (True, False):
        rows = [row for row, unit in enumerate(units) if unit.member == member]
        signals = iter(target.signals([d.text for row in rows for d in units[row].documents]))
        for row in rows:
            own = [next(signals) for _ in units[row].documents]
            logprob = np.concatenate([one.logprob.astype(np.float64) for one in own])
            if len(logprob):
                right = float(np.mean(np.concatenate([one.rank for one in own]) == 0))
                sums = logprob.mean(), logprob.sum(), right, len(logprob)
                columns[:, row] = token_logits(logprob).mean(), *sums
    return Reading(*columns)
