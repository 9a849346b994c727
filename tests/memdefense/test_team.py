"""Several processes on one run."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from memdefense.attacks.prefix import Prefix
from memdefense.cli import cli
from memdefense.corpus import Documents
from memdefense.defense import Defense, Point
from memdefense.defenses.rmft import RMFT
from memdefense.lab import Lab
from memdefense.lease import Lease
from memdefense.lm import LM
from memdefense.runner import planned, prepare, run
from memdefense.settings import Settings
from memdefense.team import _environments, help_out, units
from memdefense.testing import TinyBenchmark

TINY = "memdefense.testing:TinyBenchmark"


@dataclasses.dataclass(frozen=True)
class Late(Defense):
    """Edits the undefended model, and changes nothing."""

    name = "late"
    summary = "Edits."

    def edit(self, model: LM, documents: Documents, lab: Lab) -> Iterable[Point]:
        yield Point("1.0", 1.0, model)


@dataclasses.dataclass(frozen=True)
class Broken(Defense):
    """Raises."""

    name = "broken"
    summary = "Raises."

    def curate(self, documents: Documents, lab: Lab, *, epoch: int = 0) -> Documents:
        raise ZeroDivisionError("on purpose")


def settings(tmp_path: Path) -> Settings:
    return Settings(store=str(tmp_path / "store"), baselines="", device="cpu", seeds=(0, 1))


def test_every_process_tries_every_unit_beginning_elsewhere_with_those_that_would_wait_last(tmp_path: Path) -> None:
    plan = planned(TinyBenchmark(), [Late(), RMFT(), Broken()], [Prefix()], settings(tmp_path))
    orders = [[(defense.spec, seed) for defense, seed in units(plan, (0, 1), place, 3)] for place in range(3)]
    assert orders[0] == [
        ("none", 0), ("rmft", 0), ("broken", 0), ("none", 1), ("rmft", 1), ("broken", 1), ("late", 0), ("late", 1),
    ]  # fmt: skip
    assert [order[0] for order in orders] == [("none", 0), ("broken", 0), ("rmft", 1)]
    assert all(sorted(order) == sorted(orders[0]) and {name for name, _ in order[-2:]} == {"late"} for order in orders)


def test_it_makes_what_nobody_is_making_and_the_run_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = dataclasses.replace(settings(tmp_path), seeds=(0,))
    arms = [RMFT(), Broken()]
    plan = planned(TinyBenchmark(), arms, [Prefix()], given)
    work = prepare(plan.benchmark, given)
    claim = work.bench.store.claim
    elsewhere: list[Lease] = []

    def taken(parts: Mapping[str, object]) -> Lease | None:
        if parts["plugin"] != "rmft" or elsewhere:
            return claim(parts)
        held = claim(parts)
        assert held is not None
        elsewhere.append(held)
        return claim(parts)

    monkeypatch.setattr(work.bench.store, "claim", taken)
    help_out(plan, work, (0,))
    made = [event for event in work.bench.store.events if event["what"] == "made"]
    assert made
    assert "rmft" not in json.dumps(made, default=str)
    elsewhere[0].leave()
    help_out(plan, work, (0,))
    assert not list((tmp_path / "store" / "leases").iterdir())

    results = run(TinyBenchmark(), arms, [Prefix()], settings=given)
    told = json.loads((tmp_path / "store" / "last-run.json").read_text())
    # Left to the run: the base model's perplexity (the never-trained baseline would have it), and what had failed.
    assert [event["kind"] for event in told if event["what"] == "made"] == ["outcomes", "signals", "curate"]
    assert {row["defense_spec"]: row["status"] for row in results.points if row["status"] == "error"} == {
        "broken": "error"
    }


def test_a_card_or_a_share_of_the_cores_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert _environments("cpu", 3) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert _environments("cpu", 16) == [{"OMP_NUM_THREADS": "1"}] * 16
    assert _environments("cuda:1", 2) == [{}, {}]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert _environments("cuda", 2) == [{}, {}]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in _environments("cuda", 3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [one["CUDA_VISIBLE_DEVICES"] for one in _environments("cuda", 2)] == ["3", "5"]


PLUGIN = """
import dataclasses, os
from memdefense import Defense

@dataclasses.dataclass(frozen=True)
class Dies(Defense):
    name = "dies"
    summary = "Takes its process with it, unless it is the run itself."

    def curate(self, documents, lab, *, epoch=0):
        if os.environ.get("OMP_NUM_THREADS") == "1":
            print("[/nonsense] on purpose", flush=True)
            os._exit(3)
        return documents
"""


def rows(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    kept = ("row", "defense_spec", "attack_spec", "seed", "point", "status", "leakage", "d", "scores", "aurc", "gain")
    return [{name: row.get(name) for name in kept} for row in found]


def test_two_processes_make_the_rows_of_one_and_one_that_dies_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "dying.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    common = [
        "run",
        "-b",
        TINY,
        "-d",
        "dying:Dies,rmft",
        "-a",
        "prefix",
        "--seeds",
        "2",
        "--baselines",
        "",
        "--device",
        "cpu",
    ]
    told = []
    for name, many in (("one", []), ("two", ["--processes", "2"])):
        done = CliRunner().invoke(
            cli, [*common, *many, "--store", str(tmp_path / name / "store"), "-o", str(tmp_path / name / "out")]
        )
        assert done.exit_code == 0, done.output
        told.append(done.output)
    assert rows(tmp_path / "one" / "out") == rows(tmp_path / "two" / "out")
    assert "[0] none, seed 0: training" in told[1]
    assert "[1] [/nonsense] on purpose" in told[1]
    assert "process 1 ended early ([/nonsense] on purpose)" in caplog.text
    sys.modules.pop("dying", None)
