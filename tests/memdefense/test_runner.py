"""The whole pipeline through its public door, on a benchmark that runs in a second."""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import memdefense
from memdefense import (
    LM,
    Attack,
    Corpus,
    Defense,
    Document,
    Documents,
    Lab,
    NotApplicable,
    Outcome,
    Point,
    Score,
    Scores,
    SpecError,
    Target,
    TextTarget,
    recipe,
)
from memdefense.access import Again
from memdefense.attack import Access, Term
from memdefense.attacks.prefix import Prefix
from memdefense.benchmarks.mailbox import Mailbox
from memdefense.defenses.rmft import RMFT
from memdefense.results import Results, Row
from memdefense.runner import prepare
from memdefense.settings import Settings
from memdefense.testing import tiny_benchmark
from memdefense.tiny import TinyBenchmark

COSTS = ("cost", "provenance", "train_seconds")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclasses.dataclass(frozen=True)
class Idle(Defense):
    """Says it curates, and changes nothing."""

    name: ClassVar[str] = "idle"
    summary: ClassVar[str] = "Nothing."

    def curate(self, documents: Documents, lab: Lab, *, epoch: int = 0) -> Documents:
        return list(documents)


@dataclasses.dataclass(frozen=True)
class IdleEdit(Defense):
    """Says it edits, and leaves the weights alone."""

    name: ClassVar[str] = "idle-edit"
    summary: ClassVar[str] = "Nothing."

    def edit(self, model: LM, documents: Documents, lab: Lab) -> Iterable[Point]:
        yield Point("edits-0", 1.0, model)


@dataclasses.dataclass(frozen=True)
class Wreck(Defense):
    """Turns the weights against themselves."""

    name: ClassVar[str] = "wreck"
    summary: ClassVar[str] = "Noise."

    def edit(self, model: LM, documents: Documents, lab: Lab) -> Sequence[Point]:
        with torch.no_grad():
            for weight in model.model.parameters():
                weight.mul_(-20)
        return [Point("noise", 1.0, model)]


@dataclasses.dataclass(frozen=True)
class Broken(Defense):
    """Raises."""

    name: ClassVar[str] = "broken"
    summary: ClassVar[str] = "An error."

    def curate(self, documents: Documents, lab: Lab, *, epoch: int = 0) -> Documents:
        raise ZeroDivisionError("nothing to divide by")


@dataclasses.dataclass(frozen=True)
class Faulty(Attack):
    """Raises."""

    name: ClassVar[str] = "faulty"
    family = "audit"
    access: Access = "text"

    def run(self, target: object, corpus: Corpus, lab: object) -> list[Outcome]:
        raise KeyError("lost")

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        return Scores(Score(0.0, 0.0, 0.0, 0), {})


@dataclasses.dataclass(frozen=True)
class Lost(Attack):
    """Raises, and is of the family of prefix."""

    name: ClassVar[str] = "lost"
    family = "extraction"

    def run(self, target: object, corpus: Corpus, lab: object) -> list[Outcome]:
        raise KeyError("lost")

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        return Scores(Score(0.0, 0.0, 0.0, 0), {})


@dataclasses.dataclass(frozen=True)
class Senseless(Lost):
    """Has nothing to do here, and is of the family of prefix."""

    name: ClassVar[str] = "senseless"

    def run(self, target: object, corpus: Corpus, lab: object) -> list[Outcome]:
        raise NotApplicable("nothing to do")


def measured(folder: Path, defenses: object, attacks: object = (Prefix(),), seeds: Sequence[int] = (0,)) -> Results:
    return memdefense.run(
        tiny_benchmark(),
        defenses,
        attacks,
        store=str(folder / "store"),
        output=str(folder / "out"),
        seeds=seeds,
        device="cpu",
    )


def of(results: Results, defense: str) -> list[Row]:
    return [row for row in results.points if row["defense_spec"] == defense]


def told(row: Row) -> Row:
    """A row without what may differ from run to run."""
    kept = {name: value for name, value in row.items() if name not in COSTS}
    kept["notes"] = {name: v for name, v in row.get("notes", {}).items() if "seconds" not in name}
    return json.loads(json.dumps(kept))  # type: ignore[no-any-return]


