"""Scores of membership as pure functions of per-token signals; a larger one always says "member".

All logarithms are natural. ``logprob`` (T,) holds the log-probabilities of a text's tokens, its first token aside
unless the tokenizer begins a text with one of its own; LL(x) is their mean. None of them is called for a text without
a predicted token.
"""

from __future__ import annotations

import zlib as compression
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

# A log-likelihood that something is divided by is at most this: a text that is certain throughout has LL = 0.
_CERTAIN = -1e-9
_NO_SPREAD = 1e-6  # the least standard deviation that min-k++ divides by


def loss(logprob: Values) -> float:
    """LL(x) (Yeom et al. 2018)."""
    return float(np.mean(logprob, dtype=np.float64))


def zlib(logprob: Values, text: str) -> float:
    """LL(x) / bytes of x as zlib packs it (Carlini et al. 2021, as a log-likelihood so that members are larger)."""
    return loss(logprob) / len(compression.compress(text.encode("utf-8", "replace")))


def lowercase(logprob: Values, lower: Values) -> float:
    """-log ppl(x) / log ppl(lower x) (Carlini et al. 2021, turned so that members are larger).

    Where the lower-case text has no predicted token of its own, x stands in for it, and the score is -1.
    """
    own = loss(logprob)
    return -own / min(loss(lower) if len(lower) else own, _CERTAIN)


def min_k(logprob: Values, k: float) -> float:
    """The mean of the lowest share ``k`` of the log-probabilities, of at least one (Shi et al. 2024)."""
    return float(np.sort(logprob.astype(np.float64))[: max(1, int(k * len(logprob)))].mean())


def min_k_plus_plus(logprob: Values, mean: Values, std: Values, k: float) -> float:
    """`min_k` of (log p - mean) / std over the vocabulary at the same place (Zhang et al. 2025)."""
    return min_k((logprob.astype(np.float64) - mean) / np.maximum(std.astype(np.float64), _NO_SPREAD), k)


def reference(logprob: Values, before: Values) -> float:
    """LL(x) - LL(x) under the model before the private text (Carlini et al. 2021; Mireshghallah et al. 2022)."""
    return loss(logprob) - loss(before)


def recall(logprob: Values, after_others: Values) -> float:
    """LL(x | non-members) / LL(x) (ReCaLL, Xie et al. 2024).

    Both are negative, and a prefix of non-members takes more from a member, so members are larger.

    Args:
        logprob: of x alone.
        after_others: of x after a prefix of known non-members; its last len(logprob) values are of the same tokens.
    """
    return loss(after_others[-len(logprob) :]) / min(loss(logprob), _CERTAIN)


def con_recall(logprob: Values, after_others: Values, after_members: Values, gamma: float) -> float:
    """(LL(x | non-members) - gamma LL(x | members)) / LL(x) (Con-ReCall, Wang et al. 2025); all are log-likelihoods."""
    difference = loss(after_others[-len(logprob) :]) - gamma * loss(after_members[-len(logprob) :])
    return difference / min(loss(logprob), _CERTAIN)


def dc_pdd(logprob: Values, tokens: Ids, log_frequency: Floats, *, cap: float = 0.01) -> float:
    """The mean over first occurrences of min(cap, -p log f) (DC-PDD, Zhang et al. 2024).

    Args:
        logprob: of the predicted tokens.
        tokens: the same tokens; of a token that comes again only its first prediction counts.
        log_frequency: (V,) log of each token's share of a reference corpus.
        cap: what one token can add at most.
    """
    first = np.unique(tokens, return_index=True)[1]
    weighed = -np.exp(logprob[first].astype(np.float64)) * log_frequency[tokens[first]]
    return float(np.minimum(weighed, cap).mean())


def log_frequencies(texts: Sequence[Sequence[int]], vocabulary: int) -> Floats:
    """(V,) log((count + 1) / (all + V)): each token's share of a corpus, one added to every count (Laplace)."""
    counts = np.bincount(np.concatenate([np.asarray(ids, np.int64) for ids in texts]), minlength=vocabulary)
    return np.asarray(np.log((counts + 1) / (counts.sum() + len(counts))), np.float64)


def neighbourhood(logprob: Values, neighbours: Sequence[Values]) -> float:
    """LL(x) less the mean LL of its neighbours (Mattern et al. 2023); 0 where none of them has a predicted token."""
    others = [loss(one) for one in neighbours if len(one)]
    return loss(logprob) - float(np.mean(others)) if others else 0.0


def samia(said: Sequence[str], truth: str, n: int) -> float:
    """The mean over sampled continuations of ROUGE-n recall of the true one (SaMIA, Kaneko et al. 2024).

    ROUGE-n recall is the share of the true text's n-grams of words that are among the sample's, each as often as it
    occurs there. Of a true text of fewer words than n, n is their number.
    """
    words = truth.split()
    if not words or not said:
        return 0.0
    n = min(n, len(words))
    wanted = _grams(words, n)
    return float(np.mean([(wanted & _grams(text.split(), n)).total() / wanted.total() for text in said]))


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))


__all__ = [
    "con_recall",
    "dc_pdd",
    "log_frequencies",
    "loss",
    "lowercase",
    "min_k",
    "min_k_plus_plus",
    "neighbourhood",
    "recall",
    "reference",
    "samia",
    "zlib",
]
