"""The MaxTER table: what each defense is worth against each attack, in the terminal or as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Literal

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from memdefense.errors import DataError
from memdefense.published import published
from memdefense.results import Row

from .cells import PARTS, TPR, cells, columns, number, rank
from .groups import data_of, points_of, setting_of, tables_of
from .matrix import matrix_of
from .notes import notes_of

_WIDTH = 110  # what the table needs to be read with ease
_LEAST = {"defense": 8, "leakage": 12, TPR: 11}  # an interval stays unbroken; a long name may fold
_LEFT = ("#", "defense", "status")
_FOOT = (
    "[95 % interval]. leakage ↓: excess over chance at the end, at most 1; of several scores the one chosen on other "
    "seeds, for which its lower limit allows. TPR@1 % ↓: members found by the attack's headline score at the end, at "
    "one false alarm in 100 non-members; it takes 1,000 of them. MaxTER@τ ↑: percent of the undefended leakage removed "
    "at a utility cost d of at most τ %. AURC ↑: mean of MaxTER over τ from 0 to 20. "
    "gain ↑: AURC less that of stopping the undefended run early. d ↓: percent of utility lost at the end, the worst "
    "of perplexity, accuracy, continuation and copy. nothing: no point stayed within the budget on the other seeds. "
    "#: the best and the worst place that persons (permutation) and runs (Student's t) leave open, Holm over all "
    "pairs; arms whose places overlap are ties. Within a family the worst attack ranks: of each point the one that "
    "leaks most, chosen on other seeds. status: points measured, and seconds of training per run."
)


def shipped() -> list[Path]:
    """The results that come with the package.

    Raises:
        DataError: there are none.
    """
    folder = Path(str(files("memdefense.leaderboard"))) / "results"
    found = sorted(folder.glob("*.jsonl"))
    if not found:
        raise DataError("no results were named, and none come with this installation; give a folder of memdefense run")
    return found


def print_tables(rows: Sequence[Row], *, points: bool = False, markdown: bool = False, legend: bool = True) -> None:
    """Prints one table per benchmark, model and attack.

    Args:
        rows: point and entry rows; a later entry of a key takes the place of an earlier one.
        points: also every operating point.
        markdown: for a document instead of a terminal.
        legend: also what the columns mean.

    Raises:
        DataError: there is no entry.
    """
    console = Console(soft_wrap=markdown)
    if not console.is_terminal:  # a file or a pipe has no width; rich would take 80
        console.width = max(console.width, _WIDTH)
    claims = published()
    tables = tables_of(rows)
    for title, group in tables:
        if group[0].get("attacks"):
            same = [entry for _, other in tables for entry in other if data_of(entry) == data_of(group[0])]
            name = f"{setting_of(group[0])} · AURC % by {group[0]['attack_family']} attack, leakage beneath"
            (_print_markdown if markdown else _print_table)(console, name, *matrix_of(group, same))
            if not markdown:
                console.print()
        mine = points_of(group[0], rows)
        names, lines = columns(group, mine), [cells(entry, group, mine) for entry in sorted(group, key=rank)]
        overfit = max((row.get("overfit_percent") or 0.0 for row in mine), default=0.0)
        heading = title + (
            f"  (overfit: the undefended perplexity ends {overfit:.0f} % above its minimum)" if overfit > 5 else ""
        )
        if markdown:
            _print_markdown(console, heading, names, lines)
        else:
            _print_table(console, heading, names, lines)
        for note in notes_of(group, mine, claims):
            _say(console, f"- {note}" if markdown else note, markdown)
        console.print()
        if points and not group[0].get("attacks"):
            _print_points(console, mine)
    if legend:
        console.print(_FOOT, highlight=False, markup=False, style="dim")


def _print_table(console: Console, heading: str, names: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for place, column in enumerate(names):
        name = column.replace("@", "\n@") if "@" in column else column.replace(" %", "\n%")
        justify: Literal["left", "right"] = "left" if column in _LEFT else "right"
        table.add_column(
            name, justify=justify, overflow="fold", min_width=_least(column, [line[place] for line in lines])
        )
    for line in lines:
        table.add_row(*map(Text, line))
    console.print(Text(heading, style="bold"))
    console.print(table)


def _least(column: str, texts: Sequence[str]) -> int | None:
    """The least width of a column: no word of a status is broken."""
    if column == "status":
        return max(len(word) for text in texts for word in text.split())
    return _LEAST.get(column)


def _print_markdown(console: Console, heading: str, names: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    rows = [names, tuple("---" if name in _LEFT else "---:" for name in names), *lines]
    console.print(f"**{heading}**\n", markup=False, highlight=False)
    for row in rows:
        escaped = (cell.replace("|", "\\|").replace("\n", "<br>") for cell in row)
        console.print("| " + " | ".join(escaped) + " |", markup=False, highlight=False)
    console.print()


def _say(console: Console, note: str, markdown: bool) -> None:
    """One note; in a terminal its further lines are set in."""
    text = Text(note)
    console.print(text if markdown else Padding(text, (0, 0, 0, 2)))


def _print_points(console: Console, rows: Sequence[Row]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    parts = tuple(f"d {short}\n%" for short in PARTS.values())
    for column in ("defense", "seed", "point", "leakage", "hits", *parts, "status"):
        table.add_column(column, justify="right" if column not in _LEFT else "left", overflow="fold")
    for row in rows:
        if row["status"] in ("error", "n/a"):
            table.add_row(
                row["defense_spec"], str(row["seed"]), row["point"], "", "", *("" for _ in PARTS), row["status"]
            )
            continue
        d = row["d"]
        hits = row["scores"].get("hit_rate", {})
        table.add_row(
            row["defense_spec"],
            str(row["seed"]),
            row["point"],
            number(row["leakage"], 3),
            f"{hits['events']}/{hits['n']}" if hits else "",
            *(number(d.get(name), 1) for name in PARTS),
            row["status"],
        )
    console.print(table)
