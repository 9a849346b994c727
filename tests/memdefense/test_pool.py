"""Runs put together give what one run of all would have given, and nothing is put together that does not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import memdefense
from memdefense import DataError, MemdefenseError, SpecError
from memdefense.pool import pool
from memdefense.results import Results, Row, outcomes_path, read_rows
from memdefense.testing import tiny_benchmark

COSTS = ("provenance", "train_seconds")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Three runs on one store: seed 0, seed 1, and both at once."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs")
    for name, seeds in {"first": (0,), "second": (1,), "both": (0, 1)}.items():
        measured(folder, name, seeds=seeds)
    yield folder
    torch.set_num_threads(before)


def measured(folder: Path, name: str, attacks: str = "prefix,discoverable", **options: Any) -> Results:
    return memdefense.run(
        tiny_benchmark(),
        "rmft,pattern-filter",
        attacks,
        store=str(folder / "store"),
        output=str(folder / name),
        device="cpu",
        **options,
    )


def told(rows: Sequence[Row]) -> list[Row]:
    kept = [{name: value for name, value in row.items() if name not in COSTS} for row in rows]
    return sorted(json.loads(json.dumps(kept)), key=lambda row: json.dumps(row, sort_keys=True))


def entries(folder: Path) -> list[Row]:
    return [row for row in read_rows(folder) if row["row"] == "entry"]


def test_two_runs_put_together_are_one(runs: Path, tmp_path: Path) -> None:
    pool([runs / "first", runs / "second"], tmp_path / "pooled")
    assert told(list(read_rows(tmp_path / "pooled"))) == told(list(read_rows(runs / "both")))
    assert {entry["attack"] for entry in entries(tmp_path / "pooled")} == {"prefix", "discoverable", "worst"}
    ours, theirs = ({p.name for p in (f / "outcomes").iterdir()} for f in (tmp_path / "pooled", runs / "both"))
    assert ours == theirs
    config = json.loads((tmp_path / "pooled" / "config.json").read_text())
    assert config["settings"]["seeds"] == [0, 1]


def test_a_folder_alone_is_scored_anew_from_its_outcomes(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "first", tmp_path / "old")
    rows = [json.loads(line) for line in (tmp_path / "old" / "results.jsonl").read_text().splitlines()]
    for row in rows:
        if row["row"] == "point":  # as an older version scored it
            row |= {"leakage": 0.123, "scores": {}}
    (tmp_path / "old" / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pool([tmp_path / "old"], tmp_path / "new")
    assert told(list(read_rows(tmp_path / "new"))) == told(list(read_rows(runs / "first")))


def test_other_base_weights_do_not_compare_and_other_code_is_told(
    runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def other(name: str, value: str | None) -> Path:
        folder = tmp_path / f"{name}-{value}"
        shutil.copytree(runs / "second", folder)
        rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
        for row in rows:
            row["provenance"][name] = value
        (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    with pytest.raises(DataError, match="started from different weights"):
        pool([runs / "first", other("base", "0" * 12)], tmp_path / "bases")
    pool([runs / "first", runs / "second"], tmp_path / "same")
    pool([runs / "first", other("core", None)], tmp_path / "unknown")
    assert not caplog.messages
    pool([runs / "first", other("core", "0" * 12)], tmp_path / "cores")
    assert [message for message in caplog.messages if "different versions of the code" in message]


def test_a_defense_stands_where_it_was_attacked(runs: Path, tmp_path: Path) -> None:
    memdefense.run(
        tiny_benchmark(),
        "dedup",
        "prefix",
        store=str(runs / "store"),
        output=str(tmp_path / "dedup"),
        device="cpu",
        seeds=(0, 1),
    )
    pool([runs / "both", tmp_path / "dedup"], tmp_path / "pooled")
    arms: dict[str, set[str]] = {}
    for entry in entries(tmp_path / "pooled"):
        arms.setdefault(entry["attack"], set()).add(entry["defense_label"])
    assert arms["prefix"] == arms["worst"] | {"dedup"}
    assert "dedup" not in arms["discoverable"]


def test_what_was_read_again_counts_once(runs: Path, tmp_path: Path) -> None:
    pool([runs / "both", runs / "first"], tmp_path / "pooled")
    assert told(list(read_rows(tmp_path / "pooled"))) == told(list(read_rows(runs / "both")))


def test_rows_of_before_they_named_their_data_stand_in_one_table_with_others(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "first", tmp_path / "old")
    rows = [json.loads(line) for line in (tmp_path / "old" / "results.jsonl").read_text().splitlines()]
    for row in rows:
        del row["data"], row["detector_recall"]
    (tmp_path / "old" / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pool([tmp_path / "old", runs / "second"], tmp_path / "pooled")
    assert told(list(read_rows(tmp_path / "pooled"))) == told(list(read_rows(runs / "both")))


def test_runs_that_do_not_fit_are_named(runs: Path, tmp_path: Path) -> None:
    measured(tmp_path, "longer", training={"learning_rate": 1e-4})
    with pytest.raises(DataError, match=r"training's learning_rate is 0\.0001, not"):
        pool([runs / "first", tmp_path / "longer"], tmp_path / "pooled")
    assert not (tmp_path / "pooled").exists()


def changed(folder: Path, copy: Path, **fields: object) -> Path:
    """A copy of a results folder whose point rows have other fields."""
    shutil.copytree(folder, copy)
    rows = [json.loads(line) for line in (copy / "results.jsonl").read_text().splitlines()]
    lines = [json.dumps(row | fields if row["row"] == "point" else row) + "\n" for row in rows]
    (copy / "results.jsonl").write_text("".join(lines))
    return copy


def test_one_point_cannot_be_measured_twice(runs: Path, tmp_path: Path) -> None:
    other = changed(runs / "first", tmp_path / "other", leakage=0.5)
    with pytest.raises(DataError, match=r"none under prefix, seed 0, point .* with other numbers"):
        pool([runs / "first", other], tmp_path / "pooled")


def of_other_code(folder: Path, copy: Path) -> Path:
    """A copy of a results folder whose rows have other recipes, and whose costs leave one out."""
    shutil.copytree(folder, copy)
    rows = [json.loads(line) for line in (copy / "results.jsonl").read_text().splitlines()]
    for row in rows:
        if row["row"] == "point":
            before = outcomes_path(copy, row)
            row |= {"recipe": row["recipe"][::-1], "d": {**row["d"], "continuation": None}}
            before.rename(outcomes_path(copy, row))
    (copy / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return copy


def test_the_same_numbers_of_other_code_are_the_same_point(runs: Path, tmp_path: Path) -> None:
    other = of_other_code(runs / "first", tmp_path / "other")
    pool([runs / "both", other], tmp_path / "pooled")
    assert told(list(read_rows(tmp_path / "pooled"))) == told(list(read_rows(runs / "both")))


def test_other_numbers_of_a_single_unit_are_not(runs: Path, tmp_path: Path) -> None:
    other = of_other_code(runs / "first", tmp_path / "other")
    path = next(iter(sorted((other / "outcomes").iterdir())))
    first, *rest = path.read_text().splitlines()
    outcome = json.loads(first)
    outcome["values"] = {name: value + 1.0 for name, value in outcome["values"].items()}
    path.write_text("\n".join([json.dumps(outcome), *rest]) + "\n")
    with pytest.raises(DataError, match="with other numbers"):
        pool([runs / "both", other], tmp_path / "pooled")


@pytest.mark.parametrize("fields", [{"status": "collapsed"}, {"d": {"worst": 50.0}}])
def test_nor_with_another_cost_or_status(runs: Path, tmp_path: Path, fields: dict[str, object]) -> None:
    other = changed(runs / "first", tmp_path / "other", **fields)
    with pytest.raises(DataError, match="with other numbers"):
        pool([runs / "first", other], tmp_path / "pooled")


def test_arms_that_pay_other_costs_are_not_compared(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "second", tmp_path / "older")
    rows = [json.loads(line) for line in (tmp_path / "older" / "results.jsonl").read_text().splitlines()]
    for row in rows:
        if row["row"] == "point":
            del row["d"]["accuracy"]
    (tmp_path / "older" / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"different costs: .*first has accuracy, .*older has continuation, copy, perp"):
        pool([runs / "first", tmp_path / "older"], tmp_path / "pooled")


@pytest.mark.parametrize("turned", [False, True])
def test_a_setting_that_one_run_does_not_know_of_is_a_difference(runs: Path, tmp_path: Path, turned: bool) -> None:
    shutil.copytree(runs / "second", tmp_path / "second")
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    config["settings"]["novel"] = 1
    (tmp_path / "second" / "config.json").write_text(json.dumps(config))
    folders = [runs / "first", tmp_path / "second"]
    with pytest.raises(DataError, match="novel is"):
        pool(folders[::-1] if turned else folders, tmp_path / "pooled")


def test_what_failed_once_and_was_measured_elsewhere_did_not_fail(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "first", tmp_path / "failed")
    rows = [json.loads(line) for line in (tmp_path / "failed" / "results.jsonl").read_text().splitlines()]
    points = [row for row in rows if row["row"] == "point"]
    mine = next(row for row in points if row["defense_label"] != "none")
    unit = (mine["defense_spec"], mine["attack_spec"])
    kept = [row for row in points if (row["defense_spec"], row["attack_spec"]) != unit]
    kept.append(mine | {"status": "error", "point": "", "error": "out of memory", "leakage": None})
    (tmp_path / "failed" / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    alone = pool([tmp_path / "failed"], tmp_path / "alone")
    assert any(row["status"] == "error" for row in alone.points)
    both = pool([tmp_path / "failed", runs / "first"], tmp_path / "both")
    assert not any(row["status"] == "error" for row in both.points)
    assert told(list(read_rows(tmp_path / "both"))) == told(list(read_rows(runs / "first")))


def test_where_the_undefended_run_failed_no_worst_attack_is_known(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "first", tmp_path / "failed")
    rows = [json.loads(line) for line in (tmp_path / "failed" / "results.jsonl").read_text().splitlines()]
    kept = [row for row in rows if row["row"] == "point"]
    spec = next(row["attack_spec"] for row in kept if row["attack_spec"] != "prefix")
    error = {"status": "error", "point": "", "error": "out of memory", "leakage": None}
    gone = [row for row in kept if (row["defense_label"], row["attack_spec"]) == ("none", spec)]
    kept = [row for row in kept if row not in gone] + [gone[0] | error]
    (tmp_path / "failed" / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    pool([tmp_path / "failed"], tmp_path / "pooled")
    worst = [entry for entry in entries(tmp_path / "pooled") if entry["attack"] == "worst"]
    assert worst
    assert all(f"{spec} failed, and may be the worst attack" in entry["note"] for entry in worst)


def test_every_seed_needs_its_undefended_run(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "first", tmp_path / "first")
    lines = (tmp_path / "first" / "results.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["defense_label"] != "none"]
    (tmp_path / "first" / "results.jsonl").write_text("".join(kept))
    with pytest.raises(DataError, match="no folder the undefended run of that seed"):
        pool([tmp_path / "first"], tmp_path / "pooled")


def test_missing_things_are_named(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "first", tmp_path / "first")
    next((tmp_path / "first" / "outcomes").iterdir()).unlink()
    complaints: list[tuple[list[Path], type[MemdefenseError], str]] = [
        ([], SpecError, "no results were named"),
        ([tmp_path / "nowhere"], DataError, "config.json cannot be read"),
        ([tmp_path / "first"], DataError, "is missing: without outcomes nothing can be scored anew"),
    ]
    for folders, kind, complaint in complaints:
        with pytest.raises(kind, match=complaint):
            pool(folders, tmp_path / "pooled")
        assert not (tmp_path / "pooled").exists()


def test_rows_of_an_older_version_are_not_mixed_with_new_ones(runs: Path) -> None:
    before = (runs / "first" / "results.jsonl").read_bytes()
    for folders in ([runs / "first"], [runs / "second"]):
        with pytest.raises(DataError, match="nothing is overwritten"):
            pool(folders, runs / "first")
    assert (runs / "first" / "results.jsonl").read_bytes() == before
