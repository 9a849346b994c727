"""Membership scores against a few lines on the model's own logits, directions included."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from memdefense.attack import Outcome
from memdefense.attacks.mia import MIA, SCORES, scores_of
from memdefense.corpus import Canary, Corpus, Document
from memdefense.errors import NotApplicable
from memdefense.lab import AttackLab, Bench
from memdefense.lm import LM
from memdefense.store import Store
from memdefense.target import LocalTarget, Signals
from memdefense.train import TrainConfig

TRAIN = [Document(f"t{n}", text, f"p{n}") for n, text in enumerate(["The Team met today.", "Call Anna, please!", "x"])]
TRAIN += [Document("canary", "code AB-12", "c"), Document("canary#2", "code AB-12", "c")]
HELD = [
    Document(f"h{n}", text, f"q{n}") for n, text in enumerate(["We shipped 24 Boxes yesterday.", "Keep the old one"])
]
CORPUS = Corpus((), TRAIN, HELD, canaries=[Canary("canary", "canary", "code ", "AB-12", 2, True)])


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
        defended=lambda *_: pytest.fail("no shadow model is needed"),
    )


@pytest.fixture(scope="module")
def tuned(tiny_lm: LM) -> LM:
    lm = tiny_lm.copy()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for weight in lm.model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    return lm


def logprobs(lm: LM, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor(lm.encode(text))
    with torch.inference_mode():
        rows = torch.log_softmax(lm.model(input_ids=ids[None]).logits[0, :-1].double(), -1)
    return rows, rows[torch.arange(len(ids) - 1), ids[1:]]


def expected(lm: LM, base: LM, text: str) -> dict[str, float]:
    rows, own = logprobs(lm, text)
    mean = (rows.exp() * rows).sum(-1)
    std = ((rows.exp() * (rows - mean[:, None]) ** 2).sum(-1)).sqrt()
    count = max(1, int(0.2 * len(own)))
    loss = float(-own.mean())
    return {
        "loss": -loss,
        "zlib": -loss / len(zlib.compress(text.encode())),
        "lowercase": -loss / float(-logprobs(lm, text.lower())[1].mean()),
        "min-k": float(own.sort().values[:count].mean()),
        "min-k++": float(((own - mean) / std).sort().values[:count].mean()),
        "reference": -loss + float(-logprobs(base, text)[1].mean()),
    }


def test_scores_equal_a_reference_on_the_logits(store: Store, tiny_lm: LM, tuned: LM) -> None:
    outcomes = {o.unit: o for o in MIA().run(LocalTarget(tuned), CORPUS, lab_of(store, tiny_lm))}
    # One-token texts have nothing that was predicted, and canaries are never counted.
    assert set(outcomes) == {"t0", "t1", "h0", "h1"}
    for document in (*TRAIN[:2], *HELD):
        reference = expected(tuned, tiny_lm, document.text)
        values = outcomes[document.id].values
        assert {name: values[name] for name in SCORES} == pytest.approx(reference, abs=2e-5), document.id
        assert outcomes[document.id].member == (document in TRAIN)


def test_a_larger_score_means_a_member(store: Store, tiny_lm: LM) -> None:
    """The model learns its own members by heart; every score must then be higher for them than before."""
    lm = tiny_lm.copy()
    optimizer = torch.optim.Adam(lm.model.parameters(), lr=3e-3)
    rows = [torch.tensor([lm.encode(document.text)]) for document in TRAIN[:2]]
    lm.model.train()
    for _ in range(40):
        optimizer.zero_grad()
        sum(lm.model(input_ids=row, labels=row).loss for row in rows).backward()
        optimizer.step()
    lm.model.train(False)
    outcomes = list(MIA().run(LocalTarget(lm), CORPUS, lab_of(store, tiny_lm)))
    scores = MIA().score(outcomes)
    for name in SCORES:
        assert scores.beside[f"auc_{name}"].value == 1.0, name
    assert scores.headline.value == 1.0


def test_the_reference_is_computed_once(store: Store, tiny_lm: LM, tuned: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    first = list(MIA().run(LocalTarget(tuned), CORPUS, lab_of(store, tiny_lm)))
    calls = []
    plain = LocalTarget.signals

    def counted(self: LocalTarget, texts: list[str]) -> list[Signals]:
        calls.append(self.lm)
        return plain(self, texts)

    monkeypatch.setattr(LocalTarget, "signals", counted)
    assert list(MIA().run(LocalTarget(tuned), CORPUS, lab_of(store, tiny_lm))) == first
    assert [lm is tuned for lm in calls] == [True, True]  # the text and its lower case, and no base model


def test_min_k_takes_at_least_one_token() -> None:
    own = Signals(
        np.arange(3),
        np.array([-1, -4], np.float32),
        np.array([-2, -2], np.float32),
        np.ones(2, np.float32),
        np.zeros(2, int),
    )
    values = scores_of("ab", own, own, reference=-3.0, k=0.01)
    assert values["min-k"] == -4
    assert values["min-k++"] == -2
    assert values["reference"] == pytest.approx(0.5)


def test_members_are_sampled_and_non_members_are_not(store: Store, tiny_lm: LM) -> None:
    outcomes = list(MIA(members=1).run(LocalTarget(tiny_lm), CORPUS, lab_of(store, tiny_lm)))
    assert sum(not outcome.member for outcome in outcomes) == 2
    assert sum(outcome.member for outcome in outcomes) <= 1


def test_nothing_held_out_is_not_applicable(store: Store, tiny_lm: LM) -> None:
    with pytest.raises(NotApplicable):
        list(MIA().run(LocalTarget(tiny_lm), Corpus((), TRAIN, ()), lab_of(store, tiny_lm)))


def test_leakage_tpr_and_terms_agree_with_sklearn_and_counts() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(400) < 0.4
    column = rng.normal(size=400) + labels
    outcomes = [
        Outcome(
            str(n),
            f"p{n // 2}",
            bool(label),
            dict.fromkeys((*SCORES, "model_free"), float(value)) | {"circle": float(n // 4)},
        )
        for n, (label, value) in enumerate(zip(labels, column, strict=True))
    ]
    scores = MIA().score(outcomes)
    assert scores.headline.value == pytest.approx(2 * roc_auc_score(labels, column) - 1)
    assert scores.headline.low < scores.headline.value < scores.headline.high
    above = np.sort(column[~labels])[-int(0.1 * (~labels).sum()) - 1]  # at most a tenth of the non-members exceed it
    tpr = scores.beside["tpr_at_10%_fpr"]
    assert tpr.value == pytest.approx((column[labels] > above).mean())
    assert tpr.low < tpr.value < tpr.high
    assert scores.beside["realised_fpr_at_10%"].value <= 0.1
    assert np.isnan(scores.beside["tpr_at_0.1%_fpr"].value)  # 0.1 % of so few is no number
    terms = MIA().terms(outcomes)
    assert np.mean([term.value for term in terms]) == pytest.approx(scores.headline.value)
    assert {term.unit for term in terms} == {o.unit for o in outcomes if o.member}
    one_sided = MIA().score([outcome for outcome in outcomes if outcome.member])
    assert np.isnan(one_sided.headline.value)
