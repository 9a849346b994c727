"""Runs of several folders, put together and scored anew from their outcomes: no model, no corpus, no store.

So a cluster without a common disk can share a grid, and a score or an interval can be corrected after the machines
that measured are gone.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from memdefense import registry
from memdefense.attack import Attack
from memdefense.errors import DataError, SpecError
from memdefense.pipeline import read_outcomes, scored
from memdefense.reference import UNDEFENDED
from memdefense.results import (
    Results,
    Row,
    Writer,
    check_new,
    latest,
    outcomes_name,
    outcomes_path,
    place_of,
    read_rows,
    score_rows,
)
from memdefense.tally import Tally, measured_of

logger = logging.getLogger(__name__)

# Settings in which runs that are put together may differ.
_FREE = ("seeds", "store", "output", "device", "batch_size", "micro_batch", "log_samples", "baselines")


def pool(folders: Sequence[Path], output: Path) -> Results:
    """Puts runs together and scores them anew, each point with the outcomes that were written beside its row.

    What a point costs in utility and its status are taken as they were measured; scores, intervals, MaxTER and ranks
    are made by the code of today. A defense stands in the table of an attack if any run has played it.

    Args:
        folders: what `memdefense.run` wrote, on one benchmark, model and training; seeds, defenses and attacks may
            differ.
        output: a new folder.

    Raises:
        DataError: a folder is none of a run, lacks outcomes, was measured otherwise than the first or has other utility
            costs; a point stands in two of them with other numbers; the undefended run of a seed is in none; or
            ``output`` is not empty.
        SpecError: no folder was named, or an attack is not installed.
    """
    if not folders:
        raise SpecError("no results were named; give the folders that memdefense run wrote")
    # Rows already there would stay as an older version scored them.
    check_new(output)
    configs = [_config(folder) for folder in folders]
    for folder, config in zip(folders[1:], configs[1:], strict=True):
        if differs := _difference(configs[0], config):
            raise DataError(f"{folder} cannot be put together with {folders[0]}: {differs}")
    rows = _rows(dict(zip(folders, configs, strict=True)))
    attacks = _attacks([row["attack_spec"] for row, _ in rows])
    _undefended(rows)
    _of_one_make(rows)
    for row, folder in rows:
        if not _failed(row):
            _outcomes(row, folder)
    tally = Tally(list(attacks.values()), dict(rows[-1][0]["provenance"]))
    writer = Writer(output)
    writer.text("config.json", json.dumps(_together(configs), indent=1))
    for row, folder in rows:
        _add(tally, writer, row, folder, attacks[row["attack_spec"]])
    entries = tally.entries()
    for entry in entries:
        writer.row(entry)
    return Results(tally.rows, entries, output)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); give folders that memdefense run wrote") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict) or not {"benchmark", "corpus", "settings", "training"} <= found.keys():
        raise DataError(f"{path} is not of memdefense run; results of memdefense attack hold no defense to compare")
    return found


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """In what two runs differ that must not, or nothing."""
    pairs = {
        "benchmark": (one["benchmark"], other["benchmark"]),
        "corpus": (one["corpus"]["digest"], other["corpus"]["digest"]),
    }
    for part, said in (("training", "training's "), ("settings", "")):
        names = dict.fromkeys((*one[part], *other[part]))  # of both: an older version may not have known of one
        pairs |= {f"{said}{name}": (one[part].get(name), other[part].get(name)) for name in names if name not in _FREE}
    return "; ".join(f"{name} is {b}, not {a}" for name, (a, b) in pairs.items() if a != b)


def _rows(folders: Mapping[Path, Mapping[str, Any]]) -> list[tuple[Row, Path]]:
    """The rows of all points, each once, with the folder that has its outcomes."""
    found: dict[tuple[object, ...], tuple[Row, Path]] = {}
    for folder, config in folders.items():
        for row in latest(_named(row, config) for row in read_rows(folder) if row["row"] == "point"):
            before, where = found.setdefault(place_of(row), (row, folder))
            if not _same(before, where, row, folder):
                what = f"{row['defense_spec']} under {row['attack_spec']}, seed {row['seed']}, point {row['point']}"
                raise DataError(
                    f"{what}, stands in {where} and in {folder} with other numbers; leave one out, or run both again "
                    "with one version on machines of one kind"
                )
    if not found:
        raise DataError("these folders hold no measured point yet: run the same commands again")
    units = {_unit(row) for row, _ in found.values() if not _failed(row)}
    # What failed in one folder and was measured in another did not fail.
    return [(row, folder) for row, folder in found.values() if row["status"] != "error" or _unit(row) not in units]


def _named(row: Row, config: Mapping[str, Any]) -> Row:
    """A row that also says on what data it was measured, as those of older versions do not."""
    settings = config["settings"]
    named: Row = {
        "detector_spec": settings.get("detector", "patterns"),
        "detector_recall": settings.get("detector_recall", 1.0),
    }
    if base := row["provenance"].get("base"):
        named["data"] = f"{config['corpus']['digest'][:12]}/{base}"
    return {**named, **row}


def _same(one: Row, where: Path, other: Row, folder: Path) -> bool:
    """Whether two rows are of one measurement: by one code, or by another that gave the same for every unit.

    A cost or a value that only one version knows is no difference.
    """
    same = all(one.get(name) == other.get(name) for name in ("leakage", "status"))
    same = same and _agree(one.get("d") or {}, other.get("d") or {}) and _perplexity(one) == _perplexity(other)
    if not same or one["recipe"] == other["recipe"] or _failed(one):
        return same
    ours, theirs = (read_outcomes(_outcomes(row, place)) for row, place in ((one, where), (other, folder)))
    return len(ours) == len(theirs) and all(
        dataclasses.replace(a, values={}) == dataclasses.replace(b, values={}) and _agree(a.values, b.values)
        for a, b in zip(ours, theirs, strict=True)
    )


def _agree(one: Mapping[str, float | None], other: Mapping[str, float | None]) -> bool:
    return all(one[name] == other[name] for name in one.keys() & other.keys() if None not in (one[name], other[name]))


def _outcomes(row: Row, folder: Path) -> Path:
    path = outcomes_path(folder, row)
    if not path.is_file():
        raise DataError(f"{path} is missing: without outcomes nothing can be scored anew")
    return path


def _perplexity(row: Row) -> Any:
    return (row.get("utility") or {}).get("perplexity", {}).get("perplexity", {}).get("value")


def _unit(row: Row) -> tuple[object, ...]:
    return row["defense_spec"], row["attack_spec"], row["seed"]


def _attacks(specs: Sequence[str]) -> dict[str, Attack]:
    return {spec: cast(Attack, registry.instances("attacks", spec)[0][1][0]) for spec in dict.fromkeys(specs)}


def _undefended(rows: Sequence[tuple[Row, Path]]) -> None:
    """Raises unless the undefended run stands beside every row of a defense."""
    there = {(row["seed"], row["attack_spec"]) for row, _ in rows if row["defense_label"] == UNDEFENDED.spec}
    for row, folder in rows:
        if (row["seed"], row["attack_spec"]) not in there:
            raise DataError(
                f"{folder} has {row['defense_spec']} under {row['attack_spec']} with seed {row['seed']}, and no folder "
                "the undefended run of that seed"
            )


def _of_one_make(rows: Sequence[tuple[Row, Path]]) -> None:
    """Raises where arms start from other weights or pay other costs; warns where other code trained or priced them.

    Rows of before this was written down say nothing, and are taken.
    """
    costs: dict[tuple[str, ...], Path] = {}
    for row, folder in rows:
        if not _failed(row):
            costs.setdefault(tuple(sorted(row["d"].keys() - {"worst"})), folder)
    if len(costs) > 1:
        said = "; ".join(f"{folder} has {', '.join(names) or 'none'}" for names, folder in costs.items())
        raise DataError(
            f"d is made of different costs: {said}; run the commands of the one with fewer again, which trains nothing "
            "anew where the store is still there"
        )
    made: dict[str, dict[str, Path]] = {"base": {}, "core": {}}
    for row, folder in rows:
        for name, found in made.items():
            if digest := row["provenance"].get(name):
                found.setdefault(digest, folder)
    bases, cores = ([str(folder) for folder in found.values()] for found in made.values())
    if len(bases) > 1:
        raise DataError(f"{' and '.join(bases)} started from different weights; their numbers do not compare")
    if len(cores) > 1:
        logger.warning(
            "%s are of different versions of the code that trains models and prices utility; numbers may not compare",
            " and ".join(cores),
        )


def _add(tally: Tally, writer: Writer, row: Row, folder: Path, attack: Attack) -> None:
    """One row, scored anew if it did not fail, into the tally and the new folder."""
    row = {**row, "attack_family": attack.family, "access": attack.access}
    if _failed(row):
        tally.add(row)
        writer.row(row)
        return
    path = outcomes_path(folder, row)
    scores, terms = scored(attack, read_outcomes(path))
    row = {**row, "leakage": scores.headline.value, "scores": score_rows(scores, "leakage")}
    # What is not finite stands in a row as null: a cost without bound is a destroyed model's, any other was not known.
    unknown = math.inf if row["status"] == "collapsed" else math.nan
    delta, perplexity = row["d"]["worst"], _perplexity(row)
    measured = measured_of(
        row,
        attack,
        unknown if delta is None else delta,
        math.nan if perplexity is None else perplexity,
        scores,
        terms,
    )
    tally.add(row, measured)
    writer.row(row)
    writer.file(outcomes_name(row["recipe"]), functools.partial(shutil.copyfile, path))


def _failed(row: Row) -> bool:
    return row["status"] in ("error", "n/a")


def _together(configs: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """What the runs were asked for, as of one."""
    seeds = sorted({seed for config in configs for seed in config["settings"]["seeds"]})
    defenses: dict[str, object] = {}
    for config in configs:
        defenses |= config["defenses"]
    return {
        **configs[0],
        "defenses": defenses,
        "attacks": list(dict.fromkeys(spec for config in configs for spec in config["attacks"])),
        "settings": {**configs[0]["settings"], "seeds": seeds},
        "pooled": len(configs),
    }


__all__ = ["pool"]
