"""Figures say what the table says: the points, the front and the intervals, drawn the same way every time."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure

from memdefense.errors import DataError, ModelError
from memdefense.leaderboard.commands import leaderboard
from memdefense.leaderboard.figure import draw, figure_of, limits_of, looks_of
from memdefense.results import Row

PLACE = {
    "benchmark": "mailbox:documents=50",
    "benchmark_version": "1",
    "model": "mailbox default",
    "attack": "prefix",
    "attack_spec": "prefix",
    "attack_family": "extraction",
    "access": "text",
}


def entry(label: str, area: float, gain: tuple[float, float, float], *points: tuple[float, float], **more: Any) -> Row:
    row: Row = {"row": "entry", **PLACE, "defense": label, "defense_label": label, "defense_spec": [label]}
    named = {f"{place}": {"delta": delta, "reduction": taken} for place, (delta, taken) in enumerate(points)}
    row |= {"resolvable": True, "note": "", "statuses": {"ok": 5}, "errors": [], "plain": {"points": named}}
    row |= {"gain": dict(zip(("value", "low", "high"), gain, strict=True)), "aurc": {"value": area}}
    row |= {"maxter": {tau: {"value": area} for tau in ("1", "5", "20")}}
    return row | more


ROWS = [
    entry("none", 40.0, (0.0, 0.0, 0.0), (12.0, 80.0), (0.5, 0.0)),
    entry("rmft", 90.0, (50.0, 35.0, 65.0), (-1.0, 95.0), (4.0, 100.0)),
    entry("dedup", 45.0, (5.0, -900.0, 910.0), (3.0, 30.0), (30.0, 60.0)),
    entry("refuse", 0.0, (-40.0, -50.0, -30.0), (100.0, 100.0)),
    entry("small", 0.0, (0.0, 0.0, 0.0), resolvable=False, note="not resolvable"),
]


def lines(figure: Figure, panel: int) -> list[tuple[str, list[tuple[float, float]]]]:
    """Of one panel, what each is called in the legend and its points."""
    return [
        (str(line.get_label()), [(float(x), float(y)) for x, y in np.asarray(line.get_data()).T])
        for line in figure.axes[panel].get_lines()
    ]


def test_points_front_and_intervals_are_those_of_the_rows() -> None:
    figure = figure_of("a table", ROWS, looks_of([ROWS]))
    points = dict(lines(figure, 0))
    assert points["rmft"] == [(0.0, 95.0), (4.0, 100.0)], "a cost below nothing is none"
    assert points["none (early stopping)"] == [(12.0, 80.0), (0.5, 0.0)]
    assert points["front"] == [(0.0, 0.0), (0.0, 95.0), (4.0, 100.0), (20.0, 100.0)]
    right = figure.axes[1]
    assert [text.get_text() for text in right.get_yticklabels()] == ["rmft", "dedup", "refuse"], "by their areas"
    drawn = [points for _, points in lines(figure, 1)[1:]]
    assert drawn[:2] == [[(35.0, 0.0), (65.0, 0.0)], [(50.0, 0.0)]]
    assert drawn[2] == [(-110.0, 1.0), (110.0, 1.0)], "an interval that says nothing does not stretch the axis"
    assert drawn[3:6] == [[(-110.0, 1.0)], [(110.0, 1.0)], [(5.0, 1.0)]], "an arrow at each end says that it goes on"
    arrows = [line.get_marker() for line in right.get_lines() if line.get_marker() in ("<", ">")]
    assert arrows == ["<", ">"], "and none at those of the others"
    assert limits_of({"value": 3.0, "low": None, "high": 8.0}) == (-110.0, 8.0), "an end that is not known is far away"
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["rmft", "dedup", "none (early stopping)", "others", "front"]


def test_an_arm_looks_the_same_in_all_tables() -> None:
    other = [
        entry("none", 1.0, (0.0, 0.0, 0.0)),
        entry("dedup", 3.0, (2.0, 1.0, 3.0)),
        entry("rmft", 2.0, (1.0, 0.0, 2.0)),
    ]
    both = looks_of([ROWS, other])
    assert both["rmft"] != both["dedup"]
    assert both["refuse"] not in (both["rmft"], both["dedup"], both["none"])
    alone = looks_of([[entry("none", 1.0, (0.0, 0.0, 0.0)), entry("dedup", 3.0, (2.0, 1.0, 3.0))]])
    assert alone["dedup"] == both["dedup"], "whatever stands beside it"
    many = [entry(f"arm{n}", 50.0 - n, (1.0, 0.0, 2.0)) for n in range(12)]
    looks = looks_of([many])
    assert len({looks[f"arm{n}"] for n in range(7)}) == 7
    assert len({looks[f"arm{n}"] for n in range(7, 12)}) == 1


@pytest.mark.parametrize("kind", ["svg", "pdf", "png"])
def test_the_same_rows_give_the_same_bytes(tmp_path: Path, kind: Any) -> None:
    (first,), (second,) = (draw(ROWS, tmp_path / folder, kind) for folder in ("one", "two"))
    assert first.name == f"mailbox-prefix.{kind}"
    assert first.read_bytes() == second.read_bytes()


def test_every_resolvable_table_has_a_file_of_its_own(tmp_path: Path) -> None:
    small = ROWS[:2]
    rows = [
        *small,
        *(row | {"data": "another"} for row in small),
        *(row | {"detector_recall": 0.7} for row in small),
        *(row | {"attack_spec": "prefix:random=2"} for row in small),
        *(row | {"attack_spec": "mia", "resolvable": False} for row in small),
    ]
    names = ["mailbox-prefix", "mailbox-prefix-2", "mailbox-recall-0.7-prefix", "mailbox-prefix-random-2"]
    assert sorted(path.stem for path in draw(rows, tmp_path)) == sorted(names)


def test_the_command_draws_and_tells_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    out = tmp_path / "figures"
    said = CliRunner().invoke(leaderboard, [str(tmp_path / "run"), "--figures", str(out), "--format", "pdf"])
    assert said.exit_code == 0, said.output
    assert f"figure: {out / 'mailbox-prefix.pdf'}" in said.output
    assert (out / "mailbox-prefix.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(DataError, match="nothing to draw"):
        draw([row | {"resolvable": False} for row in ROWS], out)
    with pytest.raises(DataError, match="choose another folder"):
        draw(ROWS, tmp_path / "run" / "results.jsonl")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else find(name, *a))
    with pytest.raises(ModelError, match=r"memdefense\[plot\]"):
        draw(ROWS, out)
