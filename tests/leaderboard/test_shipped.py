"""The results that come with memdefense: the README shows what they say, and they give nothing away."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from memdefense import pii
from memdefense.leaderboard.commands import leaderboard
from memdefense.leaderboard.table import shipped
from memdefense.results import read_rows

README = Path(__file__).parents[2] / "README.md"


def test_every_table_of_the_readme_is_what_the_program_prints_of_the_rows() -> None:
    said = CliRunner().invoke(leaderboard, ["--markdown"])
    assert said.exit_code == 0
    printed = {line for line in said.output.splitlines() if line.startswith(("| 1", "| 2", "| 3", "| 4", "**"))}
    shown = [line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith(("| #", "**"))]
    places = [
        line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("| ") and line[2].isdigit()
    ]
    assert len(places) >= 10
    assert [line for line in places if line not in printed] == []
    titles = [line for line in shown if line.startswith("**") and " v1 · " in line]
    assert titles
    assert [line for line in titles if line not in printed] == []


def test_shipped_rows_name_no_folder_and_hold_no_value() -> None:
    for path in shipped():
        text = path.read_text(encoding="utf-8")
        assert "=/" not in text
        assert '"/' not in text
        assert "@" not in text.replace("TPR@", "")
        for row in read_rows(path):
            strings = [str(value) for value in row.values() if isinstance(value, str)]
            assert not [hit.kind for text in strings for hit in pii.find(text) if hit.kind in ("email", "phone", "ssn")]
