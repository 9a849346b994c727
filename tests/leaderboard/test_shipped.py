"""The results that come with memdefense: the README shows what they say, and they give nothing away."""

from __future__ import annotations

import itertools
import re
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from memdefense import pii
from memdefense.leaderboard.commands import leaderboard
from memdefense.leaderboard.table import shipped
from memdefense.results import outcomes_path, read_rows

ROOT = Path(__file__).parents[2]
_VERSION = re.compile(r" v\d+ · ")
PAGES = ("README.md", "leaderboard/RESULTS.md")


def tables(text: str) -> list[str]:
    """The lines of MaxTER tables: titles, headings, and rows, which begin with a place."""
    lines = [line for line in text.splitlines() if line.startswith(("| ", "**"))]
    return [line for line in lines if line[2:3].isdigit() or line.startswith("| #") or _VERSION.search(line)]


@pytest.mark.parametrize("page", PAGES)
def test_every_table_of_the_pages_is_what_the_program_prints_of_the_rows(page: str) -> None:
    said = CliRunner().invoke(leaderboard, ["--markdown"])
    assert said.exit_code == 0
    printed = tables(said.output)
    shown = tables((ROOT / page).read_text(encoding="utf-8"))
    assert len(shown) >= 10
    assert [line for line in shown if line not in printed] == []


def test_the_results_page_leaves_no_table_out() -> None:
    said = CliRunner().invoke(leaderboard, ["--markdown"])
    assert tables(said.output) == tables((ROOT / PAGES[1]).read_text(encoding="utf-8"))


def test_shipped_rows_name_no_folder_and_hold_no_value() -> None:
    for path in shipped():
        text = path.read_text(encoding="utf-8")
        assert "=/" not in text
        assert '"/' not in text
        assert "@" not in text.replace("TPR@", "")
        for row in read_rows(path):
            strings = [str(value) for value in row.values() if isinstance(value, str)]
            assert not [hit.kind for text in strings for hit in pii.find(text) if hit.kind in ("email", "phone", "ssn")]


def test_runs_that_were_not_made_as_one_stand_apart() -> None:
    said = CliRunner().invoke(leaderboard, ["--markdown"])
    told = [path.stem for path in shipped() if any(row["row"] == "entry" for row in read_rows(path))]
    assert [line[3:] for line in said.output.splitlines() if line.startswith("## ")] == told
    assert len(told) >= 2
    assert said.output.count("[95 % interval]") == 1


def test_every_arm_of_all_defenses_on_mailbox_has_five_points_a_seed() -> None:
    """Three seeds, each point measured by both attacks and none in error; the model never trained is one point."""
    rows = [row for row in read_rows(ROOT / "leaderboard" / "results" / "mailbox.jsonl") if row["row"] == "entry"]
    assert {(row["benchmark"], row["benchmark_version"]) for row in rows} == {("mailbox", "3")}
    arms = {row["defense_label"] for row in rows}
    assert len(arms) == 24
    assert {(row["defense_label"], row["attack"]) for row in rows} == set(itertools.product(arms, ("prefix", "mia")))
    for row in rows:
        points = 1 if row["defense_label"] == "never-trained" else 5
        assert row["seeds"] == [0, 1, 2]
        assert row["errors"] == row["left_out"] == []
        assert set(row["statuses"]) <= {"ok", "no-op", "collapsed"}
        assert sum(row["statuses"].values()) == points * 3
        for read in (*row["readings"].values(), row["deltas"]):
            assert len(read) == points + 1  # and to do nothing
            assert all(len(seeds) == 3 for seeds in read.values())


@pytest.mark.parametrize("archive", sorted((ROOT / "leaderboard" / "outcomes").glob("*.tar.xz")), ids=lambda p: p.name)
def test_the_outcomes_that_ship_are_those_of_the_rows(archive: Path, tmp_path: Path) -> None:
    name = archive.name.removesuffix(".tar.xz")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix not in (".json", ".jsonl")]
    whole = list(read_rows(tmp_path / name))
    shown = list(read_rows(ROOT / "leaderboard" / "results" / f"{name}.jsonl"))
    assert [row for row in shown if row not in whole] == []
    points = [row for row in whole if row["row"] == "point" and row["status"] in ("ok", "no-op", "collapsed")]
    assert len(points) > 10
    assert all(outcomes_path(tmp_path / name, row).is_file() for row in points)
