"""What holds for every defense that is installed, whichever it is: no peeking, and a whole run of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
import torch

import memdefense
from memdefense import registry
from memdefense.attacks.mia import MIA
from memdefense.attacks.prefix import Prefix
from memdefense.defense import Defense
from memdefense.defenses import leak_editing, pme
from memdefense.defenses.memit import MEMIT
from memdefense.defenses.pme import PME
from memdefense.pipeline import defend
from memdefense.runner import Settings, prepare
from memdefense.testing import TinyBenchmark
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
