"""The MaxTER table: what each defense is worth against each attack, in the terminal or as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from memdefense.errors import DataError
from memdefense.results import Row

_COLUMNS = ("defense", "leakage", "MaxTER@1", "MaxTER@5", "MaxTER@20", "AURC", "gain", "cost d", "train", "status")
_FOOT = (
    "leakage ↓: excess over chance at the end, undefended → defended. MaxTER@τ ↑: percent of it removed at a utility "
    "cost d of at most τ %, [95 % interval]. AURC ↑: mean of MaxTER over τ from 0 to 20. gain ↑: AURC less that of "
    "stopping the undefended run early. d ↓: percent of utility lost at the end, the worst of perplexity, continuation, copy."
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


def print_tables(rows: Sequence[Row], *, points: bool = False, markdown: bool = False) -> None:
    """Prints one table per benchmark, model and attack.

    Args:
        rows: point and entry rows; a later entry of a key takes the place of an earlier one.
        points: also every operating point.
        markdown: for a document instead of a terminal.

    Raises:
        DataError: there is no entry.
    """
    console = Console(soft_wrap=markdown)
    entries = {_place(row): row for row in rows if row["row"] == "entry"}
    if not entries:
        raise DataError("these results hold no entry yet: the run was interrupted; run the same command again")
    for title, group in _grouped(list(entries.values())):
        mine = [row for row in rows if row["row"] == "point" and _title(row) == title]
        lines = [_line(entry, mine) for entry in sorted(group, key=_rank)]
        overfit = max((row.get("overfit_percent") or 0.0 for row in mine), default=0.0)
        heading = title + (
            f"  (overfit: the undefended perplexity ends {overfit:.0f} % above its minimum)" if overfit > 5 else ""
        )
        notes = [f"{entry['defense_label']}: {note}" for entry in group for note in [_note(entry)] if note]
        notes += _chance(mine)
        if markdown:
            _print_markdown(console, heading, lines)
        else:
            _print_table(console, heading, lines)
        for note in dict.fromkeys(notes):
            console.print(f"  {note}", highlight=False, markup=False)
        console.print()
        if points:
            _print_points(console, mine)
    console.print(_FOOT, highlight=False, markup=False, style="dim")


def _print_table(console: Console, heading: str, lines: Sequence[Sequence[str]]) -> None:
    table = Table(title=heading, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in ("defense", "status") else "right", overflow="fold")
    for line in lines:
        table.add_row(*line)
    console.print(table)


def _print_markdown(console: Console, heading: str, lines: Sequence[Sequence[str]]) -> None:
    console.print(f"**{heading}**\n", markup=False, highlight=False)
    console.print("| " + " | ".join(_COLUMNS) + " |", markup=False, highlight=False)
    console.print("|" + " --- |" * len(_COLUMNS), markup=False, highlight=False)
    for line in lines:
        console.print(
            "| " + " | ".join(cell.replace("\n", "<br>") for cell in line) + " |", markup=False, highlight=False
        )
    console.print()


def _print_points(console: Console, rows: Sequence[Row]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("defense", "seed", "point", "leakage", "hits", "d perplexity", "d continuation", "d copy", "status"):
        table.add_column(column, justify="right" if column not in ("defense", "status") else "left")
    for row in rows:
        if row["status"] in ("error", "n/a"):
            table.add_row(row["defense_spec"], str(row["seed"]), row["point"], "", "", "", "", "", row["status"])
            continue
        d = row["d"]
        hits = row["scores"].get("hit_rate", {})
        table.add_row(
            row["defense_spec"],
            str(row["seed"]),
            row["point"],
            _number(row["leakage"], 3),
            f"{hits['events']}/{hits['n']}" if hits else "",
            *(_number(d.get(name), 1) for name in ("perplexity", "continuation", "copy")),
            row["status"],
        )
    console.print(table)


def _line(entry: Row, points: Sequence[Row]) -> list[str]:
    """One entry as the cells of `_COLUMNS`."""
    mine = [
        row
        for row in points
        if row["defense_label"] == entry["defense_label"] and row["status"] not in ("error", "n/a")
    ]
    final = _final(mine)
    statuses = entry.get("statuses", {})
    status = ", ".join(
        f"{name}" if len(statuses) == 1 else f"{name} {count}" for name, count in sorted(statuses.items())
    )
    before = (entry.get("undefended") or {}).get("value")
    after = _mean([row["leakage"] for row in final])
    cost = _mean([row["d"]["worst"] for row in final])
    head = [entry["defense_label"], f"{_number(before, 3)} → {_number(after, 3)}" if final else ""]
    tail = [_number(cost, 1), _seconds(_mean([row["cost"].get("train_seconds") for row in final])), status]
    if not entry.get("resolvable"):
        return [*head, *["not resolvable" if final else ""], "", "", "", "", *tail]
    budgets = [_percent(entry["maxter"][tau]) for tau in ("1", "5", "20")]
    return [*head, *budgets, _percent(entry["aurc"]), _percent(entry["gain"], sign=True), *tail]


def _final(rows: Sequence[Row]) -> list[Row]:
    """The last operating point of each seed."""
    last: dict[int, Row] = {}
    for row in rows:
        last[row["seed"]] = row
    return list(last.values())


def _note(entry: Row) -> str:
    if entry.get("errors"):
        return "; ".join(entry["errors"])
    return "" if entry.get("resolvable") else str(entry.get("note", ""))


def _chance(rows: Sequence[Row]) -> list[str]:
    """What membership and extraction numbers of these rows must be read against."""
    notes = []
    undefended = _final([row for row in rows if row["defense_spec"] == "none" and row["status"] == "ok"])
    for row in undefended[:1]:
        scores = row["scores"]
        if "auc_model_free" in scores:
            free = scores["auc_model_free"]
            verdict = (
                "the split gives members away: no number here can be trusted"
                if (free["low"] or 0) > 0.5
                else "no better than chance"
            )
            notes.append(
                f"model-free baseline: AUC {_number(free['value'], 2)} [{_number(free['low'], 2)}, {_number(free['high'], 2)}], {verdict}"
            )
        if "hit_rate" in scores:
            hit, chance, held = scores["hit_rate"], scores["chance"], scores["held_out_rate"]
            buckets = ", ".join(
                f"{name}: {_number(scores[f'hit_rate_{name}']['value'], 2)} of {scores[f'hit_rate_{name}']['n']}"
                for name in ("1", "2-4", "5-16", ">16")
                if scores.get(f"hit_rate_{name}", {}).get("n")
            )
            notes.append(
                f"undefended, seed {row['seed']}: {hit['events']} of {hit['n']} member values extracted; chance "
                f"{_number(chance['value'], 3)}, held-out values {held['events']} of {held['n']}; by occurrences {buckets}"
            )
        if (row.get("detector") or {}).get("recall") is not None:
            notes.append(
                f"the defender's detector finds {100 * row['detector']['recall']:.1f} % of the secrets' occurrences"
            )
    return notes


def _grouped(entries: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    for title in dict.fromkeys(_title(entry) for entry in entries):
        yield title, [entry for entry in entries if _title(entry) == title]


def _title(row: Row) -> str:
    return f"{row['benchmark']} v{row['benchmark_version']} · {row['model']} · {row['attack_spec']} ({row['access']})"


def _place(row: Row) -> tuple[str, str]:
    return _title(row), str(row["defense_label"])


def _rank(entry: Row) -> tuple[bool, float]:
    gain = (entry.get("gain") or {}).get("value")
    return gain is None, -(gain if gain is not None else 0.0)


def _percent(value: dict[str, Any], *, sign: bool = False) -> str:
    if value["value"] is None:
        return "-"
    text = f"{value['value']:+.1f}" if sign else f"{value['value']:.1f}"
    if value["low"] is None or value["high"] is None:
        return text
    return f"{text}\n[{value['low']:.0f}, {value['high']:.0f}]"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} s"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
