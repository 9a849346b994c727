"""Utility costs against the model's own logits and against counts made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from memdefense.bench import Bench
from memdefense.corpus import Corpus, Document, Occurrence, Secret
from memdefense.lab import AttackLab
from memdefense.lm import LM
from memdefense.store import Store
from memdefense.target import LocalTarget
from memdefense.train import TrainConfig
from memdefense.utility import Continuation, Copy, Perplexity

HELD = [
    Document("a", "Call Anna at 415-555-0134 or 415-555-0134 today.", "Anna"),
    Document("b", "The report is late; write to bert@corp.com.", "Bert"),
]
GENERAL = [Document("g", "Salt the water well and boil it.")]
SECRET = Secret("s", "phone", "4155550134", False, "Anna", (Occurrence("a", 13, 25), Occurrence("a", 29, 41)))
CORPUS = Corpus((), [Document("t", "text")], HELD, GENERAL, [SECRET])


def lab_of(store: Store, base: LM) -> AttackLab:
    return AttackLab(
        Bench(store),
        who="test",
        seed=0,
        originals=CORPUS.train,
        public=(),
        config=TrainConfig(),
        base=base,
        curated=CORPUS.train,
        defended=lambda *_: pytest.fail("no shadow model is needed"),
    )


def nll(lm: LM, text: str) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], list[tuple[int, int]]]:
    ids = lm.encode(text)
    with torch.inference_mode():
        rows = torch.log_softmax(lm.model(input_ids=torch.tensor([ids])).logits[0, :-1].double(), -1)
    offsets: list[tuple[int, int]] = lm.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return -rows[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].numpy(), offsets[1:]


def test_perplexity_is_token_weighted_and_its_parts_are_by_hand(store: Store, tiny_lm: LM) -> None:
    outcomes = list(Perplexity().run(LocalTarget(tiny_lm), CORPUS, lab_of(store, tiny_lm)))
    scores = Perplexity().score(outcomes)
    losses = [nll(tiny_lm, document.text) for document in HELD]
    whole = np.concatenate([loss for loss, _ in losses])
    assert scores.headline.value == pytest.approx(math.exp(whole.mean()), rel=1e-5)
    assert scores.headline.low < scores.headline.value < scores.headline.high
    # The secrets of the answer key, and what the detector finds beside them (the address in b).
    spans = [[(13, 25), (29, 41)], [(29, 42)]]
    assert HELD[1].text[29:42] == "bert@corp.com"
    left = [
        value
        for (loss, offsets), inside in zip(losses, spans, strict=True)
        for value, (start, end) in zip(loss, offsets, strict=True)
        if not any(start < last and end > first for first, last in inside)
    ]
    assert 0 < len(left) < len(whole)
    assert scores.beside["perplexity_without_pii"].value == pytest.approx(math.exp(np.mean(left)), rel=1e-5)
    general = nll(tiny_lm, GENERAL[0].text)[0]
    assert scores.beside["perplexity_general"].value == pytest.approx(math.exp(general.mean()), rel=1e-5)
    means = [math.exp(loss.mean()) for loss, _ in losses]
    assert scores.beside["mean_exp_nll"].value == pytest.approx(np.mean(means), rel=1e-5)
    assert Perplexity().cost(11, 10) == pytest.approx(10)  # a rise is a loss
    assert Perplexity().cost(9, 10) == pytest.approx(-10)


class Speaker:
    """A target that continues with fixed text, and copies what it is told to."""

    def __init__(self, *said: str, copies: bool = True) -> None:
        self.said, self.copies = list(said), copies
        self.asked: list[tuple[str, str]] = []
        self.prompts: list[str] = []

    def generate(self, prompts: list[str], *, max_new_tokens: int) -> list[str]:
        self.prompts += prompts
        return self.said[: len(prompts)]

    def continues(self, prompts: list[str], values: list[str]) -> list[bool]:
        self.asked += list(zip(prompts, values, strict=True))
        return [self.copies] * len(prompts)


def test_continuation_of_the_truth_costs_nothing_and_of_nothing_all(store: Store, tiny_lm: LM) -> None:
    lines = "".join(f"Line {n} says that the boxes are in room {n}. " for n in range(12))
    corpus = Corpus((), [Document("t", "text")], [Document("long", lines), Document("short", "too short")])
    found = {}
    for name, said in (("none", ""), ("all", None), ("half", None)):
        speaker = Speaker("")
        list(Continuation().run(speaker, corpus, lab_of(store, tiny_lm)))  # type: ignore[arg-type]
        (prompt,) = speaker.prompts
        assert lines.startswith(prompt)
        truth = lines[len(prompt) :][:120]
        text = truth if said is None else said
        speaker = Speaker(text if name != "half" else text[:60] + "zzzzzzz qqqqqq xxxxx")
        (outcome,) = Continuation().run(speaker, corpus, lab_of(store, tiny_lm))  # type: ignore[arg-type]
        found[name] = outcome.values["chrf"]
        assert outcome.unit == "long"
    assert found["all"] == pytest.approx(1)
    assert found["none"] == 0
    assert 0.2 < found["half"] < 0.8
    assert Continuation().cost(0, 0.4) == 100
    assert math.isnan(Continuation().cost(0.1, 0))


def test_copy_asks_for_repeated_mentions_only(store: Store, tiny_lm: LM) -> None:
    speaker = Speaker()
    (outcome,) = Copy().run(speaker, CORPUS, lab_of(store, tiny_lm))  # type: ignore[arg-type]
    assert speaker.asked == [("Call Anna at 415-555-0134 or", " 415-555-0134")]
    assert outcome.values["copied"] == 1
    assert Copy().score([outcome]).headline.value == 1
    assert Copy().cost(0.3, 0.6) == 50
    assert math.isnan(Copy().cost(0.0, 0.01))  # a handful of places would decide


def test_copy_leaves_out_what_the_context_cannot_hold(store: Store, tiny_lm: LM) -> None:
    text = "Call 415-555-0134 now. " + "and so on " * 60 + "415-555-0134"
    places = (Occurrence("far", 5, 17), Occurrence("far", len(text) - 12, len(text)))
    secret = Secret("s", "phone", "4155550134", False, "Anna", places)
    corpus = Corpus((), [Document("t", "text")], [Document("far", text)], secrets=[secret])
    assert list(Copy().run(Speaker(), corpus, lab_of(store, tiny_lm))) == []  # type: ignore[arg-type]


def test_nothing_held_out_is_no_number() -> None:
    assert math.isnan(Perplexity().score([]).headline.value)
    assert math.isnan(Copy().score([]).headline.value)
    assert math.isnan(Continuation().score([]).headline.value)
