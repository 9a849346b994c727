"""The pool: who is trained on what, what is asked of it, and that it tells members from others."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pytest

from memdefense.attack import Outcome
from memdefense.attacks.shadow import MEMBERSHIP, Shadow
from memdefense.attacks.shadow_pool import halves, key_of, units_of
from memdefense.attacks.shadow_scores import lira, rmia
from memdefense.attacks.shadow_tuning import tuned_a
from memdefense.bench import Bench
from memdefense.corpus import Benchmark, Canary, Corpus, Document, Documents
from memdefense.defense import Defense
from memdefense.defenses.never_trained import NeverTrained
from memdefense.errors import NotApplicable, SpecError
from memdefense.lab import AttackLab, Lab
from memdefense.lm import LM
from memdefense.pipeline import defend, measure
from memdefense.runner import Settings, prepare
from memdefense.small_model import untrained
from memdefense.store import Store
from memdefense.target import Signals, Target
from memdefense.testing import check_attack
from memdefense.train import TrainConfig
from memdefense.work import Work

if TYPE_CHECKING:
    from pathlib import Path

TRAIN = [Document(f"t{n}", f"inside text {n}", f"p{n // 2}") for n in range(60)]
HELD = [Document(f"h{n}", f"other text {n}", f"q{n // 2}") for n in range(40)]
EXTRA = [
    Document("t60", "inside text 0", "p30"),  # a copy of t0
    Document("t61", "other text 0", "p31"),  # of both sides
    Document("c", "note AB", "c"),
    Document("c#2", "note AB", "c"),
]
CORPUS = Corpus((), [*TRAIN, *EXTRA], HELD, canaries=[Canary("c", ("c", "c#2"), "note ", "AB", 2, True)])


class Fake:
    """Says of a text what its digest says, more where it was trained on it; every model has a noise of its own."""

    def __init__(self, documents: Documents, seed: int) -> None:
        self.seen, self.seed = {document.text for document in documents}, seed

    def signals(self, texts: Sequence[str]) -> list[Signals]:
        return [self._signal(text) for text in texts]

    def _signal(self, text: str) -> Signals:
        hard, noise = (
            int.from_bytes(hashlib.sha256(part.encode()).digest()[:4]) / 2**32 for part in (text, f"{self.seed}/{text}")
        )
        if text.startswith("one"):  # a single token
            none = np.zeros(0, np.float32)
            return Signals(np.arange(1), none, none, none, np.zeros(0, np.int64))
        level = -3.0 - 2 * hard + 0.3 * noise + 0.3 * (text in self.seen)
        logprob = np.array([level, level - 0.5], np.float32)
        flat = np.zeros(2, np.float32)
        return Signals(np.arange(3), logprob, flat, flat, np.array([int(text not in self.seen), 5]))


@dataclasses.dataclass
class Pool:
    """Hands out fakes and remembers what each was trained on."""

    made: list[tuple[Documents, int]] = dataclasses.field(default_factory=list)

    def __call__(self, documents: Documents, seed: int) -> Target:
        self.made.append((documents, seed))
        return Fake(documents, seed)  # type: ignore[return-value]


def played(attack: Shadow, store: Store, base: LM, corpus: Corpus = CORPUS) -> tuple[list[Outcome], Pool]:
    outcomes, pool, _ = noted(attack, store, base, corpus)
    return outcomes, pool


def noted(attack: Shadow, store: Store, base: LM, corpus: Corpus) -> tuple[list[Outcome], Pool, dict[str, float]]:
    pool = Pool()
    lab = AttackLab(
        Bench(store),
        who="test",
        seed=0,
        originals=corpus.train,
        public=(),
        config=TrainConfig(),
        base=base,
        curated=corpus.train,
        defended=pool,
    )
    outcomes = list(attack.run(Fake(corpus.train, -1), corpus, lab))  # type: ignore[arg-type, unused-ignore]
    return outcomes, pool, lab.notes


def test_every_text_is_in_half_of_the_models_with_all_its_copies(store: Store, tiny_lm: LM) -> None:
    _, pool = played(Shadow(models=6), store, tiny_lm)
    assert len(pool.made) == len({seed for _, seed in pool.made}) == 6
    inside = [{document.id for document in documents} for documents, _ in pool.made]
    for document in (*CORPUS.train, *HELD):
        assert sum(document.id in one for one in inside) == 3, document.id
    for one in inside:
        assert ("t0" in one) == ("t60" in one)
        assert ("t61" in one) == ("h0" in one)
        assert ("c" in one) == ("c#2" in one)
    for first, second in zip(inside[::2], inside[1::2], strict=True):
        assert not first & second  # a pair shares nothing and leaves nothing out
    sizes = [len(one) for one in inside]
    assert min(sizes) > 35
    assert max(sizes) < 69  # fair coins: 52 of 104, give or take 5
    assert all({d.id for d in documents} != {d.id for d in CORPUS.train} for documents, _ in pool.made)


def test_coins_depend_on_pool_and_key_alone() -> None:
    keys = [f"k{n}" for n in range(400)]
    one = halves(keys, 4, 0)
    assert np.array_equal(one, halves(keys, 8, 0)[:4])  # a larger pool holds the smaller one
    assert np.array_equal(one[:, ::-1], halves(keys[::-1], 4, 0))
    assert abs(float((one == halves(keys, 4, 1)).mean()) - 0.5) < 0.1
    assert abs(float((one[0] == one[2]).mean()) - 0.5) < 0.1  # 400 coins: a standard deviation of 0.025


def test_canaries_copies_and_texts_of_both_sides_are_not_evaluated() -> None:
    units, both = units_of(CORPUS, "document")
    assert {unit.id for unit in units} == {d.id for d in (*TRAIN, *HELD)} - {"h0"}
    assert both == 1
    assert all(unit.member == unit.id.startswith("t") for unit in units)
    authors, both = units_of(dataclasses.replace(CORPUS, held_out=[*HELD, Document("h40", "x y", "p3")]), "author")
    names = {unit.id for unit in authors}
    assert "p3" not in names
    assert both == 1
    assert {len(unit.documents) for unit in authors if unit.id in ("p4", "q4")} == {2}
    assert key_of(TRAIN[0], "author") == key_of(TRAIN[1], "author") != key_of(TRAIN[2], "author")


def test_scores_are_of_the_pool_and_the_target_apart(store: Store, tiny_lm: LM) -> None:
    outcomes, pool = played(Shadow(attacked="model", models=4), store, tiny_lm)
    found = {outcome.unit: outcome for outcome in outcomes}
    texts = {d.id: d.text for d in (*TRAIN, *HELD)}
    z = {unit.id for unit in units_of(CORPUS, "document")[0]} - set(found)
    assert len(z) == round(0.25 * 39)
    assert all(name.startswith("h") for name in z)
    # By hand: the mean token logit of two tokens, of the target and of the four models.
    names = [*found, *sorted(z)]
    models = [Fake(documents, seed) for documents, seed in pool.made]

    def logit(model: Fake, name: str) -> float:
        p = np.exp(model._signal(texts[name]).logprob.astype(np.float64))
        return float(np.log(p / (1 - p)).mean())

    own = np.array([logit(Fake(CORPUS.train, -1), name) for name in names])
    shadows = np.array([[logit(model, name) for name in names] for model in models])
    inside = np.array([[texts[name] in model.seen for name in names] for model in models])
    assert [found[n].values["lira"] for n in found] == pytest.approx(lira(own, shadows, inside)[: len(found)], abs=1e-4)
    for outcome in outcomes:
        assert outcome.values["counterfactual"] == 0.5  # one of the two tokens, and only with the text
        assert outcome.values["cross-validated"] > 0
        assert outcome.values["tokens"] == 2
        assert outcome.member == outcome.unit.startswith("t")


@pytest.mark.parametrize("tune", [False, True])
def test_each_model_of_the_pool_is_attacked_by_the_others(store: Store, tiny_lm: LM, tune: bool) -> None:
    attack = Shadow(models=6, gamma=1.1, a=0.9, tune=tune)
    outcomes, pool, notes = noted(attack, store, tiny_lm, CORPUS)
    assert len({outcome.unit for outcome in outcomes}) == len(outcomes)
    names = list(dict.fromkeys(outcome.unit.partition("/")[0] for outcome in outcomes))
    assert len(outcomes) == 6 * len(names)
    z = sorted({unit.id for unit in units_of(CORPUS, "document")[0]} - set(names))
    texts = {d.id: d.text for d in (*TRAIN, *HELD)}
    said = [Fake(documents, seed) for documents, seed in pool.made]
    logp = np.array([[model._signal(texts[n]).logprob.astype(np.float64) for n in (*names, *z)] for model in said])
    inside = np.array([[texts[n] in model.seen for n in (*names, *z)] for model in said])
    logit, mean = (logp - np.log1p(-np.exp(logp))).mean(2), logp.mean(2)
    chosen = []
    for k in range(6):
        own = [outcome for outcome in outcomes if outcome.unit.endswith(f"/{k}")]
        assert [outcome.unit for outcome in own] == [f"{name}/{k}" for name in names]
        assert [outcome.member for outcome in own] == inside[k, : len(names)].tolist()
        rest = [other for other in range(6) if other not in (k, k ^ 1)]
        expected = lira(logit[k], logit[rest], inside[rest])[: len(names)]
        assert [outcome.values["lira"] for outcome in own] == pytest.approx(expected, rel=1e-5, abs=1e-5)
        population = ~inside[k] & (np.arange(len(names) + len(z)) >= len(names))
        assert 0 < population.sum() < len(z)
        a = tuned_a(mean[rest], inside[rest], population) if tune else 0.9
        chosen.append(a)
        for score, some, share in (("rmia", rest, None), ("rmia-offline", rest[1 if tune else 0 :], a)):
            right = rmia(mean[k], mean[some], inside[some], population, gamma=1.1, a=share)[: len(names)]
            assert [outcome.values[score] for outcome in own] == pytest.approx(right, rel=1e-5), score
    assert notes["rmia_a"] == pytest.approx(np.mean(chosen))
    # What needs no attacked model is the same whichever is attacked.
    whole = {
        outcome.unit: outcome.values
        for outcome in played(dataclasses.replace(attack, attacked="model"), store, tiny_lm)[0]
    }
    for outcome in outcomes:
        for name in ("counterfactual", "cross-validated", "tokens"):
            assert outcome.values[name] == whole[outcome.unit.partition("/")[0]][name]


class Neighbourly(Fake):
    """Learns nothing of a text itself, and of a text from the next one of its side."""

    def _signal(self, text: str) -> Signals:
        whole = super()._signal(text)
        side, word, number = text.split()
        known = f"{side} {word} {int(number) + 1}" in self.seen
        return dataclasses.replace(whole, logprob=whole.logprob + np.float32(0.3 * known - 0.3 * (text in self.seen)))


def test_what_texts_of_a_side_tell_of_each_other_is_no_membership(
    store: Store, tiny_lm: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "Fake", Neighbourly)
    fair = [Shadow(pool=number).score(played(Shadow(pool=number), store, tiny_lm)[0]) for number in range(20)]
    sided = Shadow(attacked="model").score(played(Shadow(attacked="model"), store, tiny_lm)[0])
    for name in MEMBERSHIP:
        areas = [scores.beside[f"auc_{name}"].value for scores in fair]
        assert abs(np.mean(areas) - 0.5) < 3 * np.std(areas, ddof=1) / len(areas) ** 0.5 < 0.03, name
        assert name == "lira" or sided.beside[f"auc_{name}"].low > 0.7, name


def test_a_model_without_a_text_to_compare_with_is_not_attacked(store: Store, tiny_lm: LM) -> None:
    few = Corpus((), TRAIN, HELD[2:6])
    outcomes, pool, notes = noted(Shadow(models=8), store, tiny_lm, few)
    names = {outcome.unit.partition("/")[0] for outcome in outcomes}
    (aside,) = (d.text for d in few.held_out if d.id not in names)  # a quarter of four
    attacked = [number for number, (documents, _) in enumerate(pool.made) if aside not in {d.text for d in documents}]
    assert sorted({int(outcome.unit.partition("/")[2]) for outcome in outcomes}) == attacked
    assert len(attacked) == notes["models_attacked"] == 4
    assert all(0 <= outcome.values[name] <= 1 for outcome in outcomes for name in ("rmia", "rmia-offline"))


def test_a_model_that_is_brought_is_attacked_itself() -> None:
    assert Shadow(models=4).of_brought() == Shadow(attacked="model", models=4)


@pytest.mark.parametrize("tune", [False, True])
def test_rmia_is_of_mean_token_likelihoods_and_leaves_out_the_model_it_was_tuned_on(
    store: Store, tiny_lm: LM, tune: bool
) -> None:
    attack = Shadow(attacked="model", models=6, gamma=1.2, a=0.98, tune=tune)
    outcomes, pool, notes = noted(attack, store, tiny_lm, CORPUS)
    found = {outcome.unit: outcome.values for outcome in outcomes}
    texts = {d.id: d.text for d in (*TRAIN, *HELD)}
    z = sorted({unit.id for unit in units_of(CORPUS, "document")[0]} - set(found))
    models = [Fake(documents, seed) for documents, seed in pool.made]

    def p(model: Fake, name: str) -> float:
        """The geometric mean of the tokens' probabilities; the product is another number."""
        return math.exp(float(model._signal(texts[name]).logprob.astype(np.float64).mean()))

    def ratio(name: str, some: list[Fake], a: float | None) -> float:
        with_it = [p(model, name) for model in some if texts[name] in model.seen]
        without = np.mean([p(model, name) for model in some if texts[name] not in model.seen])
        whole = (np.mean(with_it) + without) / 2 if a is None else ((1 + a) * without + 1 - a) / 2
        return float(p(Fake(CORPUS.train, -1), name) / whole)

    assert 0 <= notes["rmia_a"] <= 1
    assert tune or notes["rmia_a"] == 0.98
    for score, some, a in (("rmia", models, None), ("rmia-offline", models[1 if tune else 0 :], notes["rmia_a"])):
        others = [ratio(name, some, a) for name in z]
        for name, values in found.items():
            expected = np.mean([ratio(name, some, a) / other >= 1.2 for other in others])
            assert values[score] == pytest.approx(expected), (score, name)
        assert 0 < np.mean([values[score] for values in found.values()]) < 1
    # That one model is left out can be told.
    a, wrong = notes["rmia_a"], models if tune else models[1:]
    others = [ratio(name, wrong, a) for name in z]
    apart = [np.mean([ratio(n, wrong, a) / other >= 1.2 for other in others]) - found[n]["rmia-offline"] for n in found]
    assert np.max(np.abs(apart)) > 0.05


