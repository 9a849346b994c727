"""The table of `memdefense attack`: what each attack got out of a model that the user brought."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from memdefense.results import Row, model_free_line

_FOOT = (
    "[95 % interval]. leakage: excess over chance; 1 is everything, 0 is chance, below 0 the members look the less "
    "known. Members and non-members are taken as exchangeable; the model-free baseline is a classifier that sees the "
    "texts and no model."
)
_IN_PART = (
    "without the scores that need the model before it saw the members; give --reference with its folder or hub id"
)

_UNRESOLVED = (
    "no leakage can be told, since too little of its kind stands among the non-members to hold the members against; "
    "bring more of them, with values such as the members' (--scores shows what was found)"
)


def print_attacks(rows: Sequence[Row], *, scores: bool = False) -> None:
    """Prints one line per attack and seed, and with ``scores`` every score of each."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 100)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("attack", "access", "seed", "leakage", "n", "seconds", "status"):
        right = column in ("leakage", "n", "seconds", "seed")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in rows:
        headline = (row.get("scores") or {}).get("leakage") or {}
        seconds = (row.get("cost") or {}).get("seconds")
        table.add_row(
            row["attack_spec"],
            row["access"],
            str(row["seed"]),
            _interval(headline),
            str(headline.get("n", "-")),
            "-" if seconds is None else f"{seconds:.1f}",
            row["status"],
        )
    console.print(table)
    for row in rows:
        if row["error"]:
            console.print(f"{row['attack_spec']}: {row['error']}", markup=False, highlight=False)
        elif _interval(row["scores"]["leakage"]) == "-":
            console.print(f"{row['attack_spec']}: {_UNRESOLVED}", markup=False, highlight=False)
        elif row["notes"]["without_base"]:
            console.print(f"{row['attack_spec']}: {_IN_PART}", markup=False, highlight=False)
    for row in rows:
        blind = (row.get("scores") or {}).get("auc_model_free")
        if blind:
            console.print(f"{row['attack_spec']}: {model_free_line(blind)}", markup=False, highlight=False)
    if scores:
        for row in rows:
            _print_scores(console, row)
    console.print(_FOOT, highlight=False, markup=False, style="dim")


def _print_scores(console: Console, row: Row) -> None:
    table = Table(box=None, pad_edge=False, title=f"{row['attack_spec']}, seed {row['seed']}", title_justify="left")
    table.add_column("score")
    table.add_column("value", justify="right")
    table.add_column("n", justify="right")
    for name, score in (row.get("scores") or {}).items():
        table.add_row(name, _interval(score), str(score["n"]))
    console.print(table)
    console.print()


def _interval(score: dict[str, Any]) -> str:
    value, low, high = (score.get(name) for name in ("value", "low", "high"))
    if value is None or value != value:
        return "-"
    if low is None or high is None or low != low or high != high:
        return f"{value:.3f}"
    return f"{value:.3f} [{low:.2f}, {high:.2f}]"
