from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import NoReturn

import pytest

from memdefense import results
from memdefense.errors import DataError
from memdefense.results import Results, Writer, model_free_line, plain, read_rows, score_rows
from memdefense.score import Score, Scores


def _row(key: str, **more: object) -> results.Row:
    return {"row": "point", "key": key, "status": "ok", **more}


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "out")
    writer.row(_row("a", leakage=0.25, names=("x", "y")))
    writer.row(_row("b", leakage=math.nan))
    assert list(read_rows(tmp_path / "out")) == [_row("a", leakage=0.25, names=["x", "y"]), _row("b", leakage=None)]


def test_row_of_a_key_is_written_once_also_by_the_next_run(tmp_path: Path) -> None:
    for _ in range(2):
        writer = Writer(tmp_path)
        for key in ("a", "b", "a"):
            writer.row(_row(key))
    assert [row["key"] for row in read_rows(tmp_path)] == ["a", "b"]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_line_cut_off_by_a_kill_is_written_again(tmp_path: Path, cut: int) -> None:
    writer = Writer(tmp_path)
    for key in ("a", "b", "c"):
        writer.row(_row(key))
    path = tmp_path / "results.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    again = Writer(tmp_path)
    for key in ("a", "b", "c"):
        again.row(_row(key))
    assert path.read_bytes() == whole


def test_file_of_half_a_line_alone(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text('{"row": "po')
    Writer(tmp_path).row(_row("a"))
    assert [row["key"] for row in read_rows(tmp_path)] == ["a"]


@pytest.mark.parametrize(("line", "complaint"), [("{", "line 2, is not JSON"), ("[1]", "line 2, is no result row")])
def test_broken_line_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    (tmp_path / "results.jsonl").write_text(json.dumps(_row("a")) + "\n" + line + "\n" + json.dumps(_row("b")) + "\n")
    with pytest.raises(DataError, match=complaint):
        list(read_rows(tmp_path))


def test_no_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="memdefense run"):
        list(read_rows(tmp_path))
    with pytest.raises(DataError, match="memdefense run"):
        list(read_rows(tmp_path / "nowhere"))


def test_full_disk_is_told_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(tmp_path)

    def full(descriptor: int, data: bytes) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(DataError, match=r"No space left.*--output"):
            writer.row(_row("a"))
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda descriptor, data: 1)  # the disk took one byte
        with pytest.raises(DataError, match="No space left"):
            writer.row(_row("b"))


def test_output_below_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="--output"):
        Writer(tmp_path / "file" / "out")


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    for name in ("outcomes", "config.json.123", ".hidden"):
        (tmp_path / name).mkdir()
    Writer(tmp_path).row(_row("a"))
    (tmp_path / "notes.txt").write_text("mine")
    Writer(tmp_path).row(_row("b"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match=r"other files \(thesis\.tex\); choose a folder of its own"):
        Writer(other)
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]


def test_text_beside_the_rows_is_replaced_whole(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.text("config.json", "one")
    writer.text("config.json", "two")
    assert (tmp_path / "config.json").read_text() == "two"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "outcomes", "results.jsonl"]


def test_plain_leaves_json_values_alone() -> None:
    assert plain({"a": (1, math.inf, "x"), 2: None, "b": {"c": True}}) == {
        "a": [1, None, "x"],
        "2": None,
        "b": {"c": True},
    }


def test_scores_keep_everything_that_stands_beside_them() -> None:
    scores = Scores(Score(0.5, 0.1, 0.9, 10, False, 5), {"other": Score(1.0, 0.0, 2.0, 3)})
    written = score_rows(scores, "leakage")
    assert written["leakage"] == {
        "value": 0.5,
        "low": 0.1,
        "high": 0.9,
        "n": 10,
        "events": 5,
        "higher_is_better": False,
    }
    assert written["other"]["n"] == 3


def test_failed_rows_are_the_errors_alone() -> None:
    rows = [_row("a"), {**_row("b"), "status": "error"}, {**_row("c"), "status": "n/a"}]
    assert [row["key"] for row in Results(rows, []).failed] == ["b"]


def test_a_file_beside_the_rows_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "out")
    writer.file("outcomes/one.jsonl", lambda path: path.write_text("old"))

    def full(path: Path) -> None:
        path.write_text("ha")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DataError, match=r"cannot write results.*No space left.*run the same command again"):
        writer.file("outcomes/one.jsonl", full)
    assert [path.read_text() for path in (tmp_path / "out" / "outcomes").iterdir()] == ["old"]


@pytest.mark.parametrize(
    ("limits", "verdict"),
    [((0.51, 0.8), "gives members away"), ((0.3, 0.7), "not told from chance"), ((0.1, 0.49), "worse than chance")],
)
def test_the_verdict_on_a_split_is_by_the_interval(limits: tuple[float, float], verdict: str) -> None:
    assert verdict in model_free_line({"value": 0.4, "low": limits[0], "high": limits[1]})
