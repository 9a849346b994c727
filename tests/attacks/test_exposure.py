"""Exposure against a ranking by brute force, and on a model that knows its canaries by heart."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np
import pytest
import torch

from memdefense.attack import Outcome
from memdefense.attacks.exposure import Exposure, chance_exposure, exposure_of
from memdefense.bench import Bench
from memdefense.corpus import Canary, Corpus, Document
from memdefense.errors import NotApplicable, SpecError
from memdefense.lab import AttackLab
from memdefense.lm import LM
from memdefense.store import Store
from memdefense.target import LocalTarget
from memdefense.testing import TinyBenchmark, check_attack
from memdefense.train import TrainConfig

CODES = ["b6j5", "p8q5", "f3q4", "d6x7", "h2k9", "w4t3"]
CANARIES = [
    Canary(f"c{n}", (f"c{n}",) if n % 2 == 0 else (), f"The code for room {n} is ", code, 1 << n, n % 2 == 0)
    for n, code in enumerate(CODES)
]
TRAIN = [Document(c.id, f"{c.prefix}{c.value}.", "a") for c in CANARIES if c.member]
CORPUS = Corpus((), TRAIN, [], canaries=CANARIES)


@dataclasses.dataclass(frozen=True)
class Planted(TinyBenchmark):
    """The tiny benchmark with canaries, since its own has none."""

    name: ClassVar[str] = "planted"
    summary: ClassVar[str] = "Forty letters and six codes."

    def corpus(self) -> Corpus:
        plain = super().corpus()
        return dataclasses.replace(plain, train=[*plain.train, *TRAIN], canaries=CANARIES)


def lab_of(store: Store, base: LM) -> AttackLab:
    return AttackLab(
        Bench(store),
        who="test",
        seed=0,
        originals=TRAIN,
        public=(),
        config=TrainConfig(),
        base=base,
        curated=TRAIN,
        defended=None,
    )


def test_contract() -> None:
    check_attack(Exposure(alternatives=7), Planted())


def test_exposure_is_the_mean_over_the_orders_of_equals() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = rng.integers(0, 6, 20).astype(np.float64)
        order = [place for place, _ in sorted(enumerate(scores), key=lambda item: -item[1])]
        # Every place (from 1) that the first may take among its equals.
        places = [1 + order.index(place) for place in range(20) if scores[place] == scores[0]]
        assert exposure_of(scores) == pytest.approx(np.mean([math.log2(20 / place) for place in places]))
    assert exposure_of(np.array([0.0, -1.0, -1.0, -1.0])) == 2.0
    assert exposure_of(np.array([-9.0, -1.0, -1.0, -1.0])) == 0.0
    # Where all are equal it is chance, to the last digit.
    assert exposure_of(np.full(4, -np.inf)) == pytest.approx(chance_exposure(3), abs=1e-12)


def test_exposure_equals_brute_force_on_the_logits(store: Store, tiny_lm: LM) -> None:
    attack, lab = Exposure(alternatives=15), lab_of(store, tiny_lm)
    outcomes = {o.unit: o for o in attack.run(LocalTarget(tiny_lm), CORPUS, lab)}
    others = attack._alternatives(CANARIES, lab)
    assert set(outcomes) == {c.id for c in CANARIES}
    for canary in CANARIES:
        values = [canary.value, *[v for v in others if v != canary.value][:15]]
        found = []
        for value in values:
            head = tiny_lm.encode(canary.prefix.rstrip())
            ids = head + tiny_lm.encode(" " + value, special=False)
            with torch.inference_mode():
                rows = torch.log_softmax(tiny_lm.model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
            found.append(float(sum(rows[t - 1, ids[t]] for t in range(len(head), len(ids)))))
        rank = 1 + sum(score > found[0] for score in found[1:])
        assert outcomes[canary.id].values["exposure"] == pytest.approx(math.log2(16 / rank))
        assert outcomes[canary.id].values["alternatives"] == 15


def test_alternatives_are_of_the_format_and_nobody_inserted_them(store: Store, tiny_lm: LM) -> None:
    others = Exposure(alternatives=60)._alternatives(CANARIES, lab_of(store, tiny_lm))
    assert len(others) == len(set(others)) == 61
    assert {c.value for c in CANARIES if not c.member} <= set(others)
    assert not {c.value for c in CANARIES if c.member} & set(others)
    letters, digits = set("".join(CODES)) - set("0123456789"), set("".join(CODES)) & set("0123456789")
    for value in others:
        assert len(value) == 4
        assert {value[0], value[2]} <= letters
        assert {value[1], value[3]} <= digits


def test_few_forms_are_fewer_alternatives_or_not_applicable(store: Store, tiny_lm: LM) -> None:
    twos = [Canary(f"c{n}", (), "say ", value, 1, n == 0) for n, value in enumerate(("ab", "ba"))]
    assert set(Exposure()._alternatives(twos, lab_of(store, tiny_lm))) == {"aa", "ba", "bb"}
    with pytest.raises(NotApplicable, match="few forms"):
        Exposure()._alternatives([Canary("c", (), "say ", "-", 1, True)], lab_of(store, tiny_lm))
    with pytest.raises(NotApplicable, match="canaries"):
        list(Exposure().run(LocalTarget(tiny_lm), Corpus((), TRAIN, []), lab_of(store, tiny_lm)))
    with pytest.raises(SpecError, match="exposure"):
        Exposure(alternatives=0)


def test_chance_is_the_mean_over_all_ranks() -> None:
    assert chance_exposure(3) == pytest.approx(np.mean([math.log2(4 / rank) for rank in (1, 2, 3, 4)]))
    exposures = [math.log2(4 / rank) for rank in (1, 2, 3, 4)]
    outcomes = [
        Outcome(str(n), str(n), True, {"exposure": e, "alternatives": 3.0}, f"canary/{'1' if n < 2 else '2-4'}")
        for n, e in enumerate(exposures)
    ]
    scores = Exposure().score(outcomes)
    assert scores.headline.value == pytest.approx(0)
    assert scores.headline.low < 0 < scores.headline.high
    assert scores.beside["exposure"].value == pytest.approx(np.mean(exposures))
    assert scores.beside["ceiling"].value == 2
    assert scores.beside["exposure_1"].value == pytest.approx(1.5)
    assert scores.beside["exposure_2-4"].n == 2
    terms = Exposure().terms(outcomes)
    assert np.mean([term.value for term in terms]) == pytest.approx(0)
    first = Exposure().score(outcomes[:1])
    assert (first.headline.value, first.headline.high) == pytest.approx((1, 1))
    assert first.headline.low < 1  # one canary says little, even at the ceiling


def test_context_is_the_end_of_the_prefix(store: Store, tiny_lm: LM) -> None:
    lab = lab_of(store, tiny_lm)
    canary = CANARIES[3]
    assert Exposure(context=0)._before(canary, lab) == canary.prefix.rstrip()
    short = Exposure(context=3)._before(canary, lab)
    assert canary.prefix.rstrip().endswith(short)
    assert len(tiny_lm.encode(short)) == 3


@pytest.mark.slow
def test_inserted_canaries_reach_the_ceiling_and_the_others_stay_at_chance(store: Store, tiny_lm: LM) -> None:
    rng = np.random.default_rng(3)
    canaries = []
    for n in range(24):
        code = "".join(rng.choice(list(("abcdefghkm", "23456789")[place % 2])) for place in range(6))
        canaries.append(Canary(f"c{n}", (), f"Room {n} on floor {n % 7} has code ", code, 4, n % 2 == 0))
    lm = tiny_lm.copy()
    optimizer = torch.optim.Adam(lm.model.parameters(), lr=3e-3)
    rows = [torch.tensor([lm.encode(c.prefix + c.value)]) for c in canaries if c.member]
    lm.model.train()
    for _ in range(60):
        optimizer.zero_grad()
        torch.stack([lm.model(input_ids=row, labels=row).loss for row in rows]).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    lm.model.train(False)
    corpus = Corpus((), TRAIN, [], canaries=canaries)
    attack = Exposure(alternatives=63)
    for model, low, high in ((lm, 0.8, 1.0), (tiny_lm, -0.2, 0.25)):
        scores = attack.score(list(attack.run(LocalTarget(model), corpus, lab_of(store, tiny_lm))))
        assert low <= scores.headline.value <= high
        # A value drawn at random has a mean exposure of 1.4; over 12 of them its standard error is about 0.4.
        assert scores.beside["exposure_left_out"].value < 2.8