def test_the_undefended_baseline_and_the_trivial_rows_come_along(tmp_path: Path) -> None:
    results = measured(tmp_path, [RMFT()])
    assert {row["defense_spec"] for row in results.points} == {"none", "rmft", "never-trained", "refuse"}
    assert {entry["defense_label"] for entry in results.entries} == {"none", "rmft", "never-trained", "refuse"}
    assert all(row["status"] in ("ok", "no-op", "collapsed") for row in results.points)
    refuse = of(results, "refuse")[-1]
    assert refuse["d"]["continuation"] == refuse["d"]["worst"] == 100
    assert refuse["utility"].keys() == {"perplexity", "accuracy", "continuation", "copy"}
    for row in of(results, "rmft"):  # has no guard, so it is not asked what a guard takes away
        assert math.isnan(row["d"]["continuation"])
        assert row["utility"].keys() == {"perplexity", "accuracy", "copy"}
    assert refuse["scores"]["hit_rate"]["events"] == 0
    assert min(row["d"]["perplexity"] for row in of(results, "none")) == pytest.approx(0)


@dataclasses.dataclass(frozen=True)
class Door(Attack):
    """Asks one question, and sees whether it is answered."""

    name: ClassVar[str] = "door"
    family = "extraction"

    def run(self, target: TextTarget, corpus: Corpus, lab: object) -> list[Outcome]:
        (said,) = target.generate(["open sesame"], max_new_tokens=4)
        return [Outcome("door", "door", True, {"answered": float(said != "")})]

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        return Scores(Score(outcomes[0].values["answered"], 0.0, 1.0, 1), {})

    def terms(self, outcomes: Sequence[Outcome]) -> list[Term]:
        return [Term(o.unit, o.group, o.values["answered"]) for o in outcomes]


@dataclasses.dataclass(frozen=True)
class Keeper(Defense):
    """Answers one question with nothing, or not even that."""

    name: ClassVar[str] = "keeper"
    summary: ClassVar[str] = "A door that stays shut."
    shut: bool = True

    def guard(self, target: Target, documents: Documents, lab: Lab) -> Target:
        def answered(prompts: Sequence[str], texts: Sequence[str], again: Again) -> list[str]:
            pairs = zip(prompts, texts, strict=True)
            return ["" if self.shut and prompt == "open sesame" else text for prompt, text in pairs]

        return target.guarded(text=answered)


def test_every_spec_of_a_grid_is_a_point_of_its_own(tmp_path: Path) -> None:
    results = measured(tmp_path, "pattern-filter")
    (entry,) = (entry for entry in results.entries if entry["defense_label"] == "pattern-filter")
    specs = {row["defense_spec"] for row in results.points if row["defense_label"] == "pattern-filter"}
    assert len(specs) == 5
    assert len(entry["plain"]["points"]) == 5
    assert {name.partition(" at ")[0] for name in entry["plain"]["points"]} - {"1.0"} == specs - {"pattern-filter"}


def test_a_guard_that_acts_on_nothing_but_the_attack_is_no_no_op(tmp_path: Path) -> None:
    results = measured(tmp_path, [Keeper(), Keeper(shut=False)], [Door()])
    assert {row["status"] for row in of(results, "keeper")} == {"ok"}
    assert {row["leakage"] for row in of(results, "keeper")} == {0.0}
    assert {row["status"] for row in of(results, "keeper:shut=false")} == {"no-op"}


def test_a_defense_that_changes_nothing_is_a_no_op_and_one_that_destroys_is_collapsed(tmp_path: Path) -> None:
    results = measured(tmp_path, [Idle(), IdleEdit(), Wreck()])
    assert {row["status"] for row in of(results, "idle")} == {"no-op"}
    assert {(row["point"], row["status"]) for row in of(results, "idle-edit")} == {("1.0/edits-0", "no-op")}
    assert {row["status"] for row in of(results, "wreck")} == {"collapsed"}
    assert "no-op" not in {row["status"] for row in of(results, "none")}


def test_a_failing_pair_is_an_error_row_and_the_rest_goes_on(tmp_path: Path) -> None:
    results = measured(tmp_path, [Broken(), RMFT()], [Faulty(), Prefix()])
    broken = of(results, "broken")
    assert {row["status"] for row in broken} == {"error"}
    assert all("curate" in row["error"] and "nothing to divide by" in row["error"] for row in broken)
    pairs = {(row["attack"], row["status"]) for row in of(results, "rmft")}
    assert pairs == {("faulty", "error"), ("prefix", "ok")}
    assert all(row["leakage"] is None for row in results.failed)


