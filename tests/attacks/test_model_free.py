"""The model-free baseline: chance where the split is fair, far above it where the words tell."""

from __future__ import annotations

import numpy as np

from memdefense.attacks.model_free import bags, model_free
from memdefense.roc import auc

WORDS = ["lunch", "report", "friday", "please", "invoice", "team", "call", "draft", "budget", "room", "desk", "train"]


def texts_of(rng: np.random.Generator, count: int, extra: str = "") -> list[str]:
    return [
        " ".join([*rng.choice(WORDS, 12), *([extra] if rng.random() < 0.7 and extra else [])]) for _ in range(count)
    ]


def test_chance_on_exchangeable_documents() -> None:
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(12):
        texts, labels = texts_of(rng, 150), [True] * 100 + [False] * 50
        areas.append(auc(model_free(bags(texts), labels, [str(place) for place in range(150)]), labels))
    # The mean of 12 areas of 100 against 50 documents has a standard error of 0.05 / sqrt(12), about 0.015.
    assert abs(float(np.mean(areas)) - 0.5) < 0.045


def test_far_above_chance_where_the_vocabulary_differs() -> None:
    rng = np.random.default_rng(1)
    # The word stands in 70 % of one side, so 0.85 is the most that anybody could reach.
    texts, labels = [*texts_of(rng, 80, "quarterly"), *texts_of(rng, 80)], [True] * 80 + [False] * 80
    assert auc(model_free(bags(texts), labels, [str(place) for place in range(160)]), labels) > 0.72


def test_people_known_from_their_other_documents_tell_nothing() -> None:
    rng = np.random.default_rng(2)
    texts, labels, groups = [], [], []
    for person in range(40):
        for text in texts_of(rng, 5):
            texts.append(f"{text} signed person{'abcdefghij'[person % 10]}{'klmn'[person // 10]}")
            labels.append(person % 2 == 0)
            groups.append(f"p{person}")
    apart = auc(model_free(bags(texts), labels, groups), labels)
    together = auc(model_free(bags(texts), labels, [str(place) for place in range(len(texts))]), labels)
    assert together > 0.85
    assert abs(apart - 0.5) < 0.15


def test_texts_without_words_are_scored() -> None:
    assert np.isfinite(model_free(bags(["", " ", "a b"]), [True, False, True], ["1", "2", "3"])).all()
