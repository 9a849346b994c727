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
_LEAST = {"defense": 8, "leakage": 12}  # an interval stays unbroken; a long name may fold
_LEFT = ("#", "defense", "status")
_PARTS = {"perplexity": "perpl.", "continuation": "contin.", "copy": "copy"}
_FOOT = (
    "[95 % interval]. leakage ↓: excess over chance at the end, 0 to 1. MaxTER@τ ↑: percent of the undefended leakage "
    "removed at a utility cost d of at most τ %. AURC ↑: mean of MaxTER over τ from 0 to 20. gain ↑: AURC less that of "
    "stopping the undefended run early. d ↓: percent of utility lost at the end, the worst of perplexity, continuation "
    "and copy. #: the best and the worst place that persons (permutation, Holm over pairs) and runs (interval of the "
    "difference) leave open; arms whose places overlap are ties. Within a family the worst attack ranks: of each point "
    "the one that leaks most, chosen on other seeds. status: points measured, and seconds of training per run."
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
        mine = _points_of(group[0], rows)
        lines = [[_place_of(entry, group), *_line(entry, mine)] for entry in sorted(group, key=_rank)]
        overfit = max((row.get("overfit_percent") or 0.0 for row in mine), default=0.0)
        heading = title + (
            f"  (overfit: the undefended perplexity ends {overfit:.0f} % above its minimum)" if overfit > 5 else ""
        )
        notes = [*_notes(group), *_beside(group)]
        notes += [] if group[0].get("attacks") else _chance(mine)
        if markdown:
            _print_markdown(console, heading, lines)
        else:
            _print_table(console, heading, lines)
        notes += [line for entry in group for line in _claimed(entry, claims)]
        for note in dict.fromkeys(notes):
            _say(console, f"- {note}" if markdown else note, markdown)
        console.print()
        if points and not group[0].get("attacks"):
            _print_points(console, mine)
    console.print(_FOOT, highlight=False, markup=False, style="dim")


def _print_table(console: Console, heading: str, lines: Sequence[Sequence[str]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in _COLUMNS:
        name = column.replace("MaxTER", "MaxTER\n") if "@" in column else column.replace(" %", "\n%")
        justify: Literal["left", "right"] = "left" if column in _LEFT else "right"
        table.add_column(name, justify=justify, overflow="fold", min_width=_LEAST.get(column))
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
    leakage = entry.get("leakage") or leakage
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


def _beside(entries: Sequence[Row]) -> list[str]:
    """Seed noise and sample noise apart, the worst attacks, the plain maximum and the paper's figures, a line each."""
    noise, worst, plain, paper = [], [], [], []
    for entry in entries:
        label, gain = entry["defense_label"], entry.get("gain") or {}
        halves = [_half(gain.get(name)) for name in ("run_limits", "sample_limits")]
        noise += [f"{label} {halves[0]} / {halves[1]}"] if halves != ["-", "-"] else []
        if entry.get("attacks"):
            read = dict.fromkeys(name.rpartition("/")[0] for name in (entry.get("leakage") or {}).get("readings", ()))
            worst += [f"{label} {' or '.join(read)}"] if read else []
        most = (entry.get("plain") or {}).get("maxter") or {}
        plain += [f"{label} {' / '.join(_number(most[tau], 0) for tau in ('1', '5', '20'))}"] if most else []
        figures = entry.get("paper") or {}
        names = ("ter_mean", "maxter_paper", "aurc_paper")
        paper += [f"{label} {' / '.join(_number(figures[name], 0) for name in names)}"] if figures else []
    lines = {
        "the attack that leaks most at the end": worst,
        "half width of the gain's interval from runs / from persons, in %": noise,
        "plain maximum at 1 / 5 / 20 %, which flatters": plain,
        "as the RMFT paper counts, mean TER / MaxTER / AURC": paper,
    }
    return [f"{what}: {', '.join(found)}" for what, found in lines.items() if found]


def _half(limits: Sequence[float | None] | None) -> str:
    low, high = limits or (None, None)
    return "-" if low is None or high is None else f"{(high - low) / 2:.0f}"


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
    """Entries by table; of a benchmark and model, the worst attacks of the families come first."""
    ordered = sorted(entries, key=lambda entry: (_setting(entry), not entry.get("attacks")))
    ordered = [
        entry for place in dict.fromkeys(map(_setting, entries)) for entry in ordered if _setting(entry) == place
    ]
    for title in dict.fromkeys(_title(entry) for entry in ordered):
        yield title, [entry for entry in entries if _title(entry) == title]


def _points_of(entry: Row, rows: Sequence[Row]) -> list[Row]:
    """The points that a table's entries rest on."""
    specs = entry.get("attacks") or [entry["attack_spec"]]
    return [
        row
        for row in rows
        if row["row"] == "point" and _setting(row) == _setting(entry) and row["attack_spec"] in specs
    ]


def _setting(row: Row) -> str:
    return f"{row['benchmark']} v{row['benchmark_version']} · {row['model']}"


def _title(row: Row) -> str:
    attack = row["attack_spec"]
    if row.get("attacks"):
        attack = f"worst {row['attack_family']} attack of {', '.join(row['attacks'])}"
    return f"{_setting(row)} · {attack} ({row['access']})"


def _place(row: Row) -> tuple[str, str]:
    return _title(row), str(row["defense_label"])


def _rank(entry: Row) -> tuple[bool, float]:
    gain = (entry.get("gain") or {}).get("value")
    return gain is None, -(gain if gain is not None else 0.0)


def _place_of(entry: Row, group: Sequence[Row]) -> str:
    """The best and the worst place of an entry among all that were resolved; "-" where there is no gain to compare.

    Entries of one run were compared pair by pair. Those of several runs cannot be, and are told apart by the intervals
    of their gains.
    """
    mine = entry.get("gain") or {}
    if not entry.get("resolvable") or mine.get("value") is None:
        return "-"
    others = [other for other in group if other.get("resolvable") and other is not entry]
    if entry.get("rank") and {other["defense_label"] for other in others} == set(entry["versus"]):
        best, worst = entry["rank"]
        return str(best) if best == worst else f"{best}-{worst}"
    gains = [gain for other in others if (gain := other.get("gain") or {}).get("value") is not None]
    best = 1 + sum(_above(gain, mine) for gain in gains)
    worst = 1 + len(gains) - sum(_above(mine, gain) for gain in gains)
    return str(best) if best == worst else f"{best}-{worst}"


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
