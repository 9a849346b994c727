from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest
import torch

from memdefense.attack import Access, Attack, Outcome
from memdefense.corpus import Corpus, Documents, Redrawn
from memdefense.defense import Defense, Point, Stack
from memdefense.errors import PluginError
from memdefense.pipeline import defend, measure, read_outcomes, write_outcomes
from memdefense.runner import Settings, prepare
from memdefense.score import Score, Scores
from memdefense.testing import TinyBenchmark
from memdefense.work import Work, retried

if TYPE_CHECKING:
    from memdefense.lab import AttackLab, Lab
    from memdefense.lm import LM, Target, TextTarget, WeightTarget

RUNS = itertools.count()


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def work(folder: Path) -> Work:
    """A run's work on one store for all tests of this file, read anew for each."""
    return prepare(TinyBenchmark(), Settings(store=str(folder), device="cpu"))


def _made(work: Work) -> list[object]:
    return [event["kind"] for event in work.bench.store.events if event["what"] == "made"]


@dataclasses.dataclass(frozen=True)
class Cut(Defense):
    """Curates with a note, and counts how often it really ran."""

    name: ClassVar[str] = "cut"
    summary: ClassVar[str] = "Leaves documents out."

    keep: int = 10

    def curate(self, documents: Documents, lab: Lab, *, epoch: int = 0) -> Documents:
        lab.note(run=next(RUNS), dropped=len(documents) - self.keep)
        return documents[: self.keep]


@dataclasses.dataclass(frozen=True)
class Bounded(Defense):
    """Guards the end of training alone, with a note."""

    name: ClassVar[str] = "bounded"
    summary: ClassVar[str] = "A guard."

    @property
    def last(self) -> bool:
        return True

    def guard(self, target: Target, documents: Documents, lab: Lab) -> Target:
        lab.note(epsilon=3)
        return target


@dataclasses.dataclass(frozen=True)
class Scale(Defense):
    """Edits in place, which is allowed: what it gets is its own."""

    name: ClassVar[str] = "scale"
    summary: ClassVar[str] = "Scales one matrix."

    def edit(self, model: LM, documents: Documents, lab: Lab) -> Iterator[Point]:
        for step in (1, 2):
            next(model.model.parameters()).data *= 0.5
            lab.note(steps=step, run=next(RUNS))
            yield Point(f"step-{step}", 1.0, model)


@dataclasses.dataclass(frozen=True)
class Retrain(Defense):
    """Trains by `Lab.fit`, with the lab's own loss."""

    name: ClassVar[str] = "retrain"
    summary: ClassVar[str] = "Trains as the baseline does."

    def train(self, model: LM, documents: Documents, lab: Lab) -> Iterator[Point]:
        yield from lab.fit(model, documents)


@dataclasses.dataclass(frozen=True)
class Wrong(Defense):
    """Does in one hook what it must not."""

    name: ClassVar[str] = "wrong"
    summary: ClassVar[str] = "Breaks a rule."

    hook: str = ""
    how: str = "raise"

    def curate(self, documents: Documents, lab: Lab, *, epoch: int = 0) -> Documents:
        self._act("curate", documents)
        return documents

    def train(self, model: LM, documents: Documents, lab: Lab) -> Iterator[Point]:
        self._act("train", documents)
        if self.hook != "guard" and self.how == "weights":
            next(model.model.parameters()).data += 1
        if self.how == "fresh":
            next(lab.fresh().model.parameters()).data += 1
        yield Point("1", 1.0, model.copy())

    def edit(self, model: LM, documents: Documents, lab: Lab) -> Iterator[Point]:
        self._act("edit", documents)
        yield Point("1", 1.0, model)

    def guard(self, target: Target, documents: Documents, lab: Lab) -> Target:
        self._act("guard", documents)
        if self.hook == "guard" and self.how == "weights":
            next(target.model.model.parameters()).data += 1
        return target

    def _act(self, hook: str, documents: Documents) -> None:
        if hook == self.hook and self.how == "raise":
            raise ValueError("on purpose")
        if hook == self.hook and self.how == "mutate":
            object.__setattr__(documents[0], "text", "changed")


