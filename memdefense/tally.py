"""The rows of a run and the entries made of them: no model is needed from here on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from memdefense.attack import Attack, Term
from memdefense.entries import WORST, Arm, Measured, entries_of
from memdefense.recipe import code_of, digest
from memdefense.reference import UNDEFENDED
from memdefense.results import SCHEMA, Row
from memdefense.score import Scores

_NAMES = (
    "benchmark",
    "benchmark_version",
    "model",
    "data",
    "detector_spec",
    "detector_recall",
    "defense",
    "family",
    "attack",
    "attack_spec",
    "attack_family",
    "access",
)
_SECONDS = ("curate_seconds", "train_seconds", "edit_seconds")  # what making a defended model takes


class Tally:
    """Collects the rows of points, and makes of them what each defense is worth against each attack.

    Args:
        attacks: whose rows come in.
        provenance: of the entries.
    """

    def __init__(self, attacks: Sequence[Attack], provenance: Row) -> None:
        self.rows: list[Row] = []
        self._attacks, self._provenance = attacks, provenance
        self._measured: dict[tuple[str, str], list[Measured]] = {}

    def add(self, row: Row, measured: Measured | None = None) -> None:
        """One row, with what was measured if it did not fail."""
        self.rows.append(row)
        if measured is not None:
            self._measured.setdefault((row["defense_label"], row["attack_spec"]), []).append(measured)

    def drop(self, label: str, spec: str, seed: int) -> None:
        """Forgets a defense's spec on one seed."""
        self.rows = [r for r in self.rows if (r["defense_label"], r["defense_spec"], r["seed"]) != (label, spec, seed)]
        for (name, attack), points in self._measured.items():
            if name == label:
                self._measured[name, attack] = [p for p in points if (p.spec, p.seed) != (spec, seed)]

    def entries(self) -> list[Row]:
        """One row per defense and attack, and per family of several attacks one against the worst of them.

        A defense stands against the worst of a family where all of the family's attacks were played against it, and
        on the seeds on which they all were.
        """
        found = []
        families: dict[str, list[Attack]] = {}
        for attack in self._attacks:
            families.setdefault(attack.family, []).append(attack)
        groups = [[attack] for attack in self._attacks] + [group for group in families.values() if len(group) > 1]
        for group in groups:
            specs = {attack.spec for attack in group}
            labels = dict.fromkeys(row["defense_label"] for row in self.rows)
            arms = [
                label
                for label in labels
                if specs <= {row["attack_spec"] for row in self.rows if row["defense_label"] == label}
            ]
            numbers = entries_of({label: self._arm(label, group) for label in arms})
            found += [self._entry(label, group, numbers[label]) for label in arms]
        return found

    def _arm(self, label: str, group: Sequence[Attack]) -> Arm:
        """A defense's points under some attacks, told apart by name where there are several.

        Without points where one of several failed: it may be the worst.
        """
        return Arm(
            [] if self._failures(label, group) else self._points(label, group), self._points(UNDEFENDED.spec, group)
        )

    def _points(self, label: str, group: Sequence[Attack]) -> list[Measured]:
        """A defense's points under some attacks, on the seeds on which all of those that can be were played."""
        played = {attack.spec: self._measured.get((label, attack.spec), []) for attack in group}
        points = {spec: found for spec, found in played.items() if found}  # what makes no sense here has none
        seeds = set.intersection(*({point.seed for point in found} for found in points.values())) if points else set()
        return [
            dataclasses.replace(point, attack=spec if len(group) > 1 else "")
            for spec, found in points.items()
            for point in found
            if point.seed in seeds
        ]

    def _failures(self, label: str, group: Sequence[Attack]) -> list[str]:
        """Those of several attacks that failed against a defense, or against the undefended run."""
        specs = [attack.spec for attack in group] if len(group) > 1 else []
        return sorted(
            {
                row["attack_spec"]
                for row in self.rows
                if row["defense_label"] in (label, UNDEFENDED.spec)
                and row["attack_spec"] in specs
                and row["status"] == "error"
            }
        )

    def _entry(self, label: str, group: Sequence[Attack], numbers: Row) -> Row:
        specs = [attack.spec for attack in group]
        rows = [r for r in self.rows if r["defense_label"] == label and r["attack_spec"] in specs]
        statuses: dict[str, int] = {}
        for row in rows:
            statuses[row["status"]] = statuses.get(row["status"], 0) + 1
        names = {name: rows[0].get(name) for name in _NAMES}
        if len(group) > 1:
            widest = max((attack.access for attack in group), key=("text", "logprobs", "weights").index)
            names |= {"attack": WORST, "attack_spec": WORST, "access": widest, "attacks": specs}
            met = {row["attack_spec"] for row in rows if row["status"] != "n/a"}
            names["not_played"] = [spec for spec in specs if spec not in met]
            if failed := self._failures(label, group):
                note = f"not resolvable: {', '.join(failed)} failed, and may be the worst attack"
                numbers = {**numbers, "note": note}
        entry = {
            "row": "entry",
            "schema": SCHEMA,
            **names,
            "defense_label": label,
            "defense_spec": list(dict.fromkeys(row["defense_spec"] for row in rows)),
            "statuses": statuses,
            "errors": sorted({row["error"] for row in rows if row["error"]}),
            "train_seconds": math.fsum(s for name in _SECONDS for s in _cost_of(rows, name)),
            **numbers,
            "provenance": self._provenance,
        }
        entry["recipe"] = digest([code_of("memdefense.entries"), *sorted({row["recipe"] for row in rows})])
        entry["key"] = digest([entry["recipe"], sorted(row["key"] for row in rows), len(group)])
        return entry


def measured_of(
    row: Row, attack: Attack, delta: float, perplexity: float, scores: Scores, terms: Sequence[Term]
) -> Measured:
    """What a point's row stands for in the entries.

    Args:
        row: of the point.
        attack: that was played.
        delta: utility cost in percent, the worst of its parts.
        perplexity: held-out.
        scores: of the attack.
        terms: of the attack.
    """
    # A point of one spec of a grid is not that of another, whatever its label.
    whole = row["defense_label"] == row["defense_spec"]
    label = row["point"] if whole else f"{row['defense_spec']} at {row['point']}"
    return Measured(
        row["seed"], label, delta, scores, terms, perplexity, row["status"], row["defense_spec"], attack.two_sided
    )


def _cost_of(rows: Iterable[Row], name: str) -> list[float]:
    """A cost once per (defense spec, seed): every point of a run carries the whole of it."""
    return list(
        {(row["defense_spec"], row["seed"]): row["cost"].get(name, 0.0) for row in rows if "cost" in row}.values()
    )


__all__ = ["Tally", "measured_of"]
