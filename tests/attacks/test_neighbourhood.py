"""Neighbours of a text: how many tokens change, to what, and that the draws follow the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from memdefense.attacks.neighbours import neighbours
from memdefense.lm import LM

TOKENS = [int(token) for token in np.random.default_rng(0).integers(1, 300, 41)]


@pytest.fixture
def numbers(tiny_lm: LM, monkeypatch: pytest.MonkeyPatch) -> LM:
    """A model with clear preferences whose texts are the numbers of their tokens."""
    lm = tiny_lm.copy()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for weight in lm.model.parameters():
            if weight.dim() > 1:
                weight.copy_(torch.randn_like(weight) * 0.3)
    monkeypatch.setattr(LM, "encode", lambda self, text: [int(word) for word in text.split()])
    monkeypatch.setattr(LM, "decode", lambda self, ids: text_of(ids))
    return lm


def text_of(ids: list[int]) -> str:
    return " ".join(map(str, ids))


def ids_of(text: str) -> list[int]:
    return [int(word) for word in text.split()]


@pytest.mark.parametrize(("share", "expected"), [(0.15, 6), (0.5, 20), (0.001, 1), (1.0, 40)])
def test_the_share_of_the_predicted_tokens_changes_each_to_another(numbers: LM, share: float, expected: int) -> None:
    (found,) = neighbours(numbers, [text_of(TOKENS)], count=30, share=share, rng=np.random.default_rng(1))
    assert len(found) == 30
    changed = np.array([np.array(ids_of(text)) != TOKENS for text in found])  # 40 predicted tokens of 41
    assert set(changed.sum(1).tolist()) == {expected}
    assert not changed[:, 0].any()
    assert share == 1 or len({tuple(row) for row in changed.tolist()}) > 10  # other places in each neighbour
    if expected >= 6:
        assert changed[:, 1:].any(0).all()


def test_replacements_have_the_models_probabilities_without_the_token_itself(numbers: LM) -> None:
    first = TOKENS[0]
    with torch.no_grad():
        logits = numbers.model(input_ids=torch.tensor([[first]])).logits[0, -1].double()
    own = int(logits.argmax())
    assert logits.softmax(-1)[own] > 0.05  # or it would hardly be drawn anyway
    logits[own] = -torch.inf
    law, count = logits.softmax(-1).numpy(), 4000
    rng = np.random.default_rng(2)
    (found,) = neighbours(numbers, [text_of([first, own])], count=count, share=0.15, rng=rng)
    drawn = np.bincount([ids_of(text)[1] for text in found], minlength=len(law)) / count
    assert drawn[own] == 0
    assert np.all(np.abs(drawn - law) <= 4.5 * np.sqrt(law * (1 - law) / count) + 2 / count)
    flat = np.full(len(law), 1 / len(law))
    assert np.abs(drawn - law).sum() < np.abs(drawn - flat).sum() / 3


def test_a_replacement_sees_what_stood_before_it_and_not_other_replacements(numbers: LM) -> None:
    ids = TOKENS[:3]
    with torch.no_grad():
        logits = numbers.model(input_ids=torch.tensor([ids])).logits[0].double()
    logits[1, ids[2]] = -torch.inf
    law, count = logits[1].softmax(-1).numpy(), 4000
    (found,) = neighbours(numbers, [text_of(ids)], count=count, share=1.0, rng=np.random.default_rng(3))
    drawn = np.bincount([ids_of(text)[2] for text in found], minlength=len(law)) / count
    assert np.all(np.abs(drawn - law) <= 4.5 * np.sqrt(law * (1 - law) / count) + 2 / count)


def test_what_does_not_fit_the_context_stays_and_a_single_token_has_no_neighbour(numbers: LM) -> None:
    long = (TOKENS * 3)[: numbers.context + 20]
    rng = np.random.default_rng(4)
    found, none, empty = neighbours(numbers, [text_of(long), text_of(long[:1]), ""], count=3, share=1.0, rng=rng)
    assert none == empty == []
    for text in found:
        changed = np.array(ids_of(text)) != long
        assert changed[1 : numbers.context].all()
        assert not changed[0]
        assert not changed[numbers.context :].any()


def test_the_seed_decides(numbers: LM) -> None:
    texts = [text_of(TOKENS), text_of(TOKENS[:5])]
    both = neighbours(numbers, texts, count=2, share=0.2, rng=np.random.default_rng(5))
    again = neighbours(numbers, texts, count=2, share=0.2, rng=np.random.default_rng(5))
    assert both == again != neighbours(numbers, texts, count=2, share=0.2, rng=np.random.default_rng(6))