@dataclasses.dataclass(frozen=True)
class Peek(Attack):
    """Misbehaves as told."""

    name: ClassVar[str] = "peek"
    family = "extraction"
    summary: ClassVar[str] = "Misbehaves as told."
    access: Access = "text"

    how: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "access", "weights" if self.how == "weights" else "text")

    @property
    def shadows(self) -> bool:
        return self.how == "shadow"

    def run(self, target: TextTarget | WeightTarget, corpus: Corpus, lab: AttackLab) -> Iterator[Outcome]:
        if self.how == "raise":
            raise KeyError("on purpose")
        if self.how == "corpus":
            object.__setattr__(corpus.secrets[0], "value", "changed")
        if self.how == "weights":
            next(target.model.model.parameters()).data += 1  # type: ignore[union-attr]
        if self.how == "base":
            next(lab.base.model.parameters()).data += 1
        if self.how == "training":
            lab.base.model.train()
        if self.how in ("shadow", "undeclared"):
            (signal,) = lab.defend(corpus.train[:8], 7).signals([corpus.train[0].text])
            lab.note(logprob=float(signal.logprob.mean()))
        lab.note(run=next(RUNS))
        lab.keep({"prompt": "p"})
        yield Outcome("u", "g", True, {"hit": 1.0}, "s")

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        return Scores(Score(0.0, 0.0, 0.0, 0), {})


def test_hooks_are_replayed_with_their_notes_and_costs(work: Work, folder: Path) -> None:
    defense = Cut(9)
    first = defend(work, defense, 0)
    again = defend(prepare(TinyBenchmark(), Settings(store=str(folder), device="cpu")), defense, 0)
    assert first.notes == again.notes
    assert first.notes["dropped"] == 15
    assert first.cost == again.cost
    assert first.cost["train_seconds"] > 0
    assert first.cost["tokens"] == 6 * 4 * 64
    assert first.cost["curate_seconds"] >= 0
    assert [p.digest for p in first.points] == [p.digest for p in again.points]
    assert [document.id for document in again.curated] == [f"d{i:02d}" for i in range(9)]


def test_baseline_and_every_post_hoc_defense_share_one_training(work: Work) -> None:
    baseline = defend(work, Defense(), 0)
    before = len(_made(work))
    edited = defend(work, Scale(), 0)
    assert _made(work)[before:] == ["edit"]
    assert [p.label for p in baseline.points] == ["0.5", "1.0"]
    assert [p.label for p in edited.points] == ["1.0/step-1", "1.0/step-2"]
    assert edited.cost["tokens"] == baseline.cost["tokens"] > 0
    assert edited.cost["train_seconds"] == baseline.cost["train_seconds"]
    assert edited.cost["edit_seconds"] >= 0
    before = len(_made(work))
    retrained = defend(work, Retrain(), 0)
    assert _made(work)[before:] == ["train"]  # and no `fit`: the one inside is the baseline's
    assert [p.digest for p in retrained.points] == [p.digest for p in baseline.points]


def test_edit_works_on_a_copy(work: Work) -> None:
    baseline = defend(work, Defense(), 0)
    edited = defend(work, Scale(), 0)
    weight = next(baseline.points[-1].load("cpu").model.parameters())
    for point, factor in zip(edited.points, (0.5, 0.25), strict=True):
        assert torch.equal(next(point.load("cpu").model.parameters()), weight * factor)
    assert edited.notes["steps"] == 2


def test_edit_at_all_edits_every_training_point(folder: Path) -> None:
    work = prepare(TinyBenchmark(), Settings(store=str(folder), device="cpu", edit_all=True))
    points = defend(work, Scale(), 0).points
    assert [(p.label, p.at) for p in points] == [
        ("0.5/step-1", 0.5),
        ("0.5/step-2", 0.5),
        ("1.0/step-1", 1.0),
        ("1.0/step-2", 1.0),
    ]


def test_seed_and_fields_are_part_of_the_key(work: Work) -> None:
    runs = {defend(work, Cut(keep), seed).notes["run"] for keep, seed in ((8, 0), (8, 1), (7, 0), (8, 0))}
    assert len(runs) == 3