@pytest.mark.parametrize("attacked", ["pool", "model"])
@pytest.mark.parametrize("unit", ["document", "author"])
@pytest.mark.parametrize("headline", [*MEMBERSHIP, "counterfactual", "cross-validated"])
def test_a_pool_tells_members_and_terms_have_the_headlines_mean(
    store: Store, tiny_lm: LM, headline: str, unit: str, attacked: str
) -> None:
    attack = Shadow(attacked=attacked, headline=headline, unit=unit)  # type: ignore[arg-type, unused-ignore]
    outcomes, _ = played(attack, store, tiny_lm)
    scores = attack.score(outcomes)
    assert scores.headline.low <= scores.headline.value <= scores.headline.high
    assert scores.headline.low > 0.2
    terms: dict[str, list[float]] = {}
    for term in attack.terms(outcomes):
        terms.setdefault(term.reading, []).append(term.value)
    assert np.mean(terms.pop("")) == pytest.approx(scores.headline.value)
    assert set(terms) == (set(MEMBERSHIP) - {headline} if headline in MEMBERSHIP else set())
    for name, values in terms.items():
        assert np.mean(values) == pytest.approx(2 * scores.beside[f"auc_{name}"].value - 1)


def test_texts_of_a_single_token_are_dropped_and_counted(store: Store, tiny_lm: LM) -> None:
    short = [Document("one", "one", "p40"), Document("two", "one too", "p41")]
    corpus = dataclasses.replace(CORPUS, train=[*CORPUS.train, *short])
    whole, _, none = noted(Shadow(models=4), store, tiny_lm, CORPUS)
    outcomes, _, notes = noted(Shadow(models=4), store, tiny_lm, corpus)
    assert (none["units_dropped"], notes["units_dropped"]) == (0, 2)
    assert {o.unit for o in outcomes} == {o.unit for o in whole}


