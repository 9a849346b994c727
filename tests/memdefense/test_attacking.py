"""A model and two files that a user brings: attacked as they are, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from memdefense.attacking import attack_model
from memdefense.attacks.mia import MIA
from memdefense.benchmarks.brought import Brought
from memdefense.cli import cli
from memdefense.errors import DataError, MemdefenseError, SpecError
from memdefense.lm import LM
from memdefense.settings import Settings


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


def test_members_score_as_the_same_attack_scores_them_by_hand(files: tuple[Path, Path, Path], tiny_lm: LM) -> None:
    """Without a reference, the score that compares with one is the same for every text."""
    model, members, others = files
    benchmark = Brought(str(members), str(others))
    settings = Settings(model=str(model), store=str(model.parent / "store"), device="cpu")
    (row,) = attack_model(benchmark, [MIA()], settings=settings)
    assert row["scores"]["auc_reference"]["value"] == pytest.approx(0.5)
    corpus = benchmark.corpus()
    assert {secret.member for secret in corpus.secrets} == {True, False}
    assert len(corpus.train) == 14
    assert len(corpus.held_out) == 12


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
