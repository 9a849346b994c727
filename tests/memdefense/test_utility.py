"""Utility costs against the model's own logits and against counts made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from memdefense.attack import Outcome
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


def read(nll: float) -> list[Outcome]:
    values = {"nll": nll, "tokens": 1.0, "pii_nll": 0.0, "pii_tokens": 0.0}
    return [Outcome("a", "a", False, values, "held_out")]


def test_a_rise_of_perplexity_is_a_loss_and_one_without_end_is_no_small_one() -> None:
    reference, cost = read(math.log(10)), Perplexity().cost
    assert cost(read(math.log(11)), reference, []) == pytest.approx(10)
    assert cost(read(math.log(9)), reference, []) == pytest.approx(-10)
    assert cost(read(math.inf), reference, []) == math.inf
    assert cost(read(math.nan), reference, []) == math.inf
    assert math.isnan(cost(read(1.0), [], []))


def said(*chrf: float, chance: float = 0.15) -> list[Outcome]:
    return [Outcome(f"t{n}", f"a{n}", False, {"chrf": value, "chance": chance}) for n, value in enumerate(chrf)]


def test_a_loss_of_continuation_counts_as_far_as_it_exceeds_noise() -> None:
    rng = np.random.default_rng(0)
    able = rng.normal(0.25, 0.05, 200)
    reference, cost = said(*able), Continuation().cost
    assert cost(reference, reference, reference) == 0.0
    # Half of what is said is lost, the same half for every text: the ratio of sums is known for certain.
    half = said(*(able / 2))
    assert cost(half, reference, half) == pytest.approx(50.0)
    # A loss of 1 % with the noise of a model of its own is none; by hand, less 1.96 standard errors of a ratio.
    other = said(*rng.normal(0.248, 0.05, 200))
    assert cost(other, reference, other) == 0.0
    worse = rng.normal(0.2, 0.05, 200)
    share = (able - worse).sum() / able.sum()
    error = np.std((able - worse) - share * able, ddof=1) * math.sqrt(200) / able.sum()
    found = said(*worse)
    assert cost(found, reference, found) == pytest.approx(100 * (share - 1.96 * error), rel=0.02)
    assert cost(said(*[math.nan] * 200), reference, []) == math.inf


def test_a_guard_that_says_one_sentence_to_everything_loses_all_there_is_beyond_chance() -> None:
    rng = np.random.default_rng(1)
    reference = said(*rng.normal(0.25, 0.05, 200))
    always = said(*rng.normal(0.15, 0.02, 200))
    # Of chrF itself it keeps three fifths.
    assert 35 < Continuation().cost(always, reference, always) < 45
    assert Continuation().cost(always, reference, reference) > 90
    blocked = said(*[o.values["chrf"] if n % 10 else 0.15 for n, o in enumerate(reference)])
    assert 3 < Continuation().cost(blocked, reference, reference) <= 11
    assert Continuation().cost(said(*[0.0] * 200), reference, reference) == 100


def test_where_the_undefended_model_says_no_more_than_chance_there_is_no_cost() -> None:
    rng = np.random.default_rng(2)
    poor = said(*rng.normal(0.15, 0.05, 200))
    assert math.isnan(Continuation().cost(said(*[0.0] * 200), poor, poor))
    few = said(0.9, 0.9, 0.9)
    assert math.isnan(Continuation().cost(few, few, few))
    assert math.isnan(Continuation().cost([], [], []))


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
        assert outcome.values["chance"] == 0  # there is no other text
    assert found["all"] == pytest.approx(1)
    assert found["none"] == 0
    assert 0.2 < found["half"] < 0.8


def test_short_texts_are_continued_by_half(store: Store, tiny_lm: LM) -> None:
    texts = [f"Anna will bring box number {n} to room {n + 7} at noon." for n in range(12)]
    corpus = Corpus((), [Document("t", "text")], [Document(f"s{n}", text) for n, text in enumerate(texts)])
    speaker = Speaker(*[""] * 12)
    outcomes = list(Continuation().run(speaker, corpus, lab_of(store, tiny_lm)))  # type: ignore[arg-type]
    assert len(outcomes) == 12
    assert all(10 < len(prompt) < 50 for prompt in speaker.prompts)
    # Sentences of one kind have letters in common, and are not alike.
    assert all(0.2 < outcome.values["chance"] < 0.95 for outcome in outcomes)


def test_copy_asks_for_repeated_mentions_only(store: Store, tiny_lm: LM) -> None:
    speaker = Speaker()
    (outcome,) = Copy().run(speaker, CORPUS, lab_of(store, tiny_lm))  # type: ignore[arg-type]
    assert speaker.asked == [("Call Anna at 415-555-0134 or", " 415-555-0134")]
    assert outcome.values["copied"] == 1
    assert Copy().score([outcome]).headline.value == 1


def copied(hits: int, of: int) -> list[Outcome]:
    return [Outcome(f"u{n}", f"g{n}", False, {"copied": float(n < hits)}) for n in range(of)]


def test_copies_that_are_lost_count_beyond_noise() -> None:
    cost = Copy().cost
    assert cost(copied(120, 200), copied(120, 200), []) == 0
    assert cost(copied(0, 200), copied(120, 200), []) == 100
    assert 30 < cost(copied(60, 200), copied(120, 200), []) < 50
    assert cost(copied(118, 200), copied(120, 200), []) == 0
    assert math.isnan(cost(copied(0, 200), copied(2, 200), []))  # a handful of places would decide
    assert math.isnan(cost(copied(0, 5), copied(5, 5), []))
    assert math.isnan(cost([], [], []))


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
