"""Which rows stand in one table: those of one benchmark, model, data set and attack."""

from __future__ import annotations

from collections.abc import Sequence

from memdefense.errors import DataError
from memdefense.results import Row, detector_of, latest


def tables_of(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Titles and entries of all tables; of a benchmark and model, the worst attacks of the families come first.

    Args:
        rows: point and entry rows; a later entry of a key takes the place of an earlier one.

    Raises:
        DataError: there is no entry.
    """
    entries = list({_place(row): row for row in rows if row["row"] == "entry"}.values())
    if not entries and any(row["row"] == "attack" for row in rows):
        raise DataError("these are results of memdefense attack, of one model as it is: they hold no defense to rank")
    if not entries:
        raise DataError("these results hold no entry yet: the run was interrupted; run the same command again")
    places = list(dict.fromkeys(map(data_of, entries)))
    ordered = sorted(entries, key=lambda entry: (places.index(data_of(entry)), not entry.get("attacks")))
    names = dict.fromkeys((_title(entry), data_of(entry)) for entry in ordered)
    return [
        (title, [entry for entry in entries if (_title(entry), data_of(entry)) == (title, place)])
        for title, place in names
    ]


def points_of(entry: Row, rows: Sequence[Row]) -> list[Row]:
    """The points that a table's entries rest on."""
    specs = entry.get("attacks") or [entry["attack_spec"]]
    return latest(
        row for row in rows if row["row"] == "point" and data_of(row) == data_of(entry) and row["attack_spec"] in specs
    )


def setting_of(row: Row) -> str:
    """Benchmark, model and detector, as titles name them."""
    name, recall = detector_of(row)
    detector = f" · detector {name}" if name != "patterns" else ""
    missed = f" · detector recall {recall:g}" if recall < 1 else ""
    return f"{row['benchmark']} v{row['benchmark_version']} · {row['model']}{detector}{missed}"


def data_of(row: Row) -> tuple[str, str]:
    """What must be the same for rows to stand in one table: two files of one name are two data sets."""
    return setting_of(row), row.get("data") or ""


def _title(row: Row) -> str:
    attack = row["attack_spec"]
    if row.get("attacks"):
        attack = f"worst {row['attack_family']} attack of {', '.join(row['attacks'])}"
    return f"{setting_of(row)} · {attack} ({row['access']})"


def _place(row: Row) -> tuple[str, tuple[str, str], str]:
    return _title(row), data_of(row), str(row["defense_label"])
