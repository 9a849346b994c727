"""What holds for every defense that is installed, whichever it is: no peeking, and a whole run of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
import torch
from transformers.pytorch_utils import Conv1D

import memdefense
from memdefense import registry
from memdefense.attacks.mia import MIA
from memdefense.attacks.prefix import Prefix
from memdefense.corpus import Documents
from memdefense.defense import Defense, Point
from memdefense.defenses import leak_editing, pme
from memdefense.defenses.depn import DEPN
from memdefense.defenses.memit import MEMIT
from memdefense.defenses.pme import PME
from memdefense.defenses.sani import SANI
from memdefense.defenses.subnet import Subnet
from memdefense.defenses.unlearn import Unlearn
from memdefense.lab import Lab
from memdefense.lm import LM
from memdefense.pipeline import defend
from memdefense.runner import Settings, prepare
from memdefense.testing import TinyBenchmark
from memdefense.train import LoRA
from memdefense.work import Work

NAMES = sorted(registry.names("defenses"))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, blinded: Callable[[Work], Work]) -> Work:
    return blinded(prepare(TinyBenchmark(), Settings(store=str(tmp_path_factory.mktemp("store")), device="cpu")))


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """The tiny benchmark, of whose training adapters alone are trained."""
    settings = Settings(
        store=str(tmp_path_factory.mktemp("adapted")), device="cpu", training={"lora": LoRA(rank=2), "checkpoints": 1}
    )
    return prepare(TinyBenchmark(), settings)


@pytest.mark.parametrize("name", NAMES)
def test_no_defense_looks_at_the_answer_key(name: str, work: Work) -> None:
    with pytest.raises(AssertionError):
        list(work.corpus.secrets)
    for defense in registry.build("defenses", name):
        defended = defend(work, cast(Defense, defense), 0)
        defended.target(defended.points[-1].load("cpu")).generate(["Write to"], max_new_tokens=2)


@pytest.mark.parametrize("defense", [PME(steps=2, mentions=1), MEMIT(steps=2, mentions=1)], ids=["pme", "memit"])
def test_no_edit_of_leaks_looks_at_the_answer_key(
    defense: Defense, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing leaks on so small a benchmark, so here every context counts as leaking, and every dummy as reached."""
    monkeypatch.setattr(leak_editing, "leaking", lambda model, asked, *_, **__: [True] * len(asked))
    monkeypatch.setattr(pme, "LEAST", 0.0)
    (before,) = defend(work, Defense(), 0).points[-1:]
    defended = defend(work, defense, 0)
    assert defended.notes["edited"] == defended.notes["found"] > 0
    assert before.digest not in {point.digest for point in defended.points[-1:]}


def test_adapters_move_the_matrices_of_the_blocks_alone(adapted: Work) -> None:
    (trained,) = defend(adapted, Defense(), 0).points
    base, after = adapted.base.model, trained.load("cpu").model.state_dict()
    moved = {name for name, weight in base.state_dict().items() if not torch.equal(weight, after[name])}
    assert moved == {f"{name}.weight" for name, layer in base.named_modules() if isinstance(layer, Conv1D)}


@pytest.mark.parametrize(
    "defense",
    [
        SANI(epochs=1),
        PME(steps=2, mentions=1, points=1),
        MEMIT(steps=2, mentions=1, points=1),
        Unlearn(epochs=1),
        DEPN(top=(10,), texts=4),
        Subnet(ratio=(0.05,), epochs=1, texts=4),
    ],
    ids=lambda defense: defense.name,
)
def test_adapters_are_merged_before_an_edit_and_after_it(
    defense: Defense, adapted: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For PME and MEMIT every context counts as leaking, and every dummy as reached."""
    monkeypatch.setattr(leak_editing, "leaking", lambda model, asked, *_, **__: [True] * len(asked))
    monkeypatch.setattr(pme, "LEAST", 0.0)
    names = set(adapted.base.model.state_dict())
    (*_, before) = defend(adapted, Defense(), 0).points
    given: list[tuple[str, set[str]]] = []
    edit = type(defense).edit

    def watched(self: Defense, model: LM, documents: Documents, lab: Lab) -> Iterator[Point]:
        given.append((model.digest(), set(model.model.state_dict())))
        for point in edit(self, model, documents, lab):
            given.append((point.model.digest(), set(point.model.model.state_dict())))
            yield point

    monkeypatch.setattr(type(defense), "edit", watched)
    points = defend(adapted, defense, 0).points
    assert given[0][0] == before.digest
    assert [digest for digest, _ in given[1:]] == [point.digest for point in points]
    assert not [name for _, found in given for name in found if "lora_" in name]
    assert all(found == names for _, found in given)
    for point in points:
        edited = point.load("cpu")
        assert set(edited.model.state_dict()) == names
        assert edited.digest() == point.digest != before.digest


@pytest.mark.slow
def test_all_of_them_run_through(tmp_path: Path) -> None:
    results = memdefense.run(
        TinyBenchmark(), "all", [Prefix(), MIA()], store=str(tmp_path), output=str(tmp_path / "run"), device="cpu"
    )
    failed = {(row["defense_spec"], row["attack"], row["error"]) for row in results.points if row["status"] == "error"}
    assert not failed
    assert {entry["defense_label"] for entry in results.entries} >= set(NAMES)
    for row in results.points:
        assert row["status"] in ("ok", "no-op", "collapsed", "n/a")
        if row["status"] != "n/a":
            assert row["cost"]["train_seconds"] >= 0
            assert row["cost"]["edit_seconds"] >= 0
            assert row["cost"]["peak_memory_bytes"] > 0
            assert row["cost"]["attack_peak_memory_bytes"] > 0
            assert "extra_tokens" in row["cost"]
