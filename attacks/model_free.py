"""Membership from the text alone: what a classifier that never sees the model can tell of the split."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Bag = npt.NDArray[np.uint16]
_WORD = re.compile(r"[^\W\d_]+|\d|[^\w\s]")
_BUCKETS = 1 << 16
_FOLDS = 5
_SIDES = (True, False)


def bags(texts: Sequence[str]) -> list[Bag]:
    """Words and word pairs of each text, hashed; one reading serves every split of the same texts."""
    return [_features(text) for text in texts]


def model_free(rows: list[Bag], members: Sequence[bool], groups: Sequence[str]) -> npt.NDArray[np.float64]:
    """Out-of-fold log-odds of membership, (n,), from multinomial naive Bayes on words and word pairs.

    Folds are of groups, so that a classifier cannot know a person from another document; see
    `memdefense.attacks.circles`. Within a fold
    the log-odds are centred: a fold with more members leaves fewer to learn from, which moves its whole level the other
    way, and folds of different levels ranked together would put a fair split below chance.

    Args:
        rows: the texts as `bags` gives them.
        members: which side each is of.
        groups: whom each belongs to.
    """
    labels = np.asarray(members, dtype=bool)
    fold = np.array([hashlib.sha256(group.encode()).digest()[0] % _FOLDS for group in groups])
    odds = np.zeros(len(rows))
    whole = {side: _counts([row for row, label in zip(rows, labels, strict=True) if label == side]) for side in _SIDES}
    for number in range(_FOLDS):
        inside = np.flatnonzero(fold == number)
        if not len(inside):
            continue
        left = {side: whole[side] - _counts([rows[i] for i in inside if labels[i] == side]) for side in _SIDES}
        sizes = {side: max(float(left[side].sum()), 1.0) for side in _SIDES}
        both = sum(sizes.values())
        # One word is added to both classes in proportion to their sizes, so that an unknown one speaks for neither.
        logs = {side: np.log(left[side] + sizes[side] / both) - np.log(sizes[side]) for side in _SIDES}
        weight = logs[True] - logs[False]
        found = np.array([weight[rows[i]].mean() if len(rows[i]) else 0.0 for i in inside])
        odds[inside] = found - found.mean()
    return odds


def _features(text: str) -> Bag:
    words = _WORD.findall(text.lower())
    pairs = [f"{first} {second}" for first, second in itertools.pairwise(words)]
    hashed = (int.from_bytes(hashlib.blake2b(w.encode(), digest_size=4).digest(), "little") for w in (*words, *pairs))
    return np.fromiter((value % _BUCKETS for value in hashed), dtype=np.uint16)


def _counts(rows: Sequence[Bag]) -> npt.NDArray[np.float64]:
    joined = np.concatenate(rows) if rows else np.zeros(0, dtype=np.uint16)
    return np.bincount(joined, minlength=_BUCKETS).astype(np.float64)