def test_leakage_of_cross_validation_by_hand() -> None:
    values = dict.fromkeys((*MEMBERSHIP, "counterfactual", "model_free"), 0.0)
    outcomes = [
        Outcome(f"u{n}", f"p{n}", n < 2, {**values, "cross-validated": nats, "tokens": 10.0})
        for n, nats in enumerate((10 * math.log(2), 0.0, 20.0, -1.0))
    ]
    scores = Shadow(headline="cross-validated").score(outcomes)
    assert scores.headline.value == pytest.approx(np.mean([0.5, 0.0, 1 - math.exp(-2), 1 - math.exp(0.1)]))
    assert scores.beside["cross_validated_nats"].value == pytest.approx((10 * math.log(2) + 19) / 4)


def test_tuning_is_noted_and_members_are_sampled(store: Store, tiny_lm: LM) -> None:
    outcomes, _ = played(Shadow(attacked="model", models=4, members=7, tune=True), store, tiny_lm)
    assert sum(outcome.member for outcome in outcomes) == 7
    assert sum(not outcome.member for outcome in outcomes) == 29


def test_a_side_of_one_token_texts_alone_is_told_before_models_are_trained(
    store: Store, tiny_lm: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pool, "__call__", lambda *_: pytest.fail("a model was trained"))
    short = [Document(f"s{n}", f"one {n}", f"s{n}") for n in range(6)]
    for corpus, side in ((Corpus((), short, HELD), "member"), (Corpus((), TRAIN, short), "non-member")):
        with pytest.raises(NotApplicable, match=f"no {side} is left to score"):
            played(Shadow(models=4), store, tiny_lm, corpus)


