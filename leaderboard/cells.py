"""The cells of a MaxTER table: an entry as text, and its place among the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memdefense.compare import better
from memdefense.results import Row
from memdefense.selection import NOTHING

TPR = "TPR@1 %"
_COLUMNS = ("#", "defense", "leakage", "MaxTER@1 %", "MaxTER@5 %", "MaxTER@20 %", "AURC %", "gain %", "d %", "status")
_SIDES = ("value", "low", "high")
_MAKING = ("curate", "train", "edit")
PARTS = {"perplexity": "perpl.", "accuracy": "accur.", "continuation": "contin.", "copy": "copy"}


def columns(group: Sequence[Row], points: Sequence[Row]) -> tuple[str, ...]:
    """The headings of a table of entries, with the true positive rate where the non-members resolve it."""
    return _COLUMNS[:3] + ((TPR,) if _resolved(group, points) else ()) + _COLUMNS[3:]


def cells(entry: Row, group: Sequence[Row], points: Sequence[Row]) -> list[str]:
    """One entry as the cells of its table.

    Args:
        entry: the entry.
        group: all entries of the table.
        points: the points that they rest on.
    """
    final = last_points([row for row in points if row["defense_label"] == entry["defense_label"]])
    found = [_place_of(entry, group), *_line(entry, final)]
    return [*found[:3], _rate(final), *found[3:]] if _resolved(group, points) else found


def last_points(rows: Sequence[Row]) -> list[Row]:
    """The last measured operating point of each seed."""
    last: dict[int, Row] = {}
    for row in rows:
        if row["status"] not in ("error", "n/a"):
            last[row["seed"]] = row
    return list(last.values())


def _resolved(group: Sequence[Row], points: Sequence[Row]) -> bool:
    """Whether any point has a TPR at 1 % FPR; a table of worst attacks mixes attacks with and without."""
    return not group[0].get("attacks") and any(_rate([row]) != "-" for row in points)


def _rate(final: Sequence[Row]) -> str:
    """TPR at 1 % FPR, the mean over seeds."""
    scores = [(row.get("scores") or {}).get("tpr_at_1%_fpr") or {} for row in final]
    return interval({side: mean([score.get(side) for score in scores]) for side in _SIDES}, 2, 2)


def _line(entry: Row, final: Sequence[Row]) -> list[str]:
    """The cells of `_COLUMNS`, the first aside."""
    seconds = mean([sum(row["cost"].get(f"{part}_seconds", 0.0) for part in _MAKING) for row in final])
    status = [_statuses(entry.get("statuses") or {}), *([] if entry.get("resolvable") or not final else ["unresolved"])]
    status += [f"{seconds:.0f} s"] if seconds is not None else []
    scores = [(row.get("scores") or {}).get("leakage") or {"value": row["leakage"]} for row in final]
    leakage = {side: mean([score.get(side) for score in scores]) for side in _SIDES}
    # The mean of different attacks' last points would be nobody's leakage.
    leakage = entry.get("leakage") or ({} if entry.get("attacks") else leakage)
    head = [entry["defense_label"], interval(leakage, 2, 3)]
    tail = [_cost(final), "\n".join(status)]
    if not entry.get("resolvable"):
        return [*head, "-", "-", "-", "-", "-", *tail]
    budgets = [_share(entry["maxter"][tau]) for tau in ("1", "5", "20")]
    return [*head, *budgets, _share(entry["aurc"]), interval(entry["gain"], 0, 1, sign=True), *tail]


def _share(score: dict[str, Any]) -> str:
    """A share of the leakage that was taken away, at most all of it; where no point was ever chosen, no interval.

    Of a leakage below chance, which is noise, more than all would be taken away.
    """
    if (chosen := score.get("chosen")) and set(chosen) == {NOTHING}:
        return f"{_rounded(0.0, 1)}\nnothing"
    kept = {side: value if value is None else min(value, 100.0) for side in _SIDES for value in [score.get(side)]}
    return interval(kept, 0, 1)


def _statuses(counts: dict[str, int]) -> str:
    named = sorted(counts.items(), key=lambda item: (item[0] != "ok", item[0]))
    return "\n".join(f"{count} {name}" for name, count in named)


def _cost(final: Sequence[Row]) -> str:
    """The utility cost at the end, and which part of it is the worst where something is lost."""
    # Less than nothing is lost nowhere: what a seed gains pays for no other's loss, as in the worst of each.
    lost_by = {name: mean([max(d, 0.0) for row in final if (d := row["d"].get(name)) is not None]) for name in PARTS}
    known = {name: loss for name, loss in lost_by.items() if loss is not None}
    worst = mean([row["d"].get("worst") for row in final])
    if worst is None:
        return "-"
    lost = known and worst >= 0.05
    return f"{worst:.1f}" + (f"\n{PARTS[max(known, key=lambda name: known[name])]}" if lost else "")


def rank(entry: Row) -> tuple[bool, float]:
    """Sorts entries: the largest area first, those without one last.

    Not the gain, which arms of different seeds have over different undefended runs.
    """
    area = (entry.get("aurc") or {}).get("value")
    return area is None, -(area if area is not None else 0.0)


def _place_of(entry: Row, group: Sequence[Row]) -> str:
    """The best and the worst place of an entry among all that were resolved; "-" where there is no gain to compare.

    Entries of one run were compared pair by pair, on the seeds that both have. Those of several runs cannot be, and are
    told apart by the intervals of their gains.
    """
    mine = entry.get("gain") or {}
    if not entry.get("resolvable") or mine.get("value") is None:
        return "-"
    others = [other for other in group if other.get("resolvable") and other is not entry]
    others = [other for other in others if (other.get("gain") or {}).get("value") is not None]
    best = 1 + sum(_above(other, entry) for other in others)
    worst = 1 + len(others) - sum(_above(entry, other) for other in others)
    return str(best) if best == worst else f"{best}-{worst}"


def _above(one: Row, other: Row) -> bool:
    """Whether one entry is better than another."""
    pair = (one.get("versus") or {}).get(other["defense_label"])
    if pair is not None:
        return better(pair)
    gain, theirs = one["gain"], other["gain"]
    low = gain["value"] if gain.get("low") is None else gain["low"]
    high = theirs["value"] if theirs.get("high") is None else theirs["high"]
    return bool(gain["value"] > theirs["value"] and low > high)


def interval(score: dict[str, Any], limits: int, digits: int, *, sign: bool = False) -> str:
    """A value, and its limits on a second line; a limit beyond 999 is shown as infinite."""
    if score.get("value") is None:
        return "-"
    text = _rounded(score["value"], digits, sign="+" if sign else "")
    if score.get("low") is None or score.get("high") is None:
        return text
    low, high = (
        _rounded(score[side], limits) if abs(score[side]) < 1000 else ("-∞" if score[side] < 0 else "∞")
        for side in ("low", "high")
    )
    return f"{text}\n[{low},{high}]"


def _rounded(value: float, digits: int, sign: str = "") -> str:
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # adding 0 takes the sign off a zero


def number(value: float | None, digits: int) -> str:
    """A number, or "-" where there is none."""
    return "-" if value is None else _rounded(value, digits)


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of what is known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
