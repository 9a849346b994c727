"""Membership from the text alone: what a classifier that never sees the model can tell of the split."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_WORD = re.compile(r"[^\W\d_]+|\d|[^\w\s]")
_BUCKETS = 1 << 16
_FOLDS = 5


def model_free(texts: Sequence[str], members: Sequence[bool], groups: Sequence[str]) -> npt.NDArray[np.float64]:
    """Out-of-fold log-odds of membership, (n,), from multinomial naive Bayes on words and word pairs.

    Folds are of groups (authors), so a classifier cannot know an author from another document of theirs.
    """
    rows = [_features(text) for text in texts]
    labels = np.asarray(members, dtype=bool)
    fold = np.array([hashlib.sha256(group.encode()).digest()[0] % _FOLDS for group in groups])
    odds = np.zeros(len(texts))
    whole = {label: _counts([row for row, is_in in zip(rows, labels, strict=True) if is_in == label]) for label in (True, False)}
    for number in range(_FOLDS):
        inside = np.flatnonzero(fold == number)
        logs = {}
        for label in (True, False):
            left = whole[label] - _counts([rows[i] for i in inside if labels[i] == label])
            logs[label] = np.log(left + 0.1) - np.log(left.sum() + 0.1 * _BUCKETS)
        weight = logs[True] - logs[False]
        for i in inside:
            odds[i] = weight[rows[i]].mean() if len(rows[i]) else 0.0
    return odds


def _features(text: str) -> npt.NDArray[np.int64]:
    words = _WORD.findall(text.lower())
    pairs = [f"{first} {second}" for first, second in zip(words, words[1:], strict=False)]
    hashed = (int.from_bytes(hashlib.blake2b(w.encode(), digest_size=4).digest(), "little") for w in (*words, *pairs))
    return np.fromiter((value % _BUCKETS for value in hashed), dtype=np.int64)


def _counts(rows: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.float64]:
    joined = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)
    return np.bincount(joined, minlength=_BUCKETS).astype(np.float64)
