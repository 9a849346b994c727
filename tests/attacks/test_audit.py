"""The audit's guesses by hand, and on canaries that a model did and did not learn."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import optimize, stats

from memdefense.attack import Outcome
from memdefense.attacks.audit import Audit
from memdefense.attacks.epsilon import lower_bound
from memdefense.bench import Bench
from memdefense.corpus import Canary, Corpus, Document
from memdefense.errors import NotApplicable, SpecError
from memdefense.lab import AttackLab
from memdefense.lm import LM
from memdefense.store import Store
from memdefense.target import LocalTarget
from memdefense.testing import TinyBenchmark, check_attack
from memdefense.train import TrainConfig

Bounds = dict[str, npt.NDArray[np.float64]]


def lab_of(store: Store, base: LM, train: Sequence[Document]) -> AttackLab:
    return AttackLab(
        Bench(store),
        who="test",
        seed=0,
        originals=train,
        public=(),
        config=TrainConfig(),
        base=base,
        curated=train,
        defended=None,
    )


def planted(number: int) -> Corpus:
    """Canaries whose coin is the parity of a hash; the members among them are the training text."""
    rng = np.random.default_rng(3)
    canaries = [
        Canary(
            f"c{n}",
            (f"c{n}",),
            f"Please keep number {rng.integers(100)} in mind: ",
            "-".join(str(rng.integers(10)) for _ in range(5)),
            1 + n % 2,
            bool(rng.integers(2)),
        )
        for n in range(number)
    ]
    train = [Document(c.documents[0], f"{c.prefix}{c.value}.") for c in canaries if c.member]
    return Corpus((), train, (), canaries=canaries)


def outcome(unit: int, score: float, *, member: bool, copies: int = 1) -> Outcome:
    values = {"score": score, "copies": float(copies), "delta": 1e-4, "single_delta": 1e-5}
    return Outcome(f"c{unit}", f"c{unit}", member, values, "canary/1")


def test_only_the_two_ends_are_guessed_and_counted() -> None:
    # In by score: 9 to 5 but for 8; 4 and 1 in although low.
    coins = {9: True, 8: False, 7: True, 6: True, 5: False, 4: True, 3: False, 2: False, 1: True}
    outcomes = [outcome(n, float(n), member=coins[n]) for n in coins]
    scores = Audit().score(outcomes)  # a third each: 9, 8, 7 in, and 3, 2, 1 out
    assert scores.beside["guesses_right"].value == pytest.approx(4 / 6)
    assert scores.headline.value == pytest.approx(2 * 4 / 6 - 1)
    assert scores.headline.low < scores.headline.value < scores.headline.high
    terms = Audit().terms(outcomes)
    assert {term.unit for term in terms} == {f"c{n}" for n in (9, 8, 7, 3, 2, 1)}
    assert np.mean([term.value for term in terms]) == pytest.approx(scores.headline.value)
    fixed = Audit(guesses_in=1, guesses_out=2).score(outcomes)
    assert fixed.headline.n == 3
    assert fixed.beside["guesses_right"].value == pytest.approx(2 / 3)
    assert Audit(guesses_in=20, guesses_out=20).score(outcomes).headline.n == 9  # nobody is guessed twice


def test_bounds_of_all_of_one_copy_and_with_delta() -> None:
    outcomes = [outcome(n, float(n), member=n >= 150, copies=1 + n % 3) for n in range(300)]
    beside = Audit().score(outcomes).beside
    assert beside["epsilon_bound"].value == pytest.approx(lower_bound(200, 200))
    assert beside["epsilon_bound"].value == beside["epsilon_ceiling"].value
    with_delta = lower_bound(200, 200, canaries=300, delta=1e-4)
    assert beside["epsilon_bound_delta"].value == pytest.approx(with_delta)
    assert with_delta < beside["epsilon_bound"].value
    assert beside["epsilon_bound_single"].value == pytest.approx(lower_bound(66, 66))
    with_delta = lower_bound(66, 66, canaries=100, delta=1e-5)
    assert beside["epsilon_bound_single_delta"].value == pytest.approx(with_delta)
    assert with_delta < beside["epsilon_bound_single"].value
    assert beside["epsilon_bound"].high == math.inf  # nothing is known of how large it is


def test_coins_that_nobody_can_know_certify_nothing() -> None:
    rng = np.random.default_rng(0)
    bounds, leaks = [], []
    for _ in range(100):
        coins = rng.random(200) < 0.5
        scores = Audit().score([outcome(n, float(rng.normal()), member=bool(coin)) for n, coin in enumerate(coins)])
        bounds.append(scores.beside["epsilon_bound"].value)
        leaks.append(scores.headline.value)
    assert np.mean(np.array(bounds) == 0) >= 0.9
    assert abs(float(np.mean(leaks))) < 0.03  # a standard error of 0.009


def answered(rng: np.random.Generator, coins: Sequence[bool], epsilon: float, shown: float) -> list[float]:
    """Each coin by randomised response, or plainly with a probability: (epsilon, shown)-private for each canary."""
    told = rng.random(len(coins)) < 1 / (1 + math.exp(-epsilon))
    plain = rng.random(len(coins)) < shown
    # What is shown is known for certain, so the attacker guesses it first; the rest are ties.
    return [
        (2.0 if coin else -1.0) if sure else float(coin == right)
        for coin, right, sure in zip(coins, told, plain, strict=True)
    ]


def noised(rng: np.random.Generator, coins: Sequence[bool], sigma: float) -> list[float]:
    return [float(coin) + float(noise) for coin, noise in zip(coins, rng.normal(0, sigma, len(coins)), strict=True)]


def epsilon_of(sigma: float, delta: float) -> float:
    """The epsilon of the Gaussian mechanism of sensitivity 1 at a delta, exactly (Balle & Wang 2018, theorem 8)."""

    def excess(epsilon: float) -> float:
        half, far = 1 / (2 * sigma), epsilon * sigma
        return float(stats.norm.cdf(half - far) - math.exp(epsilon) * stats.norm.cdf(-half - far)) - delta

    return float(optimize.brentq(excess, 0, 50))


def bounds_of(scores: Callable[[Sequence[bool]], list[float]], rng: np.random.Generator, delta: float) -> Bounds:
    """The bounds of 100 audits of 300 canaries, half of them of one copy, by name."""
    found: dict[str, list[float]] = {}
    for _ in range(100):
        coins = [bool(coin) for coin in rng.random(300) < 0.5]
        outcomes = [
            Outcome(f"c{n}", f"c{n}", coin, {"score": s, "copies": 1.0 + n % 2, "delta": delta, "single_delta": delta})
            for n, (coin, s) in enumerate(zip(coins, scores(coins), strict=True))
        ]
        for name, score in Audit().score(outcomes).beside.items():
            found.setdefault(name, []).append(score.value)
    return {name: np.array(values) for name, values in found.items() if name.startswith("epsilon_bound")}


@pytest.mark.parametrize("epsilon", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("shown", [0.0, 1e-3])
def test_audits_of_randomised_response_stay_below_its_epsilon(epsilon: float, shown: float) -> None:
    rng = np.random.default_rng(round(epsilon))
    bounds = bounds_of(lambda coins: answered(rng, coins, epsilon, shown), rng, shown)
    for name, values in bounds.items():
        if shown and "delta" not in name:
            continue  # what is shown plainly has no epsilon without a delta
        assert (values <= epsilon).sum() >= 90, name
        if epsilon >= 2:
            assert values.mean() > epsilon / 2, name
    if not shown:
        assert (bounds["epsilon_bound"] == bounds["epsilon_bound_delta"]).all()


@pytest.mark.parametrize("sigma", [2.0, 1.0, 0.5])
def test_audits_of_gaussian_scores_stay_below_their_epsilon(sigma: float) -> None:
    rng, delta = np.random.default_rng(0), 1e-4
    epsilon = epsilon_of(sigma, delta)
    bounds = bounds_of(lambda coins: noised(rng, coins, sigma), rng, delta)
    for name in ("epsilon_bound_delta", "epsilon_bound_single_delta"):
        assert (bounds[name] <= epsilon).sum() >= 90, name
    assert epsilon > 1.5
    if sigma <= 1:
        assert bounds["epsilon_bound_delta"].mean() > 0


@pytest.mark.parametrize("text", ["value", "document"])
def test_score_is_the_log_probability_less_the_base_models(store: Store, tiny_lm: LM, text: str) -> None:
    tuned = tiny_lm.copy()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for weight in tuned.model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    corpus = planted(4)
    attack = Audit(text="value" if text == "value" else "document")
    found = list(attack.run(LocalTarget(tuned), corpus, lab_of(store, tiny_lm, corpus.train)))
    for canary, one in zip(corpus.canaries, found, strict=True):
        ids = tiny_lm.encode(canary.prefix + canary.value)
        start = len(tiny_lm.encode(canary.prefix.rstrip(" "))) if text == "value" else 1
        expected = 0.0
        for lm, sign in ((tuned, 1), (tiny_lm, -1)):
            with torch.inference_mode():
                rows = torch.log_softmax(lm.model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
            expected += sign * sum(float(rows[place - 1, ids[place]]) for place in range(start, len(ids)))
        assert one.values["score"] == pytest.approx(expected, abs=1e-4), canary
        assert one.values["delta"] == pytest.approx(len(corpus.train) ** -1.1)
    assert not any(canary.value in str(found) for canary in corpus.canaries)


def test_delta_counts_what_the_claim_protects(store: Store, tiny_lm: LM) -> None:
    corpus = planted(4)
    more = [Document(f"d{n}", f"The report {n} is late.", f"p{n % 3}") for n in range(30)]
    corpus = dataclasses.replace(corpus, train=[*corpus.train, *more])
    lab, inserted = lab_of(store, tiny_lm, corpus.train), sum(canary.member for canary in corpus.canaries)
    for one in Audit().run(LocalTarget(tiny_lm), corpus, lab):
        assert one.values["delta"] == pytest.approx((inserted + 3) ** -1.1)  # a canary is its own author
        assert one.values["single_delta"] == pytest.approx((inserted + 30) ** -1.1)
    for one in Audit(delta=1e-3).run(LocalTarget(tiny_lm), corpus, lab):
        assert one.values["delta"] == one.values["single_delta"] == 1e-3


def test_a_corpus_without_canaries_and_fields_out_of_range(store: Store, tiny_lm: LM) -> None:
    corpus = Corpus((), [Document("a", "text")], ())
    with pytest.raises(NotApplicable, match="canaries"):
        list(Audit().run(LocalTarget(tiny_lm), corpus, lab_of(store, tiny_lm, corpus.train)))
    for fields in ({"guesses_in": -1}, {"delta": 1.0}, {"confidence": 1.0}, {"text": "nothing"}):
        with pytest.raises(SpecError):
            Audit(**fields)  # type: ignore[arg-type, unused-ignore]


def test_nothing_is_scored_without_an_error() -> None:
    for outcomes in ([], [outcome(0, 1.0, member=True)]):
        scores = Audit().score(outcomes)
        assert math.isnan(scores.headline.value)
        assert math.isnan(scores.beside["epsilon_bound"].value)


@dataclasses.dataclass(frozen=True)
class WithCanaries(TinyBenchmark):
    """The tiny benchmark with canaries."""

    name: ClassVar[str] = "tiny-canaries"
    summary: ClassVar[str] = "Letters with canaries."

    def corpus(self) -> Corpus:
        corpus, extra = super().corpus(), planted(12)
        return dataclasses.replace(corpus, train=[*corpus.train, *extra.train], canaries=extra.canaries)


def test_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memdefense.testing.TinyBenchmark", WithCanaries)
    check_attack(Audit())


@pytest.mark.slow
def test_learned_canaries_refute_privacy_and_others_do_not(store: Store, tiny_lm: LM) -> None:
    corpus = planted(60)
    trained = tiny_lm.copy()
    rows = [torch.tensor([trained.encode(document.text)]) for document in corpus.train]
    optimizer = torch.optim.Adam(trained.model.parameters(), lr=3e-3)
    trained.model.train()
    for _ in range(25):
        for row in rows:
            optimizer.zero_grad()
            trained.model(input_ids=row, labels=row).loss.backward()
            optimizer.step()
    trained.model.train(False)
    lab = lab_of(store, tiny_lm, corpus.train)
    leaky = Audit().score(list(Audit().run(LocalTarget(trained), corpus, lab)))
    innocent = Audit().score(list(Audit().run(LocalTarget(tiny_lm), corpus, lab)))
    assert leaky.headline.low > 0.3
    assert 0 < leaky.beside["epsilon_bound"].value <= leaky.beside["epsilon_ceiling"].value
    assert innocent.headline.low < 0 < innocent.headline.high
    assert innocent.beside["epsilon_bound"].value == 0
