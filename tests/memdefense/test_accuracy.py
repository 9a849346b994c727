"""Next-token accuracy against the model's own arg-max, and its cost and interval by hand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import cast

import pytest
import torch
from torch import Tensor

from memdefense.accuracy import Accuracy
from memdefense.attack import Outcome
from memdefense.corpus import Corpus, Document
from memdefense.lab import AttackLab
from memdefense.lm import LM
from memdefense.target import LocalTarget

HELD = [
    Document("a", "Call Anna at 415-555-0134 or 415-555-0134 today.", "Anna"),
    Document("b", "The report is late; write to bert@corp.com.", "Bert"),
    Document("c", "", "Carl"),
]
NO_LAB = cast(AttackLab, None)  # it asks nothing of it


def said(right: Sequence[int], tokens: Sequence[int], groups: str = "abcdefgh") -> list[Outcome]:
    rows = zip(right, tokens, groups, strict=False)
    return [Outcome(group, group, False, {"right": float(r), "tokens": float(n)}) for r, n, group in rows]


@pytest.fixture
def corpus(tiny_lm: LM) -> Corpus:
    """Held-out text of which the model would have said some."""
    heads = [document.text for document in HELD]
    tails = LocalTarget(tiny_lm).generate(heads, max_new_tokens=12)
    held = [dataclasses.replace(d, text=d.text + tail) for d, tail in zip(HELD, tails, strict=True)]
    return Corpus((), [Document("t", "text")], held, [Document("g", "Salt the water well and boil it.")])


def test_it_is_the_share_of_tokens_that_are_the_models_own_first_choice(tiny_lm: LM, corpus: Corpus) -> None:
    outcomes = list(Accuracy().run(LocalTarget(tiny_lm), corpus, NO_LAB))
    right = tokens = 0
    for document in corpus.held_out:
        ids = tiny_lm.encode(document.text)
        if len(ids) > 1:
            with torch.inference_mode():
                first = tiny_lm.model(input_ids=torch.tensor([ids])).logits[0, :-1].argmax(-1)
            right += int((first == torch.tensor(ids[1:])).sum())
            tokens += len(ids) - 1
    assert 0 < right < tokens
    assert [sum(o.values[name] for o in outcomes) for name in ("right", "tokens")] == [right, tokens]
    assert Accuracy().score(outcomes).headline.value == pytest.approx(right / tokens)


def test_a_law_is_asked_for_its_own_first_choice(tiny_lm: LM, corpus: Corpus) -> None:
    def other(ids: Tensor, hidden: Tensor, logprobs: Tensor) -> Tensor:
        return (-logprobs).log_softmax(-1)  # the least likely token is the most likely one

    plain, turned = (
        [o.values["right"] for o in Accuracy().run(target, corpus, NO_LAB)]
        for target in (LocalTarget(tiny_lm), LocalTarget(tiny_lm).guarded(law=other))
    )
    assert sum(turned) < sum(plain)


def test_a_flatter_model_of_the_same_first_choices_pays_nothing_here(tiny_lm: LM, corpus: Corpus) -> None:
    def flatter(ids: Tensor, hidden: Tensor, logprobs: Tensor) -> Tensor:
        return (logprobs / 3).log_softmax(-1)

    plain, guarded = (
        list(Accuracy().run(target, corpus, NO_LAB))
        for target in (LocalTarget(tiny_lm), LocalTarget(tiny_lm).guarded(law=flatter))
    )
    assert [o.values for o in guarded] == [o.values for o in plain]


def test_its_cost_is_the_share_of_right_choices_that_is_lost() -> None:
    reference = said([40, 20], [100, 20])
    assert Accuracy().cost(said([30, 15], [100, 20]), reference) == pytest.approx(25)
    assert Accuracy().cost(said([44, 22], [100, 20]), reference) == pytest.approx(-10)
    assert Accuracy().cost(said([0], [10]), reference) == 100
    assert math.isnan(Accuracy().cost(said([1], [2]), said([0], [2])))  # of nothing nothing is lost
    assert math.isnan(Accuracy().cost(said([1], [2]), []))


def test_its_interval_takes_persons_as_the_clusters() -> None:
    """0.5 of 400 tokens; the residuals of four persons are +20, -20, +10 and -10."""
    score = Accuracy().score(said([70, 30, 60, 40], [100] * 4)).headline
    error = 1.96 * math.sqrt((2 * 20**2 + 2 * 10**2) * 4 / 3) / 400
    assert (score.value, score.n) == (0.5, 4)
    assert score.low == pytest.approx(0.5 - error, abs=1e-5)
    assert score.high == pytest.approx(0.5 + error, abs=1e-5)
    one = [dataclasses.replace(o, group="x") for o in said([70, 30, 60, 40], [100] * 4)]
    assert Accuracy().score(one).headline.high == pytest.approx(0.5)  # of one person nothing is known


def test_nothing_held_out_is_no_number() -> None:
    assert math.isnan(Accuracy().score([]).headline.value)
    assert math.isnan(Accuracy().score(said([0], [0])).headline.value)
