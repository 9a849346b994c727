"""A model and two files that a user brings: attacked as they are, through the command line."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from memdefense.attack_table import print_attacks
from memdefense.attacking import attack_model
from memdefense.attacks.mia import MIA
from memdefense.attacks.sampling import UntargetedSampling
from memdefense.benchmarks.brought import Brought
from memdefense.cli import cli
from memdefense.defense import Defense
from memdefense.errors import DataError, MemdefenseError, SpecError
from memdefense.lm import LM
from memdefense.runner import run
from memdefense.settings import Settings
from memdefense.testing import tiny_benchmark


def _letters(path: Path, start: int, count: int) -> Path:
    with path.open("w") as out:
        for place in range(start, start + count):
            text = f"Dear {place}, the box is ready. Write to clerk{place}.desk@example.com by Friday."
            out.write(json.dumps({"text": text, "by": f"p{place % 7}"}) + "\n")
    return path


@pytest.fixture
def files(tmp_path: Path, tiny_lm: LM) -> tuple[Path, Path, Path]:
    tiny_lm.save(tmp_path / "model")
    return tmp_path / "model", _letters(tmp_path / "in.jsonl", 0, 14), _letters(tmp_path / "out.jsonl", 100, 12)


def _attack(files: tuple[Path, Path, Path], *more: str) -> Result:
    model, members, others = map(str, files)
    given = ["attack", "--model", model, "--members", members, "--non-members", others, "--device", "cpu"]
    return CliRunner().invoke(cli, [*given, "--store", str(files[0].parent / "store"), *more])


def test_every_attack_is_a_row_and_nothing_is_trained(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    done = _attack(files, "-a", "prefix,mia", "-o", str(tmp_path / "run"), "--scores")
    assert done.exit_code == 0, done.output
    assert "auc_loss" in done.output
    rows = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert [(row["row"], row["attack"], row["status"]) for row in rows] == [
        ("attack", "prefix", "ok"),
        ("attack", "mia", "ok"),
    ]
    assert rows[1]["scores"]["auc_loss"]["n"] == 26
    text = "".join(path.read_text() for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert "desk@example.com" not in text
    kinds = {path.name for path in (tmp_path / "store" / "artifacts").iterdir()}
    assert not kinds & {"fit", "train", "base"}


def _other(folder: Path, tiny_lm: LM, seed: int) -> str:
    """A model of the same vocabulary with weights of its own."""
    other = tiny_lm.copy()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for weight in other.model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    other.save(folder)
    return str(folder)


def test_both_files_are_the_corpus_as_they_are(files: tuple[Path, Path, Path]) -> None:
    corpus = Brought(str(files[1]), str(files[2])).corpus()
    assert {secret.member for secret in corpus.secrets} == {True, False}
    assert len(corpus.train) == 14
    assert len(corpus.held_out) == 12


NEEDY = (
    "inference",
    "reconstruction",
    "sampling",
    "audit",
    "shadow",
    "prefix:chance=complement",
    "mia:headline=neighbourhood",
)


def test_what_compares_with_the_model_before_is_not_applicable_without_it(files: tuple[Path, Path, Path]) -> None:
    settings = Settings(model=str(files[0]), store=str(files[0].parent / "store"), device="cpu")
    benchmark = Brought(str(files[1]), str(files[2]))
    rows = attack_model(
        benchmark, ",".join((*NEEDY, "sampling:baseline=none,samples=4,new-tokens=4")), settings=settings
    )
    assert [row["status"] for row in rows] == ["n/a"] * len(NEEDY) + ["ok"]
    for row in rows[:-1]:
        assert "give --reference" in row["error"], row["attack_spec"]
        assert row["leakage"] is None
    assert rows[-1]["notes"]["without_base"] == 0
    # Its models would be others than the one that is brought.
    assert rows[NEEDY.index("shadow")]["attack_spec"] == "shadow:attacked=model"


def test_mia_is_played_in_part_without_the_model_before_and_says_so(
    files: tuple[Path, Path, Path], tiny_lm: LM, tmp_path: Path
) -> None:
    settings = Settings(model=str(files[0]), store=str(files[0].parent / "store"), device="cpu")
    benchmark = Brought(str(files[1]), str(files[2]))
    (part,) = attack_model(benchmark, "mia", settings=settings)
    assert part["attack_spec"] == "mia:headline=loss,scores=loss|zlib|lowercase|min-k|min-k++"
    assert "auc_reference" not in part["scores"]
    assert part["leakage"] == pytest.approx(2 * part["scores"]["auc_loss"]["value"] - 1)
    assert part["notes"]["without_base"] == 1
    (whole,) = attack_model(benchmark, "mia", settings=settings, reference=_other(tmp_path / "base", tiny_lm, 1))
    assert whole["attack_spec"] == "mia"
    assert whole["leakage"] == pytest.approx(2 * whole["scores"]["auc_reference"]["value"] - 1)
    assert whole["notes"]["without_base"] == 0
    shown = _attack(files, "-a", "mia,inference").output
    assert re.search(r"mia:headline=loss\S+: without the scores that need .* give --reference", " ".join(shown.split()))
    assert "inference: it needs the model before" in shown


def test_a_row_of_another_reference_is_another_row(files: tuple[Path, Path, Path], tiny_lm: LM, tmp_path: Path) -> None:
    for seed in (1, 2, 2):
        given = _other(tmp_path / f"base{seed}", tiny_lm, seed)
        done = _attack(files, "-a", "mia", "-o", str(tmp_path / "run"), "--reference", given)
        assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert len({row["recipe"] for row in rows}) == len(rows) == 2
    assert rows[0]["scores"]["auc_reference"] != rows[1]["scores"]["auc_reference"]


def test_the_revision_is_the_attacked_models(
    files: tuple[Path, Path, Path], tiny_lm: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []
    plain = LM.load

    def load(name: str, *, revision: str | None = None, device: str = "cpu") -> LM:
        asked.append((name, revision))
        return plain(name, device=device)

    monkeypatch.setattr(LM, "load", load)
    model, members, others = map(str, files)
    settings = Settings(model=model, revision="step1000", store=str(tmp_path / "store"), device="cpu")
    base = _other(tmp_path / "base", tiny_lm, 1)
    attack_model(Brought(members, others), "verbatim:prefix=3,length=3", settings=settings, reference=base)
    assert asked == [(model, "step1000"), (base, None)]
    asked.clear()
    attack_model(Brought(members, others), "verbatim:prefix=3,length=3", settings=settings)
    assert asked == [(model, "step1000")] * 2


def test_a_model_is_no_reference_for_itself(files: tuple[Path, Path, Path]) -> None:
    model, members, others = map(str, files)
    settings = Settings(model=model, store=str(files[0].parent / "store"), device="cpu")
    with pytest.raises(SpecError, match="before it saw the members"):
        attack_model(Brought(members, others), [MIA()], settings=settings, reference=model)


def test_a_second_run_asks_the_model_nothing(files: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(model=str(files[0]), store=str(files[0].parent / "store"), device="cpu")
    benchmark = Brought(str(files[1]), str(files[2]))
    (first,) = attack_model(benchmark, [MIA()], settings=settings)
    monkeypatch.setattr(MIA, "run", lambda *_: pytest.fail("it was played again"))
    (second,) = attack_model(benchmark, [MIA()], settings=settings)
    assert first["leakage"] == second["leakage"]


def test_shared_texts_are_refused(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, members, others = files
    others.write_text(others.read_text() + members.read_text().splitlines()[3] + "\n")
    with pytest.raises(DataError, match=r"1 of the 13 non-members' texts are members' too"):
        Brought(str(members), str(others)).corpus()
    done = _attack(files)
    assert isinstance(done.exception, MemdefenseError)


def test_what_is_missing_is_named(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, members, others = files
    with pytest.raises(DataError, match="--non-members PATH"):
        Brought(str(members)).corpus()
    (tmp_path / "empty.jsonl").write_text('{"text": " "}\n')
    with pytest.raises(DataError, match="no document with text"):
        Brought(str(members), str(tmp_path / "empty.jsonl")).corpus()
    with pytest.raises(DataError, match=r"no field 'txt'.*did you mean 'text'"):
        Brought(str(members), str(others), text_field="txt").corpus()
    with pytest.raises(SpecError, match="no model was named"):
        attack_model(Brought(str(members), str(others)), [MIA()], settings=Settings())


@pytest.mark.parametrize(("low", "verdict"), [(0.61, "gives members away"), (0.41, "not told from chance")])
def test_the_table_says_what_a_classifier_without_the_model_tells(
    low: float, verdict: str, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {"leakage": {"value": 0.9, "low": 0.8, "high": 1.0, "n": 60}}
    scores["auc_model_free"] = {"value": 0.7, "low": low, "high": 0.8, "n": 60}
    row = {"attack_spec": "mia", "access": "logprobs", "seed": 0, "scores": scores, "status": "ok", "error": ""}
    print_attacks([{**row, "notes": {"without_base": 0.0}, "cost": {"seconds": 1.0}}])
    said = " ".join(capsys.readouterr().out.split())
    assert f"mia: model-free baseline: AUC 0.70 [{low:.2f}, 0.80]" in said
    assert verdict in said


def test_the_table_says_why_there_is_no_leakage(capsys: pytest.CaptureFixture[str]) -> None:
    row: dict[str, Any] = {"access": "text", "seed": 0, "status": "ok", "error": "", "cost": {"seconds": 1.0}}
    row["notes"] = {"without_base": 0.0}
    unknown = {"leakage": {"value": math.nan, "low": math.nan, "high": math.nan, "n": 9}}
    known = {"leakage": {"value": 0.08, "low": -0.2, "high": 0.16, "n": 9}}
    print_attacks([{**row, "attack_spec": "prefix", "scores": unknown}, {**row, "attack_spec": "mia", "scores": known}])
    said = " ".join(capsys.readouterr().out.split())
    assert "prefix: no leakage can be told" in said
    assert "mia: no leakage" not in said
    assert "0.080 [-0.20, 0.16]" in said


def test_a_prompt_file_that_is_missing_is_told_before_anything_is_read(tmp_path: Path) -> None:
    attack = UntargetedSampling(prompts="file", file=str(tmp_path / "none.txt"))
    for told in (
        lambda: attack_model(Brought("none.jsonl", "none.jsonl"), [attack], settings=Settings(model=str(tmp_path))),
        lambda: run(tiny_benchmark(), [Defense()], [attack], settings=Settings(store=str(tmp_path / "store"))),
    ):
        with pytest.raises(DataError, match=r"none\.txt' cannot be read"):
            told()
    assert not list(tmp_path.iterdir())
