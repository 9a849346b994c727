"""What an audit's bounds on epsilon say, beside what defenses claim of theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memdefense.results import Row

from .cells import last_points, number


def bounds_of(group: Sequence[Row], points: Sequence[Row]) -> list[str]:
    """The bounds at the end of training of every arm, a number a seed, and the claims they are to be held against.

    A claim is what an arm notes as ``epsilon`` and ``delta``; it is about an author where its spec says so
    (``unit=author``), else about a document, of which a canary of one copy is one.

    Args:
        group: the entries of one table.
        points: the points that they rest on.
    """
    ends = [(entry["defense_label"], _ends(entry, points)) for entry in group]
    bounds = [(arm, _told(rows, "epsilon_bound")) for arm, rows in ends]
    known = [f"{arm} {bound}" for arm, bound in bounds if bound]
    if not known:
        return []
    most = max(_most(rows, "epsilon_ceiling") for _, rows in ends)
    lines = [
        f"lower bound on epsilon at the end, by seed (delta 0, all copies of a canary as one; at most {most:.1f} could "
        f"be shown): {', '.join(known)}"
    ]
    claims = [_claim(arm, rows) for arm, rows in ends]
    lines += [claim for claim in claims if claim]
    if any(claims) and not all(claims):
        lines.append("the others claim no epsilon")
    return lines


def _ends(entry: Row, points: Sequence[Row]) -> list[Row]:
    own = last_points([row for row in points if row["defense_label"] == entry["defense_label"]])
    return sorted(own, key=lambda row: row["seed"])


def _claim(arm: str, rows: Sequence[Row]) -> str:
    """What an arm claims and the bound of the same unit and about the same delta; "" where it claims nothing."""
    notes: list[Mapping[str, Any]] = [row.get("notes") or {} for row in rows]
    if not rows or any(note.get("epsilon") is None or note.get("delta") is None for note in notes):
        return ""
    author = any("unit=author" in row["defense_spec"] for row in rows)
    name = "_delta" if author else "_single_delta"
    unit = "an author" if author else "a document"
    void = " (void here)" if any(note.get("claim_void") for note in notes) else ""
    epsilons = sorted({f"{note['epsilon']:.2f}" for note in notes})
    deltas = sorted({f"{note['delta']:.1g}" for note in notes})
    return (
        f"{arm} claims epsilon {' to '.join(epsilons)} at delta {' to '.join(deltas)} for {unit}{void}; the bound for "
        f"that: {_told(rows, f'epsilon_bound{name}')} of at most {_most(rows, f'epsilon_ceiling{name}'):.1f}"
    )


def _told(rows: Sequence[Row], name: str) -> str:
    values = [(row["scores"].get(name) or {}).get("value") for row in rows]
    return " / ".join(number(value, 2) for value in values) if any(value is not None for value in values) else ""


def _most(rows: Sequence[Row], name: str) -> float:
    return max(((row["scores"].get(name) or {}).get("value") or 0.0 for row in rows), default=0.0)


__all__ = ["bounds_of"]