def test_training_flags_are_part_of_every_key(folder: Path) -> None:
    one = prepare(TinyBenchmark(), Settings(store=str(folder), device="cpu", training={"learning_rate": 1e-3}))
    two = prepare(TinyBenchmark(), Settings(store=str(folder), device="cpu", training={"learning_rate": 2e-3}))
    assert defend(one, Cut(6), 0).notes["run"] != defend(two, Cut(6), 0).notes["run"]


@pytest.mark.parametrize("hook", ["curate", "train", "edit"])
def test_hook_that_raises_is_named(work: Work, hook: str) -> None:
    complaint = rf"'wrong:hook={hook}' failed in {hook}\(\): ValueError: on purpose \(test_pipeline.py:\d+\)"
    with pytest.raises(PluginError, match=complaint):
        defend(work, Wrong(hook), 0)


@pytest.mark.parametrize("hook", ["curate", "train", "edit"])
def test_changed_documents_are_noticed_every_time_and_reach_nobody_else(work: Work, hook: str) -> None:
    for _ in range(2):
        with pytest.raises(PluginError, match="changed the documents it was given"):
            defend(work, Wrong(hook, "mutate"), 0)
    assert work.corpus.digest() == work.corpus_digest == TinyBenchmark().corpus().digest()


def test_changed_base_weights_are_noticed_every_time_and_reach_nobody_else(work: Work) -> None:
    for _ in range(2):
        with pytest.raises(PluginError, match=r"changed the base model in train\(\)"):
            defend(work, Wrong(how="weights"), 0)
    assert work.base.digest() == work.base_digest
    defend(work, Wrong(how="fresh"), 0)  # a fresh model is its own
    assert work.base.digest() == work.base_digest


def test_redrawn_documents_are_drawn_for_every_epoch(work: Work) -> None:
    from memdefense import registry

    (defense,) = registry.build("defenses", "rmft:keep=none,redraw=epoch")
    assert isinstance(defense, Defense)
    curated = defend(work, defense, 0).curated
    assert isinstance(curated, Redrawn)
    texts = [tuple(document.text for document in curated.epoch(epoch)) for epoch in (0, 1, 2, 1)]
    assert len(set(texts)) == 3
    assert texts[1] == texts[3]
    assert [d.id for d in curated.epoch(1)] == [d.id for d in work.corpus.train]


def test_attack_is_replayed_with_its_notes(work: Work) -> None:
    undefended = defend(work, Defense(), 0)
    last = undefended.points[-1]
    first, artifact = measure(undefended, last, Peek(), lambda: last.load("cpu"))

    def never() -> LM:
        raise AssertionError("no model is needed for what is in the store")

    again, replayed = measure(undefended, last, Peek(), never)
    assert first == again == [Outcome("u", "g", True, {"hit": 1.0}, "s")]
    assert artifact.facts == replayed.facts


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ("raise", r"'peek:how=raise' failed in run\(\): KeyError"),
        ("corpus", "changed the corpus it was given"),
        ("weights", "changed the weights it was given"),
        ("base", "'peek:how=base' changed the weights of a model it was shown"),
        ("training", "'peek:how=training' changed the weights of a model it was shown"),
    ],
)
def test_misbehaving_attack_is_noticed_every_time_and_harms_no_other(work: Work, how: str, complaint: str) -> None:
    undefended = defend(work, Defense(), 0)
    last = undefended.points[-1]
    model = last.load("cpu")
    for _ in range(2):
        with pytest.raises(PluginError, match=complaint):
            measure(undefended, last, Peek(how=how), lambda: model)
    assert work.corpus.digest() == work.corpus_digest
    assert (model.digest(), work.base.digest()) == (last.digest, work.base_digest)
    assert not work.base.model.training


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ("weights", "'wrong:hook=guard,how=weights' changed the weights of a model it was shown"),
        ("mutate", "changed the documents it was given"),
        ("raise", r"failed in guard\(\): ValueError"),
    ],
)
def test_misbehaving_guard_is_noticed_and_harms_no_other(work: Work, how: str, complaint: str) -> None:
    defended = defend(work, Wrong("guard", how), 0)
    last = defended.points[-1]
    model = last.load("cpu")
    with pytest.raises(PluginError, match=complaint):
        measure(defended, last, Peek(), lambda: model)
    assert work.corpus.digest() == work.corpus_digest
    assert (model.digest(), work.base.digest()) == (last.digest, work.base_digest)


