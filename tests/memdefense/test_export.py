"""What is handed to the user is what was measured, with the text beside it, and nothing is overwritten."""

from __future__ import annotations

import dataclasses
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import memdefense
from memdefense import LM, DataError, Defense, SpecError
from memdefense.benchmarks.jsonl import JSONL
from memdefense.corpus import read_documents
from memdefense.defenses.refuse import Refuse
from memdefense.defenses.rmft import RMFT
from memdefense.defenses.scrub import Scrub
from memdefense.export import export, one_defense, told
from memdefense.settings import Settings
from memdefense.testing import tiny_benchmark


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store in which one run has trained."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("store")
    memdefense.run(tiny_benchmark(), "rmft", "prefix", store=str(folder), device="cpu", baselines="")
    yield folder
    torch.set_num_threads(before)


def exported(store: Path, output: Path, defense: Defense | None = None, **options: Any) -> dict[str, object]:
    settings = Settings(store=str(store), device="cpu")
    return export(tiny_benchmark(), defense or RMFT(), output, settings=settings, **options)


def count(store: Path, kind: str) -> int:
    return sum(1 for _ in (store / "artifacts" / kind).glob("*/*/artifact.json"))


def test_the_model_is_the_one_that_was_measured(store: Path, tmp_path: Path) -> None:
    before = count(store, "fit")
    facts = exported(store, tmp_path / "out", point="0.5")
    assert count(store, "fit") == before  # taken from the run
    assert LM.load(tmp_path / "out" / "model").digest() == facts["digest"]
    assert (facts["defense"], facts["point"], facts["at"], facts["guarded"]) == ("rmft", "0.5", 0.5, False)
    assert json.loads((tmp_path / "out" / "defended.json").read_text())["digest"] == facts["digest"]
    last = exported(store, tmp_path / "last")
    assert last["point"] == "1.0"
    assert last["digest"] != facts["digest"]


def test_the_text_stands_beside_it_as_it_was_and_as_it_was_trained_on(store: Path, tmp_path: Path) -> None:
    facts = exported(store, tmp_path / "out", RMFT(keep="none"))
    corpus = tiny_benchmark().corpus()
    original, held_out, text = (
        list(read_documents(tmp_path / "out" / f"{name}.jsonl")) for name in ("train", "held_out", "text")
    )
    assert original == list(corpus.train)
    assert held_out == list(corpus.held_out)
    assert facts["held_out"] == [document.id for document in corpus.held_out]
    assert [document.id for document in text] == [document.id for document in original]
    values = [secret.value for secret in corpus.secrets if secret.member]
    assert all(any(value in document.text for document in original) for value in values)
    assert not any(value in document.text for value in values for document in text)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700


def test_a_model_is_written_with_the_cache_it_came_with(store: Path, tmp_path: Path) -> None:
    """Trainer's own default would turn it off for whoever loads the model."""
    exported(store, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "model" / "config.json").read_text())["use_cache"] is True


def test_what_became_of_the_documents_is_told(store: Path, tmp_path: Path) -> None:
    facts = exported(store, tmp_path / "rmft", RMFT(keep="none"))
    before, after = (list(read_documents(tmp_path / "rmft" / f"{name}.jsonl")) for name in ("train", "text"))
    changed = sum(one.text != other.text for one, other in zip(before, after, strict=True))
    assert changed > 0
    assert facts["documents"] == {"trained on": len(after), "changed": changed, "dropped": 0}
    said = told(facts)
    assert f"trained on {len(after)} documents; the defense changed {changed} and dropped 0" in said
    assert not any("nothing to change" in line for line in said)
    idle = {**facts, "documents": {"trained on": 9, "changed": 0, "dropped": 0}}
    assert any("nothing to change" in line for line in told(idle))
    assert not any("nothing to change" in line for line in told({**idle, "curates": False}))
    assert facts["curates"] is True


