"""Membership scores against a few lines on the model's own logits, directions included."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast, get_args

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from memdefense.attack import Outcome
from memdefense.attacks import mia
from memdefense.attacks.membership_evidence import by_hash, of_shared_tokens
from memdefense.attacks.mia import MIA, SCORES, USUAL
from memdefense.bench import Bench
from memdefense.corpus import Canary, Corpus, Document
from memdefense.defense import Defense
from memdefense.defenses.never_trained import NeverTrained
from memdefense.errors import DataError, NotApplicable, SpecError
from memdefense.lab import AttackLab
from memdefense.lm import LM
from memdefense.pipeline import defend, measure
from memdefense.registry import build
from memdefense.results import plain
from memdefense.runner import Settings, prepare
from memdefense.store import Store
from memdefense.target import GREEDY, LocalTarget, Sampling, Signals
from memdefense.testing import TinyBenchmark, check_attack
from memdefense.train import TrainConfig

TRAIN = [Document(f"t{n}", text, f"p{n}") for n, text in enumerate(["The Team met today.", "Call Anna, please!", "x"])]
TRAIN += [Document("canary", "code AB-12", "c"), Document("canary#2", "code AB-12", "c")]
HELD = [
    Document(f"h{n}", text, f"q{n}") for n, text in enumerate(["We shipped 24 Boxes yesterday.", "Keep the old one"])
]
CORPUS = Corpus((), TRAIN, HELD, canaries=[Canary("canary", ("canary", "canary#2"), "code ", "AB-12", 2, True)])


def lab_of(store: Store, base: LM, public: Sequence[Document] = ()) -> AttackLab:
    return AttackLab(
        Bench(store),
        who="test",
        seed=0,
        originals=TRAIN,
        public=public,
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
        assert {name: values[name] for name in reference} == pytest.approx(reference, abs=2e-5), document.id
        assert "dc-pdd" not in values  # there is no public text
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
    for name in USUAL[:-1]:
        assert scores.beside[f"auc_{name}"].value == 1.0, name
    assert scores.headline.value == 1.0


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
            dict.fromkeys((*SCORES, "model_free"), float(value)),
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
    threshold = scores.beside["threshold_at_10%"]
    assert threshold.value == column[column > above].min()  # the least score above: who has it is called a member
    assert (threshold.n, threshold.higher_is_better) == ((~labels).sum(), None)
    assert np.isnan([threshold.low, threshold.high]).all()
    # Where the highest score is a non-member's, no threshold keeps to an FPR below one of all.
    worst = [*outcomes, Outcome("worst", "worst", False, dict.fromkeys((*SCORES, "model_free"), 99.0))]
    assert MIA().score(worst).beside["threshold_at_0.1%"].value == np.inf
    for found in (scores, MIA().score(worst)):
        json.dumps(plain({name: dataclasses.asdict(score) for name, score in found.beside.items()}), allow_nan=False)
    assert np.isnan(scores.beside["tpr_at_0.1%_fpr"].value)  # 0.1 % of so few is no number
    terms = [term for term in MIA().terms(outcomes) if not term.reading]
    assert np.mean([term.value for term in terms]) == pytest.approx(scores.headline.value)
    assert [term.unit for term in terms] == [o.unit for o in outcomes]
    assert {term.reading for term in MIA().terms(outcomes)} == {"", *SCORES} - {MIA().headline}
    one_sided = MIA().score([outcome for outcome in outcomes if outcome.member])
    assert np.isnan(one_sided.headline.value)


PUBLIC = [Document("p0", "The team met and shipped boxes."), Document("p1", "Call the old one today.")]
TWENTY = [Document(f"t{n}", f"The {w} of team {n} met Anna today.", f"p{n // 2}") for n, w in enumerate("abcdefghij")]
OTHERS = [Document(f"h{n}", f"We ship {n} {w} boxes to the old one.", f"q{n // 2}") for n, w in enumerate("klmnopqrst")]
EVEN = Corpus((), TWENTY, OTHERS)


def after(lm: LM, before: str, text: str) -> torch.Tensor:
    """Log-probabilities of a text's tokens 2..T behind a prefix that is cut to fit the context."""
    body = lm.encode(text, special=False)
    head = lm.encode(before)
    head = head[-max(lm.context // 2, lm.context - len(body)) :]
    ids = torch.tensor(head + body)
    with torch.inference_mode():
        rows = torch.log_softmax(lm.model(input_ids=ids[None]).logits[0].double(), -1)
    return torch.stack([rows[place - 1, ids[place]] for place in range(len(head) + 1, len(ids))])


def test_prefixed_and_frequency_scores_equal_a_reference_on_the_logits(store: Store, tiny_lm: LM, tuned: LM) -> None:
    attack = MIA(scores=("recall", "con-recall", "dc-pdd", "loss"), shots=2, gamma=0.7)
    lab = lab_of(store, tiny_lm, PUBLIC)
    outcomes = {o.unit: o for o in attack.run(LocalTarget(tuned), EVEN, lab)}
    shots = {side: by_hash(documents, "shots/")[:2] for side, documents in (("in", TWENTY), ("out", OTHERS))}
    # What stands before others is not evaluated.
    assert set(outcomes) == {d.id for d in (*TWENTY, *OTHERS)} - {d.id for side in shots.values() for d in side}
    before = {side: "".join(d.text + "\n\n" for d in documents) for side, documents in shots.items()}
    ids = list(itertools.chain.from_iterable(tuned.encode(d.text) for d in PUBLIC))
    for document in (*TWENTY, *OTHERS):
        if document.id not in outcomes:
            continue
        values = outcomes[document.id].values
        own = logprobs(tuned, document.text)[1]
        others, members = (after(tuned, before[side], document.text).mean() for side in ("out", "in"))
        assert values["recall"] == pytest.approx(float(others / own.mean()), abs=2e-5)
        assert values["con-recall"] == pytest.approx(float((others - 0.7 * members) / own.mean()), abs=2e-5)
        first: dict[int, float] = {}
        for token, value in zip(tuned.encode(document.text)[1:], own.tolist(), strict=True):
            share = (ids.count(token) + 1) / (len(ids) + tuned.model.config.vocab_size)
            first.setdefault(token, min(0.01, -np.exp(value) * np.log(share)))
        assert values["dc-pdd"] == pytest.approx(np.mean(list(first.values())), abs=1e-6)


def test_prefixed_scores_compare_the_same_tokens(store: Store, marked_lm: LM) -> None:
    """A first word has a blank where a text begins and none after an empty line, and so may be of other tokens."""
    attack = MIA(headline="recall", scores=("recall",), shots=1)
    outcomes = {o.unit: o for o in attack.run(LocalTarget(marked_lm), EVEN, lab_of(store, marked_lm))}
    before = by_hash(OTHERS, "shots/")[0].text + "\n\n"
    spelled = set()
    for document in (*TWENTY, *OTHERS):
        if document.id not in outcomes:
            continue
        ids = marked_lm.encode(document.text)[1:]
        whole = marked_lm.encode(f"{before}{document.text}")
        same = next(n for n, (a, b) in enumerate(zip(ids[::-1], whole[::-1], strict=False)) if a != b)
        spelled.add(len(ids) - same)
        own, after = (
            logprobs(marked_lm, text)[1][-same:].mean() for text in (document.text, f"{before}{document.text}")
        )
        assert outcomes[document.id].values["recall"] == pytest.approx(float(after / own), abs=2e-5)
    assert min(spelled) > 0


def test_of_a_long_text_recall_reads_what_stands_behind_the_prefix(store: Store, tiny_lm: LM) -> None:
    long = Document("long", " ".join(f"Line {n} of a very long letter." for n in range(60)), "p9")
    lab = lab_of(store, tiny_lm)
    attack = MIA(headline="recall", scores=("recall",), shots=3)
    corpus = Corpus((), [*TWENTY, long], OTHERS)
    (found,) = (o for o in attack.run(LocalTarget(tiny_lm), corpus, lab) if o.unit == "long")
    before = "".join(document.text + "\n\n" for document in by_hash(OTHERS, "shots/")[:3])
    head, body = tiny_lm.encode(before), tiny_lm.encode(long.text)
    room = tiny_lm.context - min(len(head), tiny_lm.context // 2)
    assert room < len(body)
    ids = torch.tensor([*head[room - tiny_lm.context :], *body[:room]])
    with torch.inference_mode():
        rows = torch.log_softmax(tiny_lm.model(input_ids=ids[None]).logits[0, :-1].double(), -1)
    behind = rows[torch.arange(len(ids) - 1), ids[1:]][-room + 1 :]  # from the second token on, as without a prefix
    own = LocalTarget(tiny_lm).signals([long.text])[0].logprob[: room - 1]
    assert found.values["recall"] == pytest.approx(float(behind.mean()) / float(own.mean()), abs=2e-5)


def test_shared_tokens_are_the_last_ones() -> None:
    def signals(tokens: list[int], first: int) -> Signals:
        values = np.array(tokens[first:], np.float32)
        return Signals(np.array(tokens), values, values, values, np.array(tokens[first:]))

    found = of_shared_tokens(signals([0, 5, 6, 7], 1), signals([1, 2, 6, 7], 0), signals([9, 6, 7], 0))
    assert [one.tolist() for one in found] == [[6, 7]] * 3
    whole = of_shared_tokens(signals([4, 5, 6], 1), signals([4, 5, 6], 0))  # a first token that nothing stood before
    assert [one.tolist() for one in whole] == [[5, 6]] * 2
    none = of_shared_tokens(signals([0, 5], 1), signals([6, 7], 0))
    assert [one.tolist() for one in none] == [[5], [6, 7]]


def test_neighbourhood_compares_with_texts_that_differ_in_a_few_tokens(
    store: Store, tiny_lm: LM, tuned: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    plain = LocalTarget.signals

    def seen(self: LocalTarget, texts: Sequence[str], **rest: Sequence[str]) -> object:
        asked.append(list(texts))
        return plain(self, texts)

    monkeypatch.setattr(LocalTarget, "signals", seen)
    attack = MIA(headline="neighbourhood", scores=("loss",), neighbours=4)
    outcomes = {o.unit: o for o in attack.run(LocalTarget(tuned), EVEN, lab_of(store, tiny_lm))}
    near = [texts for texts in asked if len(texts) == 4 * len(TWENTY)]
    assert len(near) == 2  # of members and of others
    for row, document in enumerate(by_hash(TWENTY)):
        copies = near[0][4 * row : 4 * row + 4]
        mean = np.mean([float(logprobs(tuned, copy)[1].mean()) for copy in copies])
        own = float(logprobs(tuned, document.text)[1].mean())
        assert outcomes[document.id].values["neighbourhood"] == pytest.approx(own - mean, abs=2e-5)
        assert document.text not in copies
        assert len(set(copies)) > 1
    again = {o.unit: o for o in attack.run(LocalTarget(tuned), EVEN, lab_of(store, tiny_lm))}
    assert again == outcomes


class Echo:
    """A target with access to text alone, which says the same to everyone."""

    def __init__(self, said: str) -> None:
        self.said = said
        self.schemes: set[Sampling] = set()
        self.lengths: set[int] = set()

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int, sampling: Sampling = GREEDY) -> list[str]:
        self.schemes.add(sampling)
        self.lengths.add(max_new_tokens)
        return [self.said if "team" in prompt else "" for prompt in prompts]

    def continues(self, prompts: Sequence[str], values: Sequence[str]) -> list[bool]:
        raise AssertionError("not asked for")


def test_samia_needs_text_alone(store: Store, tiny_lm: LM) -> None:
    attack = MIA(headline="samia", scores=("samia",), samples=3)
    assert (attack.access, MIA().access, MIA(headline="samia").access) == ("text", "logprobs", "logprobs")
    echo = Echo(" met Anna today.")
    outcomes = list(attack.run(cast(Any, echo), EVEN, lab_of(store, tiny_lm)))
    assert attack.score(outcomes).headline.value == 1
    assert len(echo.schemes) == 3  # draws of their own
    assert all(scheme.temperature == 1 for scheme in echo.schemes)
    assert outcomes[0].values["samia"] == 1  # " met Anna today." stands after the middle


def test_samia_says_as_much_of_every_text(store: Store, tiny_lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A longer continuation holds more of the truth's words by chance, so that one long member favoured all of them."""
    monkeypatch.setattr("memdefense.attacks.membership_evidence._SLICE", 4)
    long = Document("long", "The team met Anna today at noon, and we ship boxes to the old one.", "p")
    echo = Echo("")
    attack = MIA(headline="samia", scores=("samia",), samples=1)
    list(attack.run(cast(Any, echo), Corpus((), [*TWENTY, long], OTHERS), lab_of(store, tiny_lm)))
    (length,) = echo.lengths
    middle = long.text.index(" ", len(long.text) // 2)
    assert length == len(tiny_lm.encode(long.text[middle:], special=False))


def test_without_the_base_model_nothing_is_compared_with_it() -> None:
    usual = MIA().without_base()
    assert usual == MIA(headline="loss", scores=("loss", "zlib", "lowercase", "min-k", "min-k++"))
    assert MIA(scores=("reference",)).without_base() == MIA(headline="loss", scores=("loss",))
    named = MIA(headline="samia", scores=("dc-pdd", "neighbourhood"))
    assert named.without_base() == MIA(headline="samia", scores=("dc-pdd", "samia"))
    assert MIA(headline="neighbourhood").without_base() is None
    alone = MIA(headline="loss", scores=("zlib",))
    assert alone.without_base() is alone


def test_authors_are_units_of_their_own(store: Store, tiny_lm: LM) -> None:
    by_document = {o.unit: o for o in MIA().run(LocalTarget(tiny_lm), EVEN, lab_of(store, tiny_lm))}
    mixed = Corpus((), TWENTY, [*OTHERS, Document("h+", "Another letter of the first team.", "p0")])
    lab = lab_of(store, tiny_lm)
    by_author = {o.unit: o for o in MIA(unit="author").run(LocalTarget(tiny_lm), mixed, lab)}
    assert set(by_author) == {f"p{n}" for n in range(1, 5)} | {f"q{n}" for n in range(5)}  # p0 wrote on both sides
    assert lab.notes["authors_on_both_sides"] == 1
    for n in range(1, 5):
        mean = np.mean([by_document[f"t{2 * n + k}"].values["loss"] for k in (0, 1)])
        assert by_author[f"p{n}"].values["loss"] == pytest.approx(mean, abs=1e-6)
        assert by_author[f"p{n}"].member
    assert not by_author["q0"].member


def test_an_author_whose_training_documents_were_not_drawn_is_no_non_member(store: Store, tiny_lm: LM) -> None:
    both = [Document(f"h{n}+", f"Another letter of team {n}.", f"p{n}") for n in range(5)]
    lab = lab_of(store, tiny_lm)
    attack = MIA(unit="author", members=1)  # so that of nine documents in ten nobody looks at the training side
    found = list(attack.run(LocalTarget(tiny_lm), Corpus((), TWENTY, [*OTHERS, *both]), lab))
    wrote = {document.author for document in TWENTY}
    assert {o.unit for o in found if not o.member} == {f"q{n}" for n in range(5)}
    assert {o.unit for o in found if o.member} <= wrote - {f"p{n}" for n in range(5)}
    assert lab.notes["authors_on_both_sides"] == 5


def test_texts_on_both_sides_are_left_out_and_counted(store: Store, tiny_lm: LM) -> None:
    corpus = Corpus((), [*TWENTY, Document("t+", "x")], [*OTHERS, Document("h+", TWENTY[3].text.replace(" ", "  "))])
    lab = lab_of(store, tiny_lm)
    found = {o.unit for o in MIA().run(LocalTarget(tiny_lm), corpus, lab)}
    assert found == {d.id for d in (*TWENTY, *OTHERS)} - {"t3"}
    assert (lab.notes["on_both_sides"], lab.notes["without_a_predicted_token"]) == (2, 1)
    with pytest.raises(NotApplicable, match="no training document"):
        list(MIA().run(LocalTarget(tiny_lm), Corpus((), TWENTY, TWENTY), lab))
    with pytest.raises(NotApplicable, match="no held-out document"):
        list(MIA().run(LocalTarget(tiny_lm), Corpus((), TWENTY, [Document("h", "  ")]), lab))


def test_a_side_of_one_token_texts_alone_is_not_applicable(store: Store, tiny_lm: LM) -> None:
    short = [Document(f"s{n}", letter) for n, letter in enumerate("abc")]
    for corpus, side in ((Corpus((), short, OTHERS), "no member"), (Corpus((), TWENTY, short), "no non-member")):
        with pytest.raises(NotApplicable, match=f"{side} is left to score: 3 texts of one token"):
            list(MIA().run(LocalTarget(tiny_lm), corpus, lab_of(store, tiny_lm)))


def test_one_empty_class_and_too_few_non_members_give_no_number_and_no_error(store: Store, tiny_lm: LM) -> None:
    outcomes = list(MIA().run(LocalTarget(tiny_lm), EVEN, lab_of(store, tiny_lm)))
    scores = MIA().score(outcomes)
    for name in ("10%", "1%", "0.1%"):  # ten non-members resolve no rate
        assert np.isnan(scores.beside[f"tpr_at_{name}_fpr"].value)
        assert scores.beside[f"realised_fpr_at_{name}"].n == 10
    for side in (True, False):
        assert np.isnan(MIA().score([o for o in outcomes if o.member == side]).headline.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"k": 0.0},
        {"k": 1.5},
        {"gamma": -0.1},
        {"gamma": float("inf")},
        {"members": 0},
        {"shots": 0},
        {"neighbours": 0},
        {"samples": 0},
    ],
)
def test_fields_out_of_range_are_told_before_anything_runs(fields: dict[str, object]) -> None:
    with pytest.raises(SpecError, match=f"mia:{next(iter(fields))} is "):
        MIA(**cast(Any, fields))


@pytest.mark.parametrize(
    "fields", [{"scores": ("recall",), "shots": 10}, {"scores": ("dc-pdd",)}, {"headline": "dc-pdd"}]
)
def test_what_the_corpus_lacks_is_told(fields: dict[str, object], store: Store, tiny_lm: LM) -> None:
    with pytest.raises(DataError):
        list(MIA(**cast(Any, fields)).run(LocalTarget(tiny_lm), EVEN, lab_of(store, tiny_lm)))


def test_every_score_has_a_formula_and_a_spec_can_name_it() -> None:
    assert set(mia._FORMULAS) == set(SCORES) == set(get_args(mia.ScoreName))
    for name in SCORES:
        (made,) = build("attacks", f"mia:headline={name},scores={name}|loss,unit=author")
        assert isinstance(made, MIA)
        assert (made.headline, made.scores, made.unit) == (name, (name, "loss"), "author")


def test_large_corpora_go_through_in_slices(store: Store, tiny_lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(MIA().run(LocalTarget(tiny_lm), EVEN, lab_of(store, tiny_lm)))
    monkeypatch.setattr("memdefense.attacks.membership_evidence._SLICE", 3)
    asked: list[int] = []
    plain = LocalTarget.signals

    def seen(self: LocalTarget, texts: Sequence[str], **rest: Sequence[str]) -> object:
        asked.append(len(texts))
        return plain(self, texts)

    monkeypatch.setattr(LocalTarget, "signals", seen)
    sliced = list(MIA().run(LocalTarget(tiny_lm), EVEN, lab_of(store, tiny_lm)))
    assert max(asked) == 3
    assert [o.unit for o in sliced] == [o.unit for o in whole]
    for one, other in zip(sliced, whole, strict=True):
        assert one.values == pytest.approx(other.values, abs=1e-5)


def test_contract() -> None:
    check_attack(MIA())
    dear: tuple[mia.ScoreName, ...] = ("con-recall", "neighbourhood", "samia")
    check_attack(MIA(headline="recall", scores=dear, unit="author", shots=2, neighbours=2, samples=1))


@dataclasses.dataclass(frozen=True)
class Longer(TinyBenchmark):
    """The tiny benchmark, trained until it knows its letters."""

    name: ClassVar[str] = "longer"
    summary: ClassVar[str] = "Letters, learnt by heart."

    @property
    def config(self) -> TrainConfig:
        return dataclasses.replace(super().config, steps=300, batch_size=8, checkpoints=1)


@pytest.mark.slow
def test_training_moves_the_scores(tmp_path: Path) -> None:
    """Letters that were read forty times; samia aside, which cannot tell letters that share most of their words."""
    work = prepare(Longer(), Settings(store=str(tmp_path), device="cpu"))
    attack = MIA(headline="loss", scores=SCORES, shots=3, neighbours=5, samples=3)
    areas: dict[str, dict[str, float]] = {}
    for defense in (Defense(), NeverTrained()):
        defended = defend(work, defense, 0)
        point = defended.points[-1]
        outcomes = measure(defended, point, attack, functools.partial(point.load, "cpu"))[0]
        areas[defense.name] = {name: score.value for name, score in attack.score(outcomes).beside.items()}
    for name in ("loss", "zlib", "lowercase", "min-k", "min-k++", "reference", "recall", "con-recall"):
        assert areas["none"][f"auc_{name}"] > 0.95, name
    for name in ("loss", "zlib", "lowercase", "min-k", "min-k++", "dc-pdd", "recall", "con-recall", "neighbourhood"):
        assert areas["none"][f"auc_{name}"] > areas["never-trained"][f"auc_{name}"], name
    assert areas["never-trained"]["auc_reference"] == 0.5  # nothing is left of a model less itself
