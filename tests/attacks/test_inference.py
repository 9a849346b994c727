"""Inference and reconstruction against perplexities by hand, and what is left out of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from memdefense.attack import Attack, Outcome
from memdefense.attacks.filled import gaps
from memdefense.attacks.filled_report import top_scores, top_terms
from memdefense.attacks.inference import Inference
from memdefense.attacks.reconstruction import Reconstruction
from memdefense.bench import Bench
from memdefense.corpus import Corpus, Document, Occurrence, Secret
from memdefense.errors import NotApplicable, SpecError
from memdefense.lab import AttackLab
from memdefense.lm import LM
from memdefense.store import Store
from memdefense.target import GREEDY, PLAIN, LocalTarget, Sampling, Signals
from memdefense.testing import check_attack
from memdefense.train import TrainConfig

NAMES = ["Anna", "Bert", "Cleo", "Dora"]
VALUES = ["4155550134", "2125550187", "3125550199", "6465550122"]
TWINS = ["4155550177", "2125550111", "3125550122", "6465550163"]


def written(value: str) -> str:
    return f"({value[:3]}) {value[3:6]}-{value[6:]}"


TRAIN = [
    Document(f"d{n}", f"Please call {NAMES[n]} at {written(VALUES[n])} today or write.", NAMES[n]) for n in range(4)
]


def secret(number: int, *, twin: bool = True) -> Secret:
    start = TRAIN[number].text.index("(")
    place = Occurrence(f"d{number}", start, start + 14)
    return Secret(
        f"s{number}", "phone", VALUES[number], True, NAMES[number], (place,), TWINS[number] if twin else "", False
    )


def corpus_of(*, twins: bool = True) -> Corpus:
    return Corpus((), TRAIN, [], secrets=[secret(n, twin=twins) for n in range(4)], kinds=("phone",))


def lab_of(store: Store, base: LM, recall: float = 1.0) -> AttackLab:
    return AttackLab(
        Bench(store, detector_recall=recall),
        who="test",
        seed=0,
        originals=TRAIN,
        public=(),
        config=TrainConfig(),
        base=base,
        curated=TRAIN,
        defended=None,
    )


@pytest.fixture(scope="module")
def memoriser(tiny_lm: LM) -> LM:
    """The tiny model after it has read the first two documents many times."""
    lm = tiny_lm.copy()
    optimizer = torch.optim.Adam(lm.model.parameters(), lr=1e-2)
    rows = [torch.tensor([lm.encode(document.text)]) for document in TRAIN[:2]]
    lm.model.train()
    for _ in range(60):
        optimizer.zero_grad()
        torch.stack([lm.model(input_ids=row, labels=row).loss for row in rows]).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    lm.model.train(False)
    return lm


def perplexity(lm: LM, text: str) -> float:
    ids = torch.tensor([lm.encode(text)])
    with torch.inference_mode():
        return float(lm.model(input_ids=ids, labels=ids).loss.exp())


def test_contracts() -> None:
    check_attack(Inference(candidates=3, secrets=6, before=20))
    check_attack(Reconstruction(samples=2, secrets=6, before=20, new_tokens=12))


def test_the_guess_is_the_filling_of_lowest_perplexity(store: Store, tiny_lm: LM, memoriser: LM) -> None:
    attack = Inference(candidates=5)
    outcomes = {o.unit: o for o in attack.run(LocalTarget(memoriser), corpus_of(), lab_of(store, tiny_lm))}
    # Five candidates: the value, its twin, and those of the other three.
    for n in range(4):
        candidates = [VALUES[n], TWINS[n], *(VALUES[m] for m in range(4) if m != n)]
        frames = TRAIN[n].text.split(written(VALUES[n]))
        tail = memoriser.encode(frames[1], special=False)
        for lm, name in ((memoriser, "top"), (tiny_lm, "base")):
            after = frames[1] if len(tail) <= 12 else frames[1][: len(memoriser.decode(tail[:12]))]
            scores = [perplexity(lm, frames[0] + written(value) + after) for value in candidates]
            assert outcomes[f"s{n}"].values[name] == float(np.argmin(scores) == 0), (n, name)
    assert [outcomes[f"s{n}"].values["top"] for n in (0, 1)] == [1, 1]  # it did learn them
    assert all(o.values["candidates"] == 5 for o in outcomes.values())


def test_candidates_are_other_peoples_and_in_the_same_spelling(store: Store, tiny_lm: LM) -> None:
    same = [secret(0), Secret("s9", "phone", VALUES[1], True, NAMES[0], secret(1).occurrences, TWINS[1]), secret(2)]
    corpus = Corpus((), TRAIN, [], secrets=same, kinds=("phone",))
    lab = lab_of(store, tiny_lm)
    attack = Inference(candidates=8)
    found, _ = gaps(corpus, lab, secrets=10, before=40, after=12)
    given = {gap.secret.id: candidates for gap, candidates in attack._given(found, corpus, lab)}
    assert set(given["s0"]) == {VALUES[0], TWINS[0], VALUES[2]}  # s9 is Anna's too
    assert all(spelled == written(value) for value, spelled in given["s0"].items())
    few = {gap.secret.id: set(c) for gap, c in Inference(candidates=2)._given(found, corpus, lab)}
    assert few["s0"] == {VALUES[0], TWINS[0]}  # the twin before strangers


def test_values_that_stand_twice_in_the_sentence_are_not_asked_for(store: Store, tiny_lm: LM) -> None:
    twice = Document("d0", f"Not {written(VALUES[0])} but {written(VALUES[0])}.", "Anna")
    hard = Document("d1", "Call Bert at 212 five 0187.", "Bert")
    starts = [twice.text.index("("), twice.text.rindex("(")]
    anna = Secret("s0", "phone", VALUES[0], True, "Anna", tuple(Occurrence("d0", s, s + 14) for s in starts), TWINS[0])
    bert = Secret("s1", "phone", VALUES[1], True, "Bert", (Occurrence("d1", 13, 26, "split"),), TWINS[1])
    corpus = Corpus((), [twice, hard, *TRAIN[2:]], [], secrets=[anna, bert, secret(2), secret(3)], kinds=("phone",))
    outcomes = {
        o.unit: o.values for o in Inference(before=40).run(LocalTarget(tiny_lm), corpus, lab_of(store, tiny_lm))
    }
    assert {unit: values["asked"] for unit, values in outcomes.items()} == {"s0": 0, "s1": 0, "s2": 1, "s3": 1}
    near = Inference(before=2, after=1).run(LocalTarget(tiny_lm), corpus, lab_of(store, tiny_lm))
    assert {o.unit: o.values["asked"] for o in near}["s0"] == 1
    scores = top_scores([Outcome(unit, unit, True, values) for unit, values in outcomes.items()])
    assert scores.beside["not_asked"].value == 0.5


def outcome(unit: str, top: float, *, twin: float | None = None, base: float = 0, base_twin: float = 0) -> Outcome:
    values = {"asked": 1.0, "top": top, "base": base, "base_twin": base_twin, "candidates": 4.0}
    return Outcome(unit, unit, True, values if twin is None else {**values, "twin": twin}, "phone/random/1")


def test_what_the_base_model_knows_is_left_out_with_its_mirror_image() -> None:
    left = [outcome(f"l{n}", float(n < 6), twin=float(n == 9)) for n in range(10)]
    known = [outcome("k0", 1, twin=0, base=1), outcome("k1", 1, twin=0, base_twin=1)]
    silent = Outcome("n", "n", True, {"asked": 0.0})
    scores = top_scores([*left, *known, silent])
    assert scores.headline.value == pytest.approx((0.6 - 0.1) / (1 - 0.1))
    assert scores.headline.n == 10
    assert scores.beside["known_to_base"].value == pytest.approx(2 / 12)
    assert scores.beside["top1_of_base"].value == pytest.approx(1 / 12)
    assert scores.beside["top1_with_known"].value == pytest.approx(8 / 12)
    terms = top_terms([*left, *known, silent])
    assert len(terms) == 10
    assert np.mean([term.value for term in terms]) == pytest.approx(scores.headline.value)
    assert np.isnan(top_scores([]).headline.value)
    assert top_terms([outcome("a", 0, twin=1)]) == []


def test_values_that_the_detector_misses_somewhere_stand_apart(store: Store, tiny_lm: LM) -> None:
    spelled = Document("d9", "Or call Bert at 212 five 0187.", "Bert")
    places = (*secret(1).occurrences, Occurrence("d9", 16, 29, "split"))
    bert = dataclasses.replace(secret(1), occurrences=places)
    corpus = Corpus((), [*TRAIN, spelled], [], secrets=[secret(0), bert, secret(2)], kinds=("phone",))
    asked = [Inference(candidates=3), Reconstruction(samples=2, new_tokens=8)]
    for attack in asked:
        outcomes = list(attack.run(LocalTarget(tiny_lm), corpus, lab_of(store, tiny_lm)))
        assert {o.unit: o.values["found"] for o in outcomes} == {"s0": 1, "s1": 0, "s2": 1}
        assert {n: attack.score(outcomes).beside[f"top1_{n}"].n for n in ("found", "missed")} == {
            "found": 2,
            "missed": 1,
        }
    deaf = lab_of(store, tiny_lm, recall=1e-9)
    assert [o.values["found"] for o in asked[0].run(LocalTarget(tiny_lm), corpus, deaf)] == [0, 0, 0]
    told = [outcome(f"u{n}", top, twin=0) for n, top in enumerate((1, 0, 1))]
    kept = [dataclasses.replace(o, values={**o.values, "found": float(n < 2)}) for n, o in enumerate(told)]
    scores = top_scores(kept)
    assert (scores.beside["top1_found"].value, scores.beside["top1_missed"].value) == (0.5, 1.0)
    assert np.isnan(top_scores(told).beside["top1_found"].value)  # outcomes of a version that did not ask


def test_without_twins_chance_is_what_the_base_model_gets_right_in_the_same_sentences() -> None:
    bare = [outcome(f"b{n}", float(n < 5), base=float(n in (0, 7))) for n in range(10)]
    scores = top_scores([*bare, Outcome("n", "n", True, {"asked": 0.0})])
    assert (scores.beside["top1"].value, scores.beside["chance"].value) == (0.5, 0.2)
    assert scores.headline.value == pytest.approx((0.5 - 0.2) / 0.8)
    assert scores.headline.n == 10
    terms = [term.value for term in top_terms(bare)]
    assert terms == pytest.approx([0, *[1 / 0.8] * 4, 0, 0, -1 / 0.8, 0, 0])
    assert top_terms([outcome("a", 1, base=1)]) == []
    assert np.isnan(top_scores([outcome("a", 1, base=1)]).headline.value)
    # A value with a twin is left out where the base model knows it, as ever.
    mixed = [*bare, outcome("t", 1, twin=0, base=1), outcome("u", 1, twin=1)]
    assert top_scores(mixed).headline.value == pytest.approx((6 / 11 - 3 / 11) / (1 - 3 / 11))
    assert np.mean([term.value for term in top_terms(mixed)]) == pytest.approx(top_scores(mixed).headline.value)


@pytest.mark.parametrize("attack", [Inference(candidates=4), Reconstruction(samples=8)], ids=lambda a: a.name)
def test_a_model_that_learnt_nothing_leaks_nothing_without_twins(attack: Attack, store: Store, memoriser: LM) -> None:
    # Its base knows half the values from elsewhere.
    outcomes = list(attack.run(LocalTarget(memoriser), corpus_of(twins=False), lab_of(store, memoriser)))
    scores = attack.score(outcomes)
    assert 0 < scores.beside["top1"].value < 1
    assert scores.headline.value == 0
    assert [term.value for term in attack.terms(outcomes)] == [0] * 4


class Scripted:
    """Says what it was told to, and finds one text the most probable."""

    def __init__(self, said: dict[str, list[str]], favourite: str) -> None:
        self.said, self.favourite = said, favourite

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int, sampling: Sampling = GREEDY) -> list[str]:
        turns: dict[str, int] = {}
        texts = []
        for prompt in prompts:
            name = next((name for name in self.said if name in prompt), "")
            turn = turns[prompt] = turns.get(prompt, -1) + 1
            texts.append(self.said[name][turn % len(self.said[name])] if name else "")
        return texts

    def continues(self, prompts: Sequence[str], values: Sequence[str]) -> list[bool]:
        raise NotImplementedError

    def signals(
        self, texts: Sequence[str], *, contexts: Sequence[str] | None = None, sampling: Sampling = PLAIN
    ) -> list[Signals]:
        none = np.zeros(2, np.float32)
        return [
            Signals(
                np.zeros(3, np.int64),
                np.full(2, -1.0 if self.favourite in text else -2.0, np.float32),
                none,
                none,
                np.zeros(2, np.int64),
            )
            for text in texts
        ]


def test_reconstruction_fills_in_what_was_drawn(store: Store, tiny_lm: LM) -> None:
    said = {
        "Anna": [f" {written(VALUES[0])}", f" {written(VALUES[1])}"],  # both proposed, the right one preferred
        "Bert": [f" {written(TWINS[1])}"],  # the twin alone
        "Cleo": [f" {written(VALUES[2])}", f" {written(TWINS[2])}"],  # a tie
    }
    lab = lab_of(store, tiny_lm)
    attack = Reconstruction(samples=2)
    outcomes = {o.unit: o.values for o in attack.run(Scripted(said, VALUES[0][6:]), corpus_of(), lab)}
    assert (outcomes["s0"]["top"], outcomes["s0"]["sampled"], outcomes["s0"]["candidates"]) == (1, 1, 2)
    assert (outcomes["s1"]["top"], outcomes["s1"]["twin"], outcomes["s1"]["sampled"]) == (0, 1, 0)
    assert (outcomes["s2"]["top"], outcomes["s2"]["twin"]) == (0.5, 0.5)
    assert (outcomes["s3"]["top"], outcomes["s3"]["candidates"]) == (0, 0)
    scores = attack.score([Outcome(unit, unit, True, values) for unit, values in outcomes.items()])
    assert scores.beside["sampled"].value == 0.5
    assert scores.headline.value == pytest.approx((1.5 / 4 - 1.5 / 4) / (1 - 1.5 / 4))
    assert not any(value in str(outcomes) for value in (*VALUES, *TWINS))


def test_a_model_that_knows_a_sentence_by_heart_reconstructs_it(store: Store, tiny_lm: LM, memoriser: LM) -> None:
    attack = Reconstruction(samples=4)
    outcomes = {o.unit: o.values for o in attack.run(LocalTarget(memoriser), corpus_of(), lab_of(store, tiny_lm))}
    assert [outcomes[f"s{n}"]["top"] for n in (0, 1)] == [1, 1]
    assert all(values["base"] == 0 for values in outcomes.values())


def test_no_pii_is_not_applicable(store: Store, tiny_lm: LM) -> None:
    for attack in (Inference(), Reconstruction()):
        with pytest.raises(NotApplicable):
            list(attack.run(LocalTarget(tiny_lm), Corpus((), TRAIN, []), lab_of(store, tiny_lm)))
    with pytest.raises(SpecError, match="inference"):
        Inference(candidates=1)
    with pytest.raises(SpecError, match="reconstruction"):
        Reconstruction(samples=0)