def test_several_attacks_of_a_family_leave_an_entry_against_the_worst(tmp_path: Path) -> None:
    results = measured(tmp_path, [RMFT()], [Prefix(), Prefix(random=2)])
    worst = {entry["defense_label"]: entry for entry in results.entries if entry["attack"] == "worst"}
    assert set(worst) == {"none", "rmft", "never-trained", "refuse"}
    assert worst["rmft"]["attacks"] == ["prefix", "prefix:random=2"]
    # Each leakage is recomputed from what the entry holds.
    single = {row["attack_spec"]: row for row in results.entries if row["defense_label"] == "rmft"}
    for spec in worst["rmft"]["attacks"]:
        assert worst["rmft"]["readings"][f"{spec}/"] == single[spec]["readings"][""]
    assert all(entry["attack"] == "prefix" for entry in results.entries if "attacks" not in entry)


def test_an_attack_that_failed_may_have_been_the_worst(tmp_path: Path) -> None:
    results = measured(tmp_path, [RMFT()], [Lost(), Prefix()])
    worst = [entry for entry in results.entries if entry["attack"] == "worst"]
    assert all(not entry["resolvable"] and "lost failed" in entry["note"] for entry in worst)
    assert {entry["attack"] for entry in results.entries} == {"lost", "prefix", "worst"}


def test_an_attack_that_makes_no_sense_leaves_the_worst_to_the_others(tmp_path: Path) -> None:
    results = measured(tmp_path, [RMFT()], [Prefix(), Senseless()])
    assert {row["status"] for row in results.points if row["attack"] == "senseless"} == {"n/a"}
    single = {entry["defense_label"]: entry for entry in results.entries if entry["attack"] == "prefix"}
    for entry in results.entries:
        if entry["attack"] == "worst":
            alone = single[entry["defense_label"]]
            assert entry["seeds"] == [0]
            assert entry["readings"] == {"prefix/": alone["readings"][""]}
            assert entry["note"] == alone["note"]


