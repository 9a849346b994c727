"""Every defense against every attack of a family at one glance; the tables below it have the intervals."""

from __future__ import annotations

from collections.abc import Sequence

from memdefense.results import Row

from .cells import number, rank


def matrix_of(worst: Sequence[Row], entries: Sequence[Row]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Columns, one an attack and the worst of them last, and a row for each defense: AURC and the leakage at the end.

    Args:
        worst: the entries against the worst attack of one family.
        entries: those of one benchmark and model, of which the family's are taken.
    """
    attacks = list(dict.fromkeys(spec for entry in worst for spec in entry["attacks"]))
    found = {(entry["defense_label"], entry["attack_spec"]): entry for entry in entries if not entry.get("attacks")}
    rows = []
    for entry in sorted(worst, key=rank):
        label = entry["defense_label"]
        against = [found.get((label, spec), {}) for spec in attacks]
        rows.append((label, *map(_cell, [*against, entry])))
    return ["defense", *attacks, "worst"], rows


def _cell(entry: Row) -> str:
    aurc, leakage = (entry.get(name) or {} for name in ("aurc", "leakage"))
    return f"{number(aurc.get('value'), 1)}\n{number(leakage.get('value'), 3)}"
