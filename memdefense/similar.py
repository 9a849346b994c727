"""What repeats: clusters of texts that share most of their word n-grams, and passages of tokens that stood before.

For clusters, MinHash (Broder 1997) with locality-sensitive hashing proposes pairs and the true Jaccard index decides
about each of them, so they are those of comparing every text with every other. Passages come from a suffix array.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pydivsufsort
from datasketch import MinHash
from numpy.typing import NDArray

from memdefense.errors import SpecError

_MISS = 1e-6
"""The probability, at most, that a pair right at the threshold is never proposed."""


def near_duplicates(
    texts: Sequence[str], *, threshold: float = 0.8, ngram: int = 5, permutations: int = 128
) -> list[int]:
    """Cluster labels: per text, the index of the first text of its cluster.

    Two texts are near-duplicates if the Jaccard index of their sets of word n-grams is at least ``threshold``; words
    are what white space separates, letter case counts, and a text of fewer than ``ngram`` words has all of them as its
    one n-gram. A cluster is a connected component of such pairs, so that its outermost members may be less alike.
    Below a threshold of about 0.1, at 128 permutations, some pairs can go unseen.

    Args:
        texts: the texts, in the order that decides which is the first.
        threshold: the Jaccard index from which two texts belong together, above 0 and at most 1.
        ngram: words per shingle.
        permutations: the length of the MinHash signatures.

    Raises:
        SpecError: ``threshold``, ``ngram`` or ``permutations`` is out of range.
    """
    if not 0 < threshold <= 1 or ngram < 1 or permutations < 1:
        raise SpecError(
            f"threshold {threshold} must lie in (0, 1], ngram {ngram} and permutations {permutations} must be positive"
        )
    if not texts:
        return []
    first: dict[bytes, int] = {}  # a set of shingles -> the first text that has exactly it
    same = []
    distinct: list[NDArray[np.int64]] = []
    for index, shingles in enumerate(_shingles(texts, ngram)):
        content = shingles.tobytes()
        if content not in first:
            first[content] = index
            distinct.append(shingles)
        same.append(first[content])
    owners = list(first.values())
    label = {
        owner: owners[number]
        for owner, number in zip(owners, _components(distinct, threshold, permutations), strict=True)
    }
    return [label[owner] for owner in same]


def repeated_tokens(texts: Sequence[NDArray[np.int32]], span: int) -> list[NDArray[np.bool_]]:
    """Which tokens stand in a passage of ``span`` tokens or more that occurred before.

    A passage lies within one text; it occurred before if the same tokens start at an earlier place of this text or in
    an earlier one, overlaps included.

    Args:
        texts: the token ids of each text, each of shape (tokens,), in the order that decides what is earlier.
        span: tokens of the shortest passage that counts.

    Returns:
        A mask for each text, of its shape.
    """
    lengths = [len(ids) for ids in texts]
    ends = np.cumsum(lengths, dtype=np.int64)
    if sum(lengths) <= span:
        return [np.zeros(length, dtype=np.bool_) for length in lengths]
    tokens = np.concatenate(texts).astype(np.uint32)
    order = np.asarray(pydivsufsort.divsufsort(tokens), dtype=np.int64)
    common = np.asarray(pydivsufsort.kasai(tokens, order))  # of each suffix in order with the next, in tokens
    passage = np.concatenate([[0], np.cumsum(common[:-1] < span)])  # suffixes that begin with one passage: one number
    within = order + span <= np.repeat(ends, lengths)[order]
    order, passage = order[within], passage[within]
    first = np.full(len(tokens), len(tokens), dtype=np.int64)  # passage -> where it first stands
    np.minimum.at(first, passage, order)
    again = order[order > first[passage]]
    steps = np.zeros(len(tokens) + 1, dtype=np.int64)
    steps[again] += 1
    steps[again + span] -= 1
    return np.split(np.cumsum(steps[:-1]) > 0, ends[:-1])


def _shingles(texts: Sequence[str], ngram: int) -> Iterator[NDArray[np.int64]]:
    """Per text its set of shingles, as a sorted array of numbers that stand for distinct n-grams of words."""
    vocabulary: dict[str, int] = {}
    words: list[int] = []
    ends = []
    for text in texts:
        ids = [vocabulary.setdefault(word, len(vocabulary) + 1) for word in text.split()]
        words += ids + [0] * (ngram - len(ids))  # 0 stands for no word, so a padded text equals no longer one
        ends.append(len(words))
    numbers = np.asarray(words, dtype=np.int64)
    grams = numbers
    for shift in range(1, ngram):
        # (number of the shorter n-gram, next word) -> number of the longer one: exact, with no hash to collide
        pairs = grams[:-1] * (len(vocabulary) + 1) + numbers[shift:]
        grams = np.unique(pairs, return_inverse=True)[1].astype(np.int64)
    start = 0
    for end in ends:
        yield np.unique(grams[start : end - ngram + 1])
        start = end


def _components(sets: Sequence[NDArray[np.int64]], threshold: float, permutations: int) -> list[int]:
    """Connected components of pairwise distinct sets: per set, the index of the first one of its component."""
    labels = np.arange(len(sets))
    sizes = np.asarray([len(numbers) for numbers in sets])
    marked = np.zeros(max(int(numbers[-1]) + 1 for numbers in sets), dtype=bool)
    bands = _bands(sets, threshold, permutations)
    for band in range(bands.shape[1]):
        order = np.argsort(bands[:, band], kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(bands[order, band])) + 1):
            if (labels[bucket] == labels[bucket[0]]).all():
                continue
            for place, index in enumerate(bucket[1:], start=1):
                rivals = bucket[:place]
                rivals = rivals[labels[rivals] != labels[index]]
                # a pair that met in an earlier band and is still apart was compared there
                rivals = rivals[~(bands[rivals, :band] == bands[index, :band]).any(axis=1)]
                small, large = np.minimum(sizes[rivals], sizes[index]), np.maximum(sizes[rivals], sizes[index])
                rivals = rivals[small >= threshold * large - 1e-9]  # the slack leaves exact ties to the division below
                marked[sets[index]] = True
                for rival in rivals:
                    if labels[rival] == labels[index]:
                        continue
                    shared = np.count_nonzero(marked[sets[rival]])
                    if shared / (sizes[rival] + sizes[index] - shared) >= threshold:
                        joined = sorted((labels[rival], labels[index]))
                        labels[labels == joined[1]] = joined[0]
                marked[sets[index]] = False
    return [int(label) for label in labels]


def _bands(sets: Sequence[NDArray[np.int64]], threshold: float, permutations: int) -> NDArray[np.int64]:
    """Per set and band of its signature a number: sets with equal numbers agree in the whole band; (sets, bands).

    Bands are as long as can be, hence needless comparisons as few, while a pair at the threshold agrees in one of them
    almost surely.
    """
    rows = permutations
    while rows > 1 and (1 - threshold**rows) ** (permutations // rows) > _MISS:
        rows -= 1
    numbers = (shingles.tolist() for shingles in sets)
    hashes = MinHash.generator(numbers, num_perm=permutations, hashfunc=_identity)
    signatures = [minhash.hashvalues for minhash in hashes]  # each (permutations,)
    bands = np.zeros((len(sets), permutations // rows), dtype=np.int64)
    for band in range(bands.shape[1]):
        known: dict[bytes, int] = {}
        for index, signature in enumerate(signatures):
            bands[index, band] = known.setdefault(signature[band * rows : (band + 1) * rows].tobytes(), len(known))
    return bands


def _identity(number: int) -> int:
    """The hash of a shingle, which is a number already; MinHash permutes it."""
    return number