def test_a_second_run_reads_everything_from_the_store_and_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measured(tmp_path, [RMFT()])
    lines = (tmp_path / "out" / "results.jsonl").read_text()
    monkeypatch.setattr("memdefense.lab.fit", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(Prefix, "run", lambda *_, **__: pytest.fail("attacked again"))
    again = measured(tmp_path, [RMFT()])
    assert [told(row) for row in again.points] == [told(row) for row in first.points]
    assert [told(row) for row in again.entries] == [told(row) for row in first.entries]
    assert (tmp_path / "out" / "results.jsonl").read_text() == lines, "a row is written once"


@dataclasses.dataclass(frozen=True)
class Edited(TinyBenchmark):
    """While its corpus is read, somebody edits a plugin that is loaded."""

    file: str = ""

    def corpus(self) -> Corpus:
        path = Path(self.file)
        path.write_text(path.read_text().replace("lower", "upper"))
        return super().corpus()


PLUGIN = """
import dataclasses
from memdefense import Defense

@dataclasses.dataclass(frozen=True)
class Lowercase(Defense):
    name = "lowercase"
    summary = "Lower case."

    def curate(self, documents, lab, *, epoch=0):
        return [dataclasses.replace(document, text=document.text.lower()) for document in documents]
"""


def test_a_plugin_that_is_edited_meanwhile_is_named_by_the_code_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "edited_meanwhile.py"
    file.write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    loaded = importlib.import_module("edited_meanwhile")
    recipe.forget()
    before = recipe.code_of("edited_meanwhile")
    memdefense.run(Edited(file=str(file)), [loaded.Lowercase()], [Prefix()], store=str(tmp_path / "store"))
    assert ".upper()" in file.read_text()
    assert recipe.code_of("edited_meanwhile") == before
    recipe.forget()
    assert recipe.code_of("edited_meanwhile") != before


def test_two_stores_give_the_same_rows(tmp_path: Path) -> None:
    one, two = (measured(tmp_path / name, [RMFT()], seeds=(0, 1)) for name in ("one", "two"))
    assert [told(row) for row in one.points] == [told(row) for row in two.points]
    assert [told(row) for row in one.entries] == [told(row) for row in two.entries]
    assert {row["seed"] for row in one.points} == {0, 1}


def test_results_hold_no_secret_and_no_text(tmp_path: Path) -> None:
    results = measured(tmp_path, [RMFT()])
    corpus = tiny_benchmark().corpus()
    written = "".join(path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert results.folder == tmp_path / "out"
    assert len(list((tmp_path / "out" / "outcomes").iterdir())) == len(results.points)
    for secret in corpus.secrets:
        assert secret.value not in written
        assert secret.twin not in written
    assert corpus.train[0].text[:40] not in written


def test_samples_are_written_on_request_alone(tmp_path: Path) -> None:
    for name, wanted in (("a", True), ("b", False)):
        settings = Settings(
            store=str(tmp_path / "store"), output=str(tmp_path / name), device="cpu", baselines="", log_samples=wanted
        )
        memdefense.run(tiny_benchmark(), [RMFT()], [Prefix()], settings=settings)
    assert list((tmp_path / "a").rglob("*.samples.jsonl"))
    assert not list((tmp_path / "b").rglob("*.samples.jsonl"))


def test_a_corpus_without_secrets_is_not_applicable_to_extraction(tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class Plain(TinyBenchmark):
        name: ClassVar[str] = "plain"

        def corpus(self) -> Corpus:
            return dataclasses.replace(super().corpus(), secrets=())

    results = memdefense.run(Plain(), [RMFT()], "prefix,mia", store=str(tmp_path / "store"), device="cpu", baselines="")
    status = {row["attack"]: row["status"] for row in of(results, "rmft")}
    assert status["prefix"] == "n/a"
    assert status["mia"] in ("ok", "no-op")
    assert not results.failed


def test_a_defense_never_meets_the_secrets(tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class Curious(Defense):
        """Looks for the answer key in all it is given."""

        name: ClassVar[str] = "curious"

        def guard(self, target: memdefense.Target, documents: Documents, lab: Lab) -> memdefense.Target:
            seen = [documents, lab.originals, lab.public]
            assert all(isinstance(item, Document) for part in seen for item in part)
            assert not any("secret" in name or "corpus" in name for name in dir(lab))
            return target

    assert not measured(tmp_path, [Curious()]).failed


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"seedz": 3}, "seeds"),
        ({"seeds": 3}, r"range\(3\)"),
        ({"seeds": (0, -1)}, "a seed is -1"),
        ({"model": 3}, "model is 3; it takes text"),
        ({"training": {"epochs": "3"}}, "epochs is '3'; it takes a number"),
        ({"seeds": ()}, "no seed"),
        ({"training": {"epoch": 3}}, "epochs"),
        ({"training": {"block_size": 4096}}, "block size"),
        ({"detector_recall": 0.0}, "recall"),
        ({"model": "./nothing-here"}, "nothing-here"),
    ],
)
def test_bad_options_are_named_before_anything_runs(tmp_path: Path, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(memdefense.MemdefenseError, match=complaint):
        memdefense.run(tiny_benchmark(), "rmft", "prefix", store=str(tmp_path / "store"), **options)


def test_each_seeds_rows_carry_its_own_detectors_recall(tmp_path: Path) -> None:
    options: dict[str, Any] = {"store": str(tmp_path), "device": "cpu", "baselines": "", "detector_recall": 0.5}
    results = memdefense.run(tiny_benchmark(), "none", "prefix", seeds=(0, 1, 2), **options)
    work = prepare(tiny_benchmark(), Settings(store=str(tmp_path), device="cpu", detector_recall=0.5))
    texts = {document.id: document.text for document in work.corpus.train}
    places = [(s, o) for s in work.corpus.secrets if s.member for o in s.occurrences if o.document in texts]
    for seed in (0, 1, 2):
        lab = work.lab("anybody", seed)
        hits = [
            any((hit.kind, hit.start) == (secret.kind, place.start) for hit in lab.find(texts[place.document]))
            for secret, place in places
        ]
        rows = [row for row in results.points if row["seed"] == seed]
        assert {row["detector"]["recall"] for row in rows} == {sum(hits) / len(hits)}
        assert {row["detector"]["asked"] for row in rows} == {0.5}
    assert len({row["detector"]["recall"] for row in results.points}) > 1


def test_what_was_reused_need_not_be_written_down(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "last-run.json").mkdir()  # cannot be written, as on a disk that has just become full
    assert not measured(tmp_path, [RMFT()]).failed


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path: Path) -> None:
    for place, said in (
        ("runs/new", "nothing-here"),
        ("empty", "nothing-here"),
        ("kept", r"other files \(mine\.txt\)"),
    ):
        out = tmp_path / place
        if place != "runs/new":
            out.mkdir()
        if place == "kept":
            (out / "mine.txt").write_text("keep me")
        with pytest.raises(memdefense.MemdefenseError, match=said):
            memdefense.run(
                tiny_benchmark(), "rmft", "prefix", model="./nothing-here", store=str(tmp_path / "s"), output=str(out)
            )
        assert out.exists() is (place != "runs/new")
    assert not (tmp_path / "runs").exists()
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["mine.txt"]
    assert not any((tmp_path / "empty").iterdir())