def test_public_documents_that_a_defense_changes_are_its_own(work: Work) -> None:
    object.__setattr__(work.lab("somebody", 0).public[0], "text", "changed")
    assert work.corpus.digest() == work.corpus_digest


def test_a_defense_of_the_end_of_training_has_one_point_and_its_guards_notes_stand_in_the_row(work: Work) -> None:
    for defense in (Bounded(), Stack((Cut(10), Bounded()))):
        defended = defend(work, defense, 0)
        assert [point.label for point in defended.points] == ["1.0"]
        last = defended.points[0]
        artifact = measure(defended, last, Peek(), lambda last=last: last.load("cpu"))[1]  # type: ignore[misc]
        assert artifact.facts["notes"]["epsilon"] == 3.0  # type: ignore[index]
    assert len(defend(work, Defense(), 0).points) == 2


def test_attack_that_defends_again_is_kept_apart_for_each_defense_and_point(work: Work) -> None:
    def notes(defense: Defense, place: int, how: str) -> dict[str, float]:
        defended = defend(work, defense, 0)
        point = defended.points[place]
        facts = measure(defended, point, Peek(how=how), lambda: point.load("cpu"))[1].facts
        found: dict[str, float] = dict(facts["notes"])  # type: ignore[call-overload]
        return found

    plain, retrained = Defense(), Retrain()  # the same documents and weights
    assert notes(plain, 1, "")["run"] == notes(retrained, 1, "")["run"]
    assert notes(plain, 1, "shadow")["run"] != notes(retrained, 1, "shadow")["run"]
    assert notes(plain, 1, "shadow") == notes(plain, 1, "shadow")
    shadows = defend(work, plain, 7, work.corpus.train[:8]).points
    for place, point in enumerate(shadows):
        (signal,) = work.lab("", 0).serve(point.load("cpu")).signals([work.corpus.train[0].text])
        assert notes(plain, place, "shadow")["logprob"] == float(signal.logprob.mean()), place
    assert notes(plain, 0, "shadow")["logprob"] != notes(plain, 1, "shadow")["logprob"]


def test_shadow_models_cost_what_their_training_did_whoever_asked_for_it_first(work: Work) -> None:
    shadow = defend(work, Defense(), 7, work.corpus.train[:8])  # from here on in the store
    undefended = defend(work, Defense(), 0)
    last = undefended.points[-1]
    facts = measure(undefended, last, Peek(how="shadow"), lambda: last.load("cpu"))[1].facts
    assert float(str(facts["seconds"])) >= shadow.cost["train_seconds"] > 0


def test_attack_that_defends_again_has_to_say_so(work: Work) -> None:
    undefended = defend(work, Defense(), 0)
    last = undefended.points[-1]
    with pytest.raises(PluginError, match=r"'peek:how=undeclared' runs the defense again without saying so.*`shadows`"):
        measure(undefended, last, Peek(how="undeclared"), lambda: last.load("cpu"))


def test_damaged_point_is_made_again(work: Work) -> None:
    defense = Cut(5)
    before = defend(work, defense, 0).points[-1]
    (weights,) = (before.artifact.folder / before.folder).glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 0xFF
    weights.write_bytes(bytes(data))
    model = retried(work.bench, lambda: defend(work, defense, 0).points[-1].load("cpu"))
    assert model.digest() == before.digest


def test_outcomes_come_back_as_they_were(tmp_path: Path) -> None:
    outcomes = [Outcome("u", "g", True, {"a": 0.1 + 0.2, "b": 1e-300}, "s"), Outcome("v", "h", False, {})]
    write_outcomes(tmp_path / "o.jsonl", outcomes)
    assert read_outcomes(tmp_path / "o.jsonl") == outcomes
