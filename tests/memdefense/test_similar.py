from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from memdefense.errors import SpecError
from memdefense.similar import near_duplicates, repeated_tokens


def ngrams(text: str, n: int) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[at : at + n]) for at in range(len(words) - n + 1)} or {tuple(words)}


def brute_force(texts: list[str], threshold: float, n: int) -> list[int]:
    """Clusters by comparing all pairs and relabelling until nothing changes."""
    sets = [ngrams(text, n) for text in texts]
    close = [
        (i, j)
        for i, j in itertools.combinations(range(len(texts)), 2)
        if len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= threshold
    ]
    labels = list(range(len(texts)))
    changed = True
    while changed:
        changed = False
        for i, j in close:
            low = min(labels[i], labels[j])
            changed |= labels[i] != low or labels[j] != low
            labels[i] = labels[j] = low
    return labels


def mails(seed: int, families: int, size: int, *, vocabulary: int = 500) -> list[str]:
    """Texts in families whose members have 0 to 5 words of a common text exchanged, dropped or added."""
    rng = np.random.default_rng(seed)
    words = [f"w{number}" for number in range(vocabulary)]
    texts = []
    for _ in range(families):
        common = [words[i] for i in rng.integers(0, vocabulary, rng.integers(3, 120))]
        for _ in range(size):
            own = list(common)
            for _ in range(rng.integers(0, 6)):
                at = int(rng.integers(0, len(own)))
                own[at : at + rng.integers(0, 2)] = [words[i] for i in rng.integers(0, vocabulary, rng.integers(0, 2))]
                own = own or ["w0"]
            texts.append(" ".join(own))
    return [texts[i] for i in rng.permutation(len(texts))]


@pytest.mark.parametrize(
    ("seed", "threshold", "n"), [(0, 0.8, 5), (1, 0.8, 5), (2, 0.5, 3), (3, 0.95, 1), (4, 0.2, 2), (5, 1.0, 5)]
)
def test_clusters_equal_brute_force(seed: int, threshold: float, n: int) -> None:
    texts = mails(seed, 30, 10)
    expected = brute_force(texts, threshold, n)
    assert near_duplicates(texts, threshold=threshold, ngram=n) == expected
    assert 30 <= len(set(expected)) < 290  # the families are neither all one nor all apart


def test_texts_chain_into_one_cluster() -> None:
    """Neighbours 0-1 and 1-2 share 9 of 11 words; 0 and 2 share 8 of 12."""
    texts = [" ".join(f"w{word}" for word in range(start, start + 10)) for start in (0, 1, 2)]
    assert near_duplicates(texts, ngram=1, threshold=9 / 11) == [0, 0, 0]
    assert near_duplicates([texts[0], texts[2]], ngram=1, threshold=9 / 11) == [0, 1]


def test_the_threshold_itself_belongs_to_the_cluster() -> None:
    """4 shared words of 5: exactly 0.8."""
    assert near_duplicates(["a b c d e", "a b c d"], ngram=1) == [0, 0]
    assert near_duplicates(["a b c d e", "a b c d"], ngram=1, threshold=0.800001) == [0, 1]


def test_short_texts_are_one_shingle_of_all_their_words() -> None:
    texts = ["thank you", "thank  you\n", "thank you all", "", "  ", "thank", "you thank"]
    assert near_duplicates(texts) == [0, 0, 2, 3, 3, 5, 6]
    assert near_duplicates([]) == []


def test_thousands_of_copies_and_near_copies_stay_fast() -> None:
    common = [f"w{number}" for number in range(150)]
    letters = [" ".join([*common[:75], f"issue{number // 2}", *common[75:]]) for number in range(8000)]
    start = time.perf_counter()
    labels = near_duplicates([*letters, "quite another text of more than five words"])
    assert set(labels[:-1]) == {0}
    assert labels[-1] == 8000
    assert time.perf_counter() - start < 30


@pytest.mark.parametrize(("threshold", "n", "permutations"), [(0.0, 5, 128), (1.1, 5, 128), (0.8, 0, 128), (0.8, 5, 0)])
def test_values_out_of_range_are_refused(threshold: float, n: int, permutations: int) -> None:
    with pytest.raises(SpecError, match="threshold"):
        near_duplicates(["a"], threshold=threshold, ngram=n, permutations=permutations)


def naive_repeats(texts: list[list[int]], span: int) -> list[list[bool]]:
    masks = [[False] * len(text) for text in texts]
    seen: set[tuple[int, ...]] = set()
    for text, mask in zip(texts, masks, strict=True):
        for at in range(len(text) - span + 1):
            window = tuple(text[at : at + span])
            if window in seen:
                mask[at : at + span] = [True] * span
            seen.add(window)
    return masks


@pytest.mark.parametrize("seed", range(60))
def test_repeated_tokens_equal_a_naive_search(seed: int) -> None:
    rng = np.random.default_rng(seed)
    alphabet = rng.choice([0, 1, 255, 256, 65_535, 65_536, 150_000], size=rng.integers(1, 5), replace=False)
    texts = [
        [int(token) for token in rng.choice(alphabet, rng.integers(0, 30))] for _ in range(int(rng.integers(0, 12)))
    ]
    span = int(rng.integers(1, 7))
    masks = repeated_tokens([np.asarray(text, dtype=np.int32) for text in texts], span)
    assert [mask.tolist() for mask in masks] == naive_repeats(texts, span)


def test_a_passage_does_not_cross_two_texts() -> None:
    texts = [np.asarray(text, dtype=np.int32) for text in ([1, 2, 3, 4], [1, 2], [3, 4])]
    assert [mask.any() for mask in repeated_tokens(texts, 4)] == [False, False, False]
    assert [mask.any() for mask in repeated_tokens(texts, 2)] == [False, True, True]