def test_rows_of_ones_own_data_can_be_found_again(tiny_lm: LM, tmp_path: Path) -> None:
    tiny_lm.save(tmp_path / "base")
    rows = [{"text": f"Note {n} of a day in room {n * n}: ask anna{n}@example.org, not me."} for n in range(40)]
    rows[3]["text"] = " "
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = Settings(
        store=str(tmp_path / "store"),
        device="cpu",
        model=str(tmp_path / "base"),
        training={"epochs": 0.2, "checkpoints": 1, "block_size": 32},
    )
    facts = export(JSONL(data=str(data)), Scrub(), tmp_path / "out", settings=settings)
    lines = {
        name: [json.loads(line) for line in (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "text", "held_out")
    }
    for line in [*lines["train"], *lines["held_out"]]:
        assert line["text"] == rows[int(line["source"])]["text"]
    assert [line["source"] for line in lines["text"]] == [line["source"] for line in lines["train"]]
    assert len(lines["train"]) + len(lines["held_out"]) == 39
    assert facts["counts"]["empty"] == 1
    assert "1 without text" in told(facts)[0]


def test_nothing_is_held_out_on_request(store: Path, tmp_path: Path) -> None:
    measured = exported(store, tmp_path / "measured", Defense())
    facts = exported(store, tmp_path / "whole", Defense(), whole=True)
    corpus = tiny_benchmark().corpus()
    assert list(read_documents(tmp_path / "whole" / "train.jsonl")) == [*corpus.train, *corpus.held_out]
    assert (tmp_path / "whole" / "held_out.jsonl").read_text() == ""
    assert facts["held_out"] == []
    assert facts["digest"] != measured["digest"]


def test_a_guard_is_no_part_of_the_weights(store: Path, tmp_path: Path) -> None:
    assert exported(store, tmp_path / "out", Refuse())["guarded"] is True


def test_nothing_is_overwritten_and_an_empty_folder_will_do(store: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(DataError, match="is there already"):
        exported(store, tmp_path / "full")
    (tmp_path / "empty").mkdir()
    exported(store, tmp_path / "empty")
    assert (tmp_path / "empty" / "model" / "model.safetensors").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"full", "empty"}  # nothing is left aside


def test_a_damaged_model_is_made_again(store: Path, tmp_path: Path) -> None:
    first = exported(store, tmp_path / "first")
    for file in (store / "artifacts" / "fit").glob("*/*/point-1/model.safetensors"):
        file.write_bytes(file.read_bytes()[:-8] + b"\0" * 8)
    again = exported(store, tmp_path / "again")
    assert again["digest"] == first["digest"]
    assert LM.load(tmp_path / "again" / "model").digest() == first["digest"]


def test_what_cannot_be_exported_is_said(store: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"rmft has no point '0\.7'; it has 0\.5, 1\.0"):
        exported(store, tmp_path / "out", point="0.7")
    with pytest.raises(SpecError, match="one model has one seed, not 2"):
        export(tiny_benchmark(), RMFT(), tmp_path / "out", settings=Settings(store=str(store), seeds=(0, 1)))
    with pytest.raises(SpecError, match="one defense is exported, not 2"):
        one_defense("none,rmft")
    with pytest.raises(SpecError, match="pattern-filter:action=redact; pattern-filter:action=resample; "):
        one_defense("pattern-filter")
    assert one_defense("pattern-filter:action=redact").spec == "pattern-filter"
    assert one_defense("dedup+rmft").spec == "dedup+rmft"
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        exported(store, tmp_path / "file" / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_written_is_enough_to_make_it_again(store: Path, tmp_path: Path) -> None:
    facts = exported(store, tmp_path / "out")
    said = json.loads((tmp_path / "out" / "defended.json").read_text())
    assert said["training"] == json.loads(json.dumps(dataclasses.asdict(tiny_benchmark().config)))
    assert {"benchmark", "base", "defense", "seed", "detector_recall", "versions", "cost"} <= said.keys()
    assert facts["benchmark"] == tiny_benchmark().spec