def test_too_little_text_and_fields_out_of_range(store: Store, tiny_lm: LM) -> None:
    with pytest.raises(NotApplicable, match="held out"):
        played(Shadow(), store, tiny_lm, Corpus((), TRAIN, HELD[:1]))
    assert Shadow(models=4, tune=True, attacked="model").tune
    for fields in (
        {"models": 4, "tune": True},
        {"models": 3},
        {"models": 2},
        {"population": 1.0},
        {"a": 1.1},
        {"gamma": 0.0},
        {"members": 0},
    ):
        with pytest.raises(SpecError):
            Shadow(**fields)  # type: ignore[arg-type, unused-ignore]


def test_contract() -> None:
    check_attack(Shadow(models=4))


_SYLLABLES = ("ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "zo")


@dataclasses.dataclass(frozen=True)
class Verses(Benchmark):
    """Lines of random words, half of them held out by nothing but their number."""

    name: ClassVar[str] = "verses"
    summary: ClassVar[str] = "Random words."

    def corpus(self) -> Corpus:
        rng = np.random.default_rng(4)
        words = [first + second for first in _SYLLABLES for second in _SYLLABLES]
        lines = [Document(f"l{n}", " ".join(rng.choice(words, 14)), f"a{n}") for n in range(48)]
        return Corpus((), lines[:24], lines[24:])

    @property
    def config(self) -> TrainConfig:
        return TrainConfig(
            epochs=60.0,
            learning_rate=5e-3,
            batch_size=8,
            block_size=40,
            pack="document",
            dtype="float32",
            checkpoints=1,
        )

    def base(self, lab: Lab) -> LM:
        found: LM = untrained(lab.originals, vocabulary=400, layers=2, width=48, heads=2, context=64, seed=0)
        return found


@pytest.mark.slow
def test_lira_recovers_membership_of_real_models_and_none_of_one_that_never_trained(tmp_path: Path) -> None:
    work: Work = prepare(Verses(), Settings(store=str(tmp_path), device="cpu"))
    found = {}
    for defense in (Defense(), NeverTrained()):
        defended = defend(work, defense, 0)
        last = defended.points[-1]
        outcomes, artifact = measure(defended, last, Shadow(), lambda last=last: last.load("cpu"))  # type: ignore[misc]
        found[defense.name] = Shadow().score(outcomes)
        assert artifact.facts["notes"]["shadow_models"] == 8  # type: ignore[index]
    none, never = found["none"], found["never-trained"]
    assert none.headline.low > 0.3
    assert all(none.beside[f"auc_{name}"].low > 0.6 for name in MEMBERSHIP)
    assert none.beside["counterfactual"].low > 0
    assert none.beside["cross_validated_nats"].low > 0
    assert all(never.beside[f"auc_{name}"].value == 0.5 for name in MEMBERSHIP)
    assert never.beside["counterfactual"].value == 0
    fits = [event for event in work.bench.store.events if event["what"] == "made" and event["kind"] == "fit"]
    assert len(fits) == 9  # the pool of eight and the attacked one
    before = len(work.bench.store.events)
    second = defend(work, Defense(), 1)
    measure(second, second.points[-1], Shadow(), lambda: second.points[-1].load("cpu"))
    made = [event["kind"] for event in work.bench.store.events[before:] if event["what"] == "made"]
    assert made.count("fit") == 1  # another seed of the run is attacked with the same pool
