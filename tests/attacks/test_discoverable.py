"""(n, p)-extraction against samples really drawn, products of probabilities by hand, and arithmetic in fractions."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch
from scipy.stats import beta

from memdefense.attack import Outcome
from memdefense.attacks.discoverable import CURVE, Discoverable, extractable, extraction
from memdefense.bench import Bench
from memdefense.corpus import Corpus, Document, Occurrence, Secret
from memdefense.defense import Defense
from memdefense.errors import NotApplicable, SpecError
from memdefense.lab import AttackLab
from memdefense.lm import LM
from memdefense.pipeline import defend, measure
from memdefense.runner import Settings, prepare
from memdefense.store import Store
from memdefense.target import LocalTarget, Sampling
from memdefense.testing import TinyBenchmark, check_attack
from memdefense.train import TrainConfig

VALUES, TWINS = ("4155550134", "2125550187", "3125550199"), ("4155550177", "2125550111", "3125550122")
WRITTEN = [f"({v[:3]}) {v[3:6]}-{v[6:]}" for v in VALUES]
TRAIN = [
    Document("a", f"Please call Anna at {WRITTEN[0]} today, or {WRITTEN[0]}.", "Anna"),
    Document("b", f"You reach Bert under {WRITTEN[1]} at home. Bert's number is {WRITTEN[1]}", "Bert"),
]
HELD = [Document("c", f"Please call Cleo at {WRITTEN[2]} today.", "Cleo")]


def secret(number: int, documents: Sequence[Document], *, member: bool = True, twin: bool = True) -> Secret:
    written = WRITTEN[number]
    places = tuple(
        Occurrence(document.id, start, start + len(written))
        for document in documents
        for start in range(len(document.text))
        if document.text.startswith(written, start)
    )
    return Secret(f"s{number}", "phone", VALUES[number], member, f"p{number}", places, TWINS[number] if twin else "")


def corpus_of(*, twins: bool = True) -> Corpus:
    secrets = [secret(n, TRAIN if n < 2 else HELD, member=n < 2, twin=twins) for n in range(3)]
    return Corpus((), TRAIN, HELD, secrets=secrets, kinds=("phone",))


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


def log_product(lm: LM, prompt: str, value: str, temperature: float, top_k: int) -> float:
    """log p_z by hand: softmax at the temperature, all but the k largest set to nothing, and again to sum 1."""
    ids = lm.encode(prompt)
    total = 0.0
    for token in lm.encode(value, special=False):
        with torch.inference_mode():
            logits = lm.model(input_ids=torch.tensor([ids])).logits[0, -1].double() / temperature
        kept = torch.softmax(logits, -1)
        if top_k:
            kept[kept.argsort(descending=True)[top_k:]] = 0
        chance = float(kept[token] / kept.sum())
        if chance == 0:
            return -math.inf
        total += math.log(chance)
        ids.append(token)
    return total


def test_p_z_is_the_frequency_of_20_000_samples(store: Store, tiny_lm: LM) -> None:
    scheme = Sampling(temperature=0.7, top_k=6, seed=4)
    target = LocalTarget(tiny_lm)
    prompt = "The team met"
    said = target.generate([prompt] * 20_000, max_new_tokens=2, sampling=scheme)
    counts: dict[str, int] = {}
    for text in said:
        counts[text] = counts.get(text, 0) + 1
    spelled = [tiny_lm.decode([token]) for token in range(len(tiny_lm.tokenizer))]
    checked = 0
    for text, hits in sorted(counts.items(), key=lambda item: -item[1])[:20]:
        if len(tiny_lm.encode(text, special=False)) != 2 or "\ufffd" in text:
            continue  # half a character, or a text that two tokens make and one would
        (signal,) = target.signals([text], contexts=[prompt], sampling=scheme)
        p_z = math.exp(float(signal.logprob.sum()))
        # Clopper-Pearson at 99.9 %: a dozen of intervals are checked at once.
        low, high = beta.ppf(0.0005, hits, 20_001 - hits), beta.ppf(0.9995, hits + 1, 20_000 - hits)
        assert p_z < high, "a lower bound"
        if sum(spelled.count(text[:cut]) * spelled.count(text[cut:]) for cut in range(1, len(text))) == 1:
            assert low < p_z, (hits, p_z)
            checked += 1
    assert checked >= 5


def test_log_probabilities_equal_a_product_by_hand(store: Store, tiny_lm: LM) -> None:
    for temperature, top_k in ((1.0, 0), (0.6, 0), (1.3, 300)):
        attack = Discoverable(temperature=temperature, top_k=top_k)
        outcomes = {o.unit: o for o in attack.run(LocalTarget(tiny_lm), corpus_of(), lab_of(store, tiny_lm))}
        for unit, before, written, twin in (
            ("s0", "Please call Anna at", WRITTEN[0], "(415) 555-0177"),
            ("s2", "Please call Cleo at", WRITTEN[2], "(312) 555-0122"),
        ):
            for name, value in (("log_p", written), ("log_p_twin", twin)):
                by_hand = log_product(tiny_lm, before, " " + value, temperature, top_k)
                if math.isfinite(by_hand):
                    assert outcomes[unit].values[name] == pytest.approx(by_hand, abs=1e-3)
                else:
                    assert name not in outcomes[unit].values
        assert outcomes["s0"].values["skipped"] == 1  # whose prompt holds the value
        assert (outcomes["s0"].member, outcomes["s2"].member) == (True, False)
    strict = {o.unit: o for o in Discoverable(top_k=1).run(LocalTarget(tiny_lm), corpus_of(), lab_of(store, tiny_lm))}
    assert not any(name.startswith("log_p") for o in strict.values() for name in o.values)


def test_a_value_is_spelled_as_in_the_whole_text(store: Store, marked_lm: LM) -> None:
    target, before = LocalTarget(marked_lm), "Please call Cleo at"
    outcomes = {o.unit: o for o in Discoverable(top_k=0).run(target, corpus_of(), lab_of(store, marked_lm))}
    for name, value in (("log_p", WRITTEN[2]), ("log_p_twin", "(312) 555-0122")):
        (whole,) = target.signals([f"{before} {value}"])
        tail = whole.logprob[len(marked_lm.encode(before)) - 1 :]
        assert outcomes["s2"].values[name] == pytest.approx(float(tail.sum(dtype=np.float64)), abs=1e-4)


@pytest.mark.parametrize("n", CURVE)
def test_the_arithmetic_is_that_of_fractions(n: int) -> None:
    for p_z in (1e-300, 1e-18, 1e-9, 1e-4, 0.01, 0.3, 0.5, 0.7, 0.99, 1 - 1e-12, 1.0):
        exact = 1 - (1 - Fraction(p_z)) ** min(n, 1000) if n <= 1000 else None
        found = extraction(math.log(p_z), n)
        if exact is not None:
            assert found == pytest.approx(float(exact), rel=1e-9, abs=0)
            for p in (0.001, 0.5, 0.999):
                if abs(float(exact) - p) > 1e-9:
                    assert extractable(math.log(p_z), n, p) == (exact >= p)
        assert 0 < found <= 1
    assert extraction(-math.inf, n) == 0
    assert extraction(-2000.0, n) == 0
    assert not extractable(-math.inf, n, 1e-6)
    assert extractable(0.0, n, 0.999)


def outcome(unit: str, log_p: float | None, *, member: bool = True, twin: float | None = None) -> Outcome:
    values = {"prompts": 1.0, "skipped": 0.0, "twins": float(member and twin is not None)}
    values |= {} if log_p is None else {"log_p": log_p}
    values |= {} if twin is None or math.isinf(twin) else {"log_p_twin": twin}
    return Outcome(unit, unit, member, values, "phone/random/1")


def test_leakage_and_the_curve_by_hand() -> None:
    likely, rare = math.log(0.2), math.log(1e-4)
    twins = [outcome(f"m{n}", likely if n < 4 else rare, twin=likely if n == 9 else -math.inf) for n in range(10)]
    attack = Discoverable(n=10, p=0.5)
    scores = attack.score(twins)  # 1 - 0.8^10 is 0.89, and 1 - (1 - 1e-4)^10 is 0.001
    assert scores.headline.value == pytest.approx((0.4 - 0.1) / (1 - 0.1))
    curve = [scores.beside[f"extractable_at_{n}"].value for n in CURVE]
    assert curve == pytest.approx([0, 0.4, 0.4, 0.4, 1, 1])  # 1 - (1 - 1e-4)^10,000 is 0.63
    assert scores.beside["chance_at_100000"].value == pytest.approx(0.1)
    expected = 0.4 * (1 - 0.8**100) + 0.6 * (1 - (1 - 1e-4) ** 100)
    assert scores.beside["expected_at_100"].value == pytest.approx(expected)
    strangers = [outcome(f"m{n}", likely if n < 4 else None) for n in range(10)]
    strangers += [outcome(f"o{n}", likely if n < 1 else rare, member=False) for n in range(5)]
    assert attack.score(strangers).headline.value == pytest.approx((0.4 - 0.2) / (1 - 0.2))
    for outcomes in (twins, strangers):
        headline = attack.score(outcomes).headline.value
        terms = attack.terms(outcomes)
        assert sum(term.value for term in terms) / len(terms) == pytest.approx(headline)
        assert len(terms) == len(outcomes)
    never_asked = dataclasses.replace(outcome("m10", None), values={"prompts": 0.0, "skipped": 2.0, "twins": 1.0})
    assert attack.score([*twins, never_asked]).headline.value == pytest.approx(scores.headline.value)


def test_where_some_lack_a_twin_chance_is_that_of_the_twins_there_are() -> None:
    likely, rare = math.log(0.2), math.log(1e-4)
    members = [outcome(f"m{n}", likely if n < 4 else rare, twin=likely if n == 9 else -math.inf) for n in range(10)]
    members[0] = dataclasses.replace(members[0], values={**members[0].values, "twins": 0.0})
    strangers = [outcome(f"h{n}", likely, member=False) for n in range(5)]
    attack = Discoverable(n=10, p=0.5)
    scores = attack.score([*members, *strangers])
    assert scores.beside["chance_at_10"].value == pytest.approx(1 / 9)  # and not the strangers' 1
    assert scores.headline.value == pytest.approx((4 / 10 - 1 / 9) / (1 - 1 / 9))
    terms = attack.terms([*members, *strangers])
    assert np.mean([term.value for term in terms]) == pytest.approx(scores.headline.value)


def test_a_corpus_without_twins_has_strangers_for_chance(store: Store, tiny_lm: LM) -> None:
    outcomes = list(Discoverable().run(LocalTarget(tiny_lm), corpus_of(twins=False), lab_of(store, tiny_lm)))
    assert not any("log_p_twin" in o.values or o.values["twins"] for o in outcomes)
    assert Discoverable().score(outcomes).beside["chance_at_100"].n == 1


@pytest.mark.parametrize(
    "fields", [{"n": 0}, {"p": 0.0}, {"p": 1.0}, {"context": -1}, {"random": -1}, {"temperature": -1.0}, {"top_k": -1}]
)
def test_fields_out_of_range_are_told_before_anything_runs(fields: dict[str, float]) -> None:
    with pytest.raises(SpecError, match=next(iter(fields))):
        Discoverable(**cast(Any, fields))


def test_no_members_is_not_applicable(store: Store, tiny_lm: LM) -> None:
    with pytest.raises(NotApplicable):
        list(Discoverable().run(LocalTarget(tiny_lm), Corpus((), TRAIN, HELD), lab_of(store, tiny_lm)))


def test_contract() -> None:
    check_attack(Discoverable())


@dataclasses.dataclass(frozen=True)
class Longer(TinyBenchmark):
    """The tiny benchmark, trained until it knows its addresses."""

    name: ClassVar[str] = "longer"
    summary: ClassVar[str] = "Letters, learnt by heart."

    @property
    def config(self) -> TrainConfig:
        return dataclasses.replace(super().config, steps=300, batch_size=8, checkpoints=1)


@pytest.mark.slow
def test_training_moves_it_and_many_samples_find_more_than_one(tmp_path: Path) -> None:
    work = prepare(Longer(), Settings(store=str(tmp_path), device="cpu"))
    defended = defend(work, Defense(), 0)
    point = defended.points[-1]
    outcomes = measure(defended, point, Discoverable(), functools.partial(point.load, "cpu"))[0]
    scores = Discoverable().score(outcomes)
    curve = [scores.beside[f"extractable_at_{n}"].value for n in CURVE]
    assert np.all(np.diff(curve) >= 0)
    assert curve[-1] > curve[0]
    assert scores.headline.low > 0