def test_transformers_does_not_warn_of_padding_that_is_none(tmp_path: Path) -> None:
    heard: list[str] = []

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    upstream, told = logging.getLogger("transformers.modeling_utils"), Told()
    kept, level = upstream.filters[:], upstream.level
    upstream.addHandler(told)
    upstream.setLevel(logging.WARNING)
    try:
        measured(tmp_path, "none")
        upstream.warning("We strongly recommend passing in an `attention_mask` since your input_ids may be padded.")
        upstream.warning("Something else.")
    finally:
        upstream.removeHandler(told)
        upstream.filters[:] = kept
        upstream.setLevel(level)
    assert heard == ["Something else."]


def test_a_class_instead_of_an_instance_is_explained(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="instance"):
        memdefense.run(tiny_benchmark(), RMFT, "prefix", store=str(tmp_path / "store"))


SCRIPT = """
import sys, os, torch, signal, time
torch.set_num_threads(1)
import memdefense
from memdefense.testing import tiny_benchmark
from memdefense.tiny import TinyBenchmark
store, kill_at = sys.argv[1], int(sys.argv[2])
calls = 0
def progress(what, done, total):
    global calls
    calls += 1
    if calls == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
memdefense.run(tiny_benchmark(), "rmft", "prefix", store=store, output=store + "-out", device="cpu", progress=progress)
"""


@pytest.mark.parametrize("kill_at", [4, 9, 12, 17])
def test_killed_at_any_moment_it_resumes_to_the_same_rows(tmp_path: Path, kill_at: int) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)

    def start(folder: str, at: int) -> int:
        command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / folder), str(at)]
        return subprocess.run(command, capture_output=True, env={**os.environ}, check=False).returncode

    assert start("killed", kill_at) == -signal.SIGKILL
    assert start("killed", 0) == 0
    assert start("calm", 0) == 0
    rows = []
    for name in ("killed", "calm"):
        lines = (tmp_path / f"{name}-out" / "results.jsonl").read_text().splitlines()
        rows.append([told(json.loads(line)) for line in lines])
    assert rows[0] == rows[1]


def test_two_runs_on_one_store_at_once_agree(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "store"), "0"]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    manifests = [json.loads(p.read_text()) for p in (tmp_path / "store").glob("artifacts/*/*/*/artifact.json")]
    assert len({manifest["key"] for manifest in manifests}) == len(manifests)
    assert not list((tmp_path / "store" / "leases").iterdir())


def test_where_a_model_lies_is_not_what_it_is(tmp_path: Path, tiny_lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("here", "there"):
        tiny_lm.save(tmp_path / place / "small")
    monkeypatch.chdir(tmp_path / "here")

    def rows(model: str) -> list[Row]:
        out = str(tmp_path / "out")
        options: dict[str, Any] = {"store": str(tmp_path / "store"), "output": out, "baselines": "", "device": "cpu"}
        return list(memdefense.run(tiny_benchmark(), "never-trained", "prefix", model=model, **options).points)

    first = rows("./small")
    written = (tmp_path / "out" / "results.jsonl").read_text()
    for other in ("small", "../there/small", str(tmp_path / "there" / "small")):
        assert [told(row) for row in rows(other)] == [told(row) for row in first]
    assert {row["model"] for row in first} == {"small"}
    assert (tmp_path / "out" / "results.jsonl").read_text() == written  # nothing is there twice
    assert str(tmp_path) not in written + (tmp_path / "out" / "config.json").read_text()


def test_a_damaged_store_is_noticed_and_mended(tmp_path: Path) -> None:
    first = measured(tmp_path, [RMFT()])
    damaged = [*(tmp_path / "store").glob("artifacts/outcomes/*/*/outcomes.jsonl")]
    for path in damaged[::2]:
        path.write_text(path.read_text().replace("0.0", "1.0"))
    again = measured(tmp_path, [RMFT()])
    assert [told(row) for row in again.points] == [told(row) for row in first.points]


@pytest.mark.slow
def test_the_default_benchmark_memorises_more_the_more_often_it_sees(tmp_path: Path) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    settings = Settings(store=str(tmp_path / "store"), device="cpu", baselines="", training={"checkpoints": 3})
    results = memdefense.run(Mailbox(), "none", [Prefix()], settings=settings)
    final = of(results, "none")[-1]
    rates = [final["scores"][f"hit_rate_{bucket}"]["value"] for bucket in ("1", "2-4", "5-16", ">16")]
    assert rates == sorted(rates)
    assert rates[-1] >= 0.8
    assert final["scores"]["held_out_rate"]["value"] < 0.1
    assert final["overfit_percent"] < 5
