"""The rows of a run: every operating point under every attack, with its status, its utility and its cost."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch

from memdefense.attack import Attack, Outcome, Utility
from memdefense.bench import StoredPoint
from memdefense.defense import Defense, overrides
from memdefense.entries import WORST, Arm, Measured, entries_of
from memdefense.errors import MemdefenseError, NotApplicable, StoreError
from memdefense.pipeline import Defended, defend, measure, read_samples, scored, write_outcomes
from memdefense.recipe import code_of, digest
from memdefense.reference import UNDEFENDED, Reference, alike, reference_of, tokens_of
from memdefense.results import SCHEMA, Row, Writer, provenance, say, score_rows
from memdefense.settings import Settings
from memdefense.store import Artifact
from memdefense.train import precision
from memdefense.utility import Perplexity
from memdefense.work import Work, retried

logger = logging.getLogger(__name__)

_SECONDS = ("curate_seconds", "train_seconds", "edit_seconds")  # what making a defended model takes


class Sheet:
    """Collects rows: one unit is (defense, seed), measured at each of its points by every utility and attack."""

    def __init__(
        self,
        work: Work,
        settings: Settings,
        utilities: Sequence[Utility],
        attacks: Sequence[Attack],
        writer: Writer | None,
    ) -> None:
        self.rows: list[Row] = []
        self._work, self._settings, self._utilities, self._attacks, self._writer = (
            work,
            settings,
            utilities,
            attacks,
            writer,
        )
        self._measured: dict[tuple[str, str], list[Measured]] = {}
        self._references: dict[int, Reference] = {}
        self._recall = _detector_recall(work)
        self._provenance = provenance(
            work.bench.device,
            torch.get_num_threads(),
            precision(work.config.dtype, work.bench.device, width=work.base.width),
            work.base.origin or work.base_digest[:12],
        )

    def undefended(self, seed: int) -> None:
        """The baseline of one seed: what leakage and utility are relative to."""
        self._references[seed] = retried(self._work.bench, lambda: reference_of(self._work, self._utilities, seed))

    def unit(self, label: str, defense: Defense, seed: int) -> None:
        """All rows of one defense on one seed; an error is a row for every attack, and nothing more.

        Called again after a damaged artifact, it replaces what it had added.
        """
        self.rows = [
            r for r in self.rows if (r["defense_label"], r["defense_spec"], r["seed"]) != (label, defense.spec, seed)
        ]
        for (name, spec), points in self._measured.items():
            if name == label:
                kept = [p for p in points if (p.spec, p.seed) != (defense.spec, seed)]
                self._measured[name, spec] = kept
        try:
            defended = defend(self._work, defense, seed)
        except StoreError:
            raise
        except MemdefenseError as error:
            for attack in self._attacks:
                self._failed(label, defense, attack, seed, "", error)
            return
        for point in defended.points:
            self._point(label, defended, point)

    def entries(self, arms: Mapping[str, Sequence[Defense]]) -> list[Row]:
        """One row per defense and attack, and per family of several attacks one against the worst of them."""
        found = []
        families: dict[str, list[Attack]] = {}
        for attack in self._attacks:
            families.setdefault(attack.family, []).append(attack)
        groups = [[attack] for attack in self._attacks] + [group for group in families.values() if len(group) > 1]
        for group in groups:
            numbers = entries_of({label: self._arm(label, group) for label in arms})
            found += [self._entry(label, specs, group, numbers[label]) for label, specs in arms.items()]
        for entry in found:
            if self._writer:
                self._writer.row(entry)
        return found

    def _arm(self, label: str, group: Sequence[Attack]) -> Arm:
        """A defense's points under some attacks, told apart by name where there are several.

        Without points where one of several failed: it may be the worst.
        """
        points, undefended = (
            [
                dataclasses.replace(point, attack=attack.spec if len(group) > 1 else "")
                for attack in group
                for point in self._measured.get((name, attack.spec), [])
            ]
            for name in (label, UNDEFENDED.spec)
        )
        return Arm([] if self._failures(label, group) else points, undefended)

    def _failures(self, label: str, group: Sequence[Attack]) -> list[str]:
        """Those of several attacks that failed against a defense."""
        specs = [attack.spec for attack in group] if len(group) > 1 else []
        return sorted(
            {
                row["attack_spec"]
                for row in self.rows
                if row["defense_label"] == label and row["attack_spec"] in specs and row["status"] == "error"
            }
        )

    def _entry(self, label: str, specs: Sequence[Defense], group: Sequence[Attack], numbers: Row) -> Row:
        specs_of = [attack.spec for attack in group]
        rows = [r for r in self.rows if r["defense_label"] == label and r["attack_spec"] in specs_of]
        statuses: dict[str, int] = {}
        for row in rows:
            statuses[row["status"]] = statuses.get(row["status"], 0) + 1
        names = self._names(specs[0], group[0])
        if len(group) > 1:
            widest = max((attack.access for attack in group), key=("text", "logprobs", "weights").index)
            names |= {"attack": WORST, "attack_spec": WORST, "access": widest, "attacks": specs_of}
            if failed := self._failures(label, group):
                note = f"not resolvable: {', '.join(failed)} failed, and may be the worst attack"
                numbers = {**numbers, "note": note}
        entry = {
            "row": "entry",
            "schema": SCHEMA,
            **names,
            "defense_label": label,
            "defense_spec": [spec.spec for spec in specs],
            "statuses": statuses,
            "errors": sorted({row["error"] for row in rows if row["error"]}),
            "train_seconds": math.fsum(s for name in _SECONDS for s in _cost_of(rows, name)),
            **numbers,
            "provenance": self._provenance,
        }
        entry["recipe"] = digest([code_of("memdefense.entries"), *sorted({row["recipe"] for row in rows})])
        entry["key"] = digest([entry["recipe"], sorted(row["key"] for row in rows), len(group)])
        return entry

    def _point(self, label: str, defended: Defended, point: StoredPoint) -> None:
        work, seed, defense = self._work, defended.seed, defended.defense
        model = functools.cache(lambda: point.load(work.bench.device))
        # The same weights with no guard: what a guard takes away is taken from them.
        bare = dataclasses.replace(defended, defense=UNDEFENDED) if overrides(defense, "guard") else None
        try:
            found = [measure(defended, point, utility, model)[0] for utility in self._utilities]
            plain = [measure(bare, point, u, model)[0] for u in self._utilities] if bare else found
        except StoreError:
            raise
        except MemdefenseError as error:
            for attack in self._attacks:
                self._failed(label, defense, attack, seed, point.label, error)
            return
        utility = {u.name: u.score(outcomes) for u, outcomes in zip(self._utilities, found, strict=True)}
        reference = self._references[seed]
        whole = zip(self._utilities, found, reference.outcomes[reference.best], plain, strict=True)
        costs = {u.name: u.cost(own, theirs, before) for u, own, theirs, before in whole}
        delta = _worst(costs, [u.name for u in self._utilities if u.access == "text"] if bare else [])
        status = reference.status(defended, point, found, utility[Perplexity.name].headline.value)
        for number, attack in enumerate(self._attacks):
            if work.bench.progress:
                work.bench.progress(
                    f"{defense.spec}, seed {seed}: point {point.label}, {attack.spec}", number, len(self._attacks)
                )
            try:
                outcomes, artifact = measure(defended, point, attack, model)
                scores, terms = scored(attack, outcomes)
                # A guard may act on what the attack asks and on nothing that the utilities do.
                idle = status == "no-op" and (not bare or alike(outcomes, measure(bare, point, attack, model)[0]))
                standing = "ok" if status == "no-op" and not idle else status
            except StoreError:
                raise
            except MemdefenseError as error:
                self._failed(label, defense, attack, seed, point.label, error)
                continue
            # A point of one spec of a grid is not that of another, whatever its label.
            name = point.label if label == defense.spec else f"{defense.spec} at {point.label}"
            self._measured.setdefault((label, attack.spec), []).append(
                Measured(
                    seed,
                    name,
                    delta,
                    scores,
                    terms,
                    utility[Perplexity.name].headline.value,
                    standing,
                    defense.spec,
                    attack.two_sided,
                )
            )
            row = {
                **self._head(label, defense, attack, seed, point.label),
                "at": point.at,
                "status": standing,
                "error": "",
                "leakage": scores.headline.value,
                "scores": score_rows(scores, "leakage"),
                "utility": {u: score_rows(s, u) for u, s in utility.items()},
                "d": {**costs, "worst": delta},
                "overfit_percent": reference.overfit,
                "detector": {"name": "memdefense.pii", "recall": self._recall},
                "cost": {
                    **defended.cost,
                    "extra_tokens": tokens_of(defended.cost) - reference.tokens,
                    "attack_seconds": artifact.facts["seconds"],
                    "attack_peak_memory_bytes": artifact.facts["peak_memory_bytes"],
                },
                "notes": {**defended.notes, **cast(dict[str, float], artifact.facts["notes"])},
                "train_config": dataclasses.asdict(defended.config),
            }
            self._add(row, artifact, outcomes)

    def _failed(
        self, label: str, defense: Defense, attack: Attack, seed: int, point: str, error: MemdefenseError
    ) -> None:
        status = "n/a" if isinstance(error, NotApplicable) else "error"
        if status == "error":
            logger.warning("%s under %s, seed %d: %s", defense.spec, attack.spec, seed, error)
        row = {
            **self._head(label, defense, attack, seed, point),
            "status": status,
            "error": say(error),
            "leakage": None,
        }
        self._add(row, None, [])

    def _add(self, row: Row, artifact: Artifact | None, outcomes: Sequence[Outcome]) -> None:
        row["key"] = artifact.key + row["recipe"][:8] if artifact else digest([row["recipe"], row["error"]])
        row["provenance"] = self._provenance
        self.rows.append(row)
        if not self._writer:
            return
        self._writer.row(row)
        if artifact:
            path = self._writer.folder / "outcomes" / f"{row['recipe'][:32]}.jsonl"
            write_outcomes(path, outcomes)
            if self._settings.log_samples:
                lines = "".join(json.dumps(dict(sample)) + "\n" for sample in read_samples(artifact))
                self._writer.text(f"outcomes/{row['recipe'][:32]}.samples.jsonl", lines)

    def _names(self, defense: Defense, attack: Attack) -> Row:
        work = self._work
        return {
            "benchmark": work.benchmark.spec,
            "benchmark_version": work.benchmark.version,
            "model": work.base.origin or f"{work.benchmark.name} default",
            "defense": defense.name if len(getattr(defense, "parts", ())) == 0 else defense.spec,
            "family": defense.family,
            "attack": attack.name,
            "attack_spec": attack.spec,
            "attack_family": attack.family,
            "access": attack.access,
        }

    def _head(self, label: str, defense: Defense, attack: Attack, seed: int, point: str) -> Row:
        work = self._work
        recipe = digest(
            {
                **self._names(defense, attack),
                "defense": defense.spec,
                "outside": [defense.outside(), attack.outside()],
                "code": [code_of(work.benchmark), code_of(defense), code_of(attack), code_of("memdefense.lab")],
                "config": dataclasses.asdict(work.config),
                "corpus": work.corpus_digest,
                "settings": [self._settings.detector_recall, self._settings.edit_all, self._settings.limit],
                "seed": seed,
                "point": point,
            }
        )
        return {
            "row": "point",
            "schema": SCHEMA,
            **self._names(defense, attack),
            "defense_label": label,
            "defense_spec": defense.spec,
            "seed": seed,
            "point": point,
            "recipe": recipe,
        }


def _detector_recall(work: Work) -> float | None:
    """The share of the secrets' occurrences in the training text that the defender's detector finds; None without."""
    lab = work.lab("detector", 0)
    texts = {document.id: document.text for document in work.corpus.train}
    found: dict[str, set[str]] = {}
    hits = total = 0
    for secret in work.corpus.secrets:
        for place in secret.occurrences if secret.member else ():
            if place.document in texts:
                if place.document not in found:
                    found[place.document] = {f"{hit.kind}/{hit.start}" for hit in lab.find(texts[place.document])}
                hits += f"{secret.kind}/{place.start}" in found[place.document]
                total += 1
    return hits / total if total else None


def _worst(costs: Mapping[str, float], needed: Sequence[str]) -> float:
    """The largest cost, those that could not be measured left out; NaN where none is left.

    Args:
        costs: by utility.
        needed: those of which one at least must be known: of a guard, which perplexity may not see at all.
    """
    known = [cost for cost in costs.values() if not math.isnan(cost)]
    blind = bool(needed) and all(math.isnan(costs[name]) for name in needed)
    return max(known) if known and not blind else math.nan


def _cost_of(rows: Iterable[Row], name: str) -> list[float]:
    """A cost once per (defense spec, seed): every point of a run carries the whole of it."""
    return list(
        {(row["defense_spec"], row["seed"]): row["cost"].get(name, 0.0) for row in rows if "cost" in row}.values()
    )
