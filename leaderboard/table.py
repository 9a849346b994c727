"""The MaxTER table: what each defense is worth against each attack, in the terminal or as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from memdefense.errors import DataError
from memdefense.published import Claim, claim_lines, published
from memdefense.results import Row

_COLUMNS = ("#", "defense", "leakage", "MaxTER@1 %", "MaxTER@5 %", "MaxTER@20 %", "AURC %", "gain %", "d %", "status")
_WIDTH = 100  # what the table needs to be read with ease
_LEFT = ("#", "defense", "status")
_PARTS = {"perplexity": "perpl.", "continuation": "contin.", "copy": "copy"}
_FOOT = (
    "[95 % interval]. leakage ↓: excess over chance at the end, 0 to 1. MaxTER@τ ↑: percent of the undefended leakage "
    "removed at a utility cost d of at most τ %. AURC ↑: mean of MaxTER over τ from 0 to 20. gain ↑: AURC less that of "
    "stopping the undefended run early. d ↓: percent of utility lost at the end, the worst of perplexity, continuation "
    "and copy. #: 1 + how many are better in gain beyond both intervals; equal numbers are ties. status: points "
    "measured, and seconds of training per run."
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
    if not console.is_terminal:  # a file or a pipe has no width; rich would take 80
        console.width = max(console.width, _WIDTH)
    claims = published()
    entries = {_place(row): row for row in rows if row["row"] == "entry"}
    if not entries:
        raise DataError("these results hold no entry yet: the run was interrupted; run the same command again")
    for title, group in _grouped(list(entries.values())):
        mine = [row for row in rows if row["row"] == "point" and _title(row) == title]
        lines = [[_place_of(entry, group), *_line(entry, mine)] for entry in sorted(group, key=_rank)]
        overfit = max((row.get("overfit_percent") or 0.0 for row in mine), default=0.0)
        heading = title + (
            f"  (overfit: the undefended perplexity ends {overfit:.0f} % above its minimum)" if overfit > 5 else ""
        )
        notes = _notes(group)
        notes += _chance(mine)
        if markdown:
            _print_markdown(console, heading, lines)
        else:
            _print_table(console, heading, lines)
        notes += [line for entry in group for line in _claimed(entry, claims)]
        for note in dict.fromkeys(notes):
            _say(console, f"- {note}" if markdown else note, markdown)
        console.print()
        if points:
            _print_points(console, mine)
    console.print(_FOOT, highlight=False, markup=False, style="dim")


def _print_table(console: Console, heading: str, lines: Sequence[Sequence[str]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in _COLUMNS:
        name = column.replace("MaxTER", "MaxTER\n") if "@" in column else column.replace(" %", "\n%")
        justify: Literal["left", "right"] = "left" if column in _LEFT else "right"
        table.add_column(name, justify=justify, overflow="fold", min_width=8 if column == "defense" else None)
    for line in lines:
        table.add_row(*map(Text, line))
    console.print(Text(heading, style="bold"))
    console.print(table)


def _print_markdown(console: Console, heading: str, lines: Sequence[Sequence[str]]) -> None:
    rows = [_COLUMNS, tuple("---" if name in _LEFT else "---:" for name in _COLUMNS), *lines]
    console.print(f"**{heading}**\n", markup=False, highlight=False)
    for row in rows:
        cells = (cell.replace("|", "\\|").replace("\n", "<br>") for cell in row)
        console.print("| " + " | ".join(cells) + " |", markup=False, highlight=False)
    console.print()


def _say(console: Console, note: str, markdown: bool) -> None:
    """One note; in a terminal its further lines are set in."""
    text = Text(note)
    console.print(text if markdown else Padding(text, (0, 0, 0, 2)))


def _print_points(console: Console, rows: Sequence[Row]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    parts = ("d perpl.\n%", "d contin.\n%", "d copy\n%")
    for column in ("defense", "seed", "point", "leakage", "hits", *parts, "status"):
        table.add_column(column, justify="right" if column not in _LEFT else "left", overflow="fold")
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
    """One entry as the cells of `_COLUMNS`, the first aside."""
    rows = [row for row in points if row["defense_label"] == entry["defense_label"]]
    mine = [row for row in rows if row["status"] not in ("error", "n/a")]
    final = _final(mine)
    seconds = _mean([row["cost"].get("train_seconds", 0.0) + row["cost"].get("edit_seconds", 0.0) for row in final])
    status = [_statuses(entry.get("statuses") or {}), *([] if entry.get("resolvable") or not final else ["unresolved"])]
    status += [f"{seconds:.0f} s"] if seconds is not None else []
    scores = [(row.get("scores") or {}).get("leakage") or {"value": row["leakage"]} for row in final]
    leakage = {side: _mean([score.get(side) for score in scores]) for side in ("value", "low", "high")}
    head = [entry["defense_label"], _interval(leakage, 2, 3)]
    tail = [_cost(final), "\n".join(status)]
    if not entry.get("resolvable"):
        return [*head, "-", "-", "-", "-", "-", *tail]
    budgets = [_interval(entry["maxter"][tau], 0, 1) for tau in ("1", "5", "20")]
    return [*head, *budgets, _interval(entry["aurc"], 0, 1), _interval(entry["gain"], 0, 1, sign=True), *tail]


def _statuses(counts: dict[str, int]) -> str:
    named = sorted(counts.items(), key=lambda item: (item[0] != "ok", item[0]))
    return "\n".join(f"{count} {name}" for name, count in named)


def _cost(final: Sequence[Row]) -> str:
    """The utility cost at the end, and which part of it is the worst."""
    means = {name: _mean([row["d"].get(name) for row in final]) for name in (*_PARTS, "worst")}
    known = {name: mean for name, mean in means.items() if mean is not None and name != "worst"}
    worst = means["worst"]
    if worst is None:
        return "-"
    return f"{worst:.1f}" + (f"\n{_PARTS[max(known, key=lambda name: known[name])]}" if known else "")


def _final(rows: Sequence[Row]) -> list[Row]:
    """The last operating point of each seed."""
    last: dict[int, Row] = {}
    for row in rows:
        last[row["seed"]] = row
    return list(last.values())


def _notes(entries: Sequence[Row]) -> list[str]:
    """Errors and what could not be resolved; a note that several entries share is one line."""
    found: dict[str, list[str]] = {}
    for entry in entries:
        unresolved = "" if entry.get("resolvable") else str(entry.get("note", ""))
        for note in entry.get("errors") or [unresolved]:
            if note:
                found.setdefault(note, []).append(entry["defense_label"])
    return [note if len(who) == len(entries) else f"{', '.join(who)}: {note}" for note, who in found.items()]


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
            value, low, high = (_number(free[side], 2) for side in ("value", "low", "high"))
            notes.append(f"model-free baseline: AUC {value} [{low}, {high}], {verdict}")
        if "hit_rate" in scores:
            hit, chance, held = scores["hit_rate"], scores["chance"], scores["held_out_rate"]
            buckets = ", ".join(
                f"{name}: {_number(scores[f'hit_rate_{name}']['value'], 2)} of {scores[f'hit_rate_{name}']['n']}"
                for name in ("1", "2-4", "5-16", ">16")
                if scores.get(f"hit_rate_{name}", {}).get("n")
            )
            # Chance by twins rests on the members, chance by strangers on the held-out values.
            twins = (chance["n"], chance["events"]) != (held["n"], held["events"])
            notes.append(
                f"undefended, seed {row['seed']}: {hit['events']} of {hit['n']} member values extracted; chance "
                f"{_number(chance['value'], 3)} ({'twins' if twins else 'held-out values, not exchangeable'}); "
                f"held-out values {held['events']} of {held['n']}" + (f"; by occurrences {buckets}" if buckets else "")
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


def _place_of(entry: Row, group: Sequence[Row]) -> str:
    """1 + how many entries are better beyond both intervals; "-" where there is no gain to compare."""
    mine = entry.get("gain") or {}
    if not entry.get("resolvable") or mine.get("value") is None:
        return "-"
    gains = [other.get("gain") or {} for other in group if other.get("resolvable") and other is not entry]
    return str(1 + sum(_above(gain, mine) for gain in gains if gain.get("value") is not None))


def _above(gain: dict[str, Any], other: dict[str, Any]) -> bool:
    low = gain["value"] if gain.get("low") is None else gain["low"]
    high = other["value"] if other.get("high") is None else other["high"]
    return bool(gain["value"] > other["value"] and low > high)


def _claimed(entry: Row, claims: Sequence[Claim]) -> list[str]:
    """What was published of an entry's defense, one line per source."""
    extracts = entry.get("attack_family") in (None, "extraction")  # rates of extraction say nothing of membership
    return claim_lines(
        [
            claim
            for claim in claims
            if claim["defense"] == entry["defense"] and (extracts or claim["metric"] not in ("TER", "SER"))
        ]
    )


def _interval(score: dict[str, Any], limits: int, digits: int, *, sign: bool = False) -> str:
    """A value, and its limits on a second line; a limit beyond 999 is shown as infinite."""
    if score.get("value") is None:
        return "-"
    text = f"{score['value']:{'+' if sign else ''}.{digits}f}"
    if score.get("low") is None or score.get("high") is None:
        return text
    low, high = (
        f"{score[side]:.{limits}f}" if abs(score[side]) < 1000 else ("-∞" if score[side] < 0 else "∞")
        for side in ("low", "high")
    )
    return f"{text}\n[{low},{high}]"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
