"""The rows of a run: every operating point under every attack, with its status, its utility and its cost."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import cast

import torch

from memdefense import registry
from memdefense.attack import Attack, Outcome, Utility
from memdefense.bench import StoredPoint
from memdefense.defense import Defense, overrides
from memdefense.entries import Measured
from memdefense.errors import MemdefenseError, NotApplicable, StoreError
from memdefense.pipeline import Defended, defend, measure, pricing, read_samples, scored, write_outcomes
from memdefense.recipe import code_of, digest
from memdefense.reference import UNDEFENDED, Reference, alike, reference_of, tokens_of
from memdefense.results import SCHEMA, Row, Writer, made_with, outcomes_name, provenance, say, score_rows
from memdefense.settings import Settings
from memdefense.store import Artifact
from memdefense.tally import Tally, measured_of
from memdefense.train import precision
from memdefense.utility import Continuation, Perplexity
from memdefense.work import Work, hooked, retried

logger = logging.getLogger(__name__)


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
        self._work, self._settings, self._utilities, self._attacks, self._writer = (
            work,
            settings,
            utilities,
            attacks,
            writer,
        )
        self._references: dict[int, Reference] = {}
        self._recall = functools.cache(partial(_detector_recall, work))
        self._provenance = {
            **provenance(
                work.bench.device,
                torch.get_num_threads(),
                precision(work.config.dtype, work.bench.device, width=work.base.width),
                work.names[1] if work.base.origin else work.base_digest[:12],
            ),
            "base": work.base_digest[:12],
            # What all arms share: other code may train, measure or price otherwise.
            "core": digest([code_of("memdefense.lab"), *(code_of(utility) for utility in utilities)])[:12],
        }
        self._tally = Tally(attacks, self._provenance)

    @property
    def rows(self) -> list[Row]:
        """Of all points so far."""
        return self._tally.rows

    def undefended(self, seed: int) -> None:
        """The baseline of one seed: what leakage and utility are relative to."""
        perplexity = next(utility for utility in self._utilities if utility.name == Perplexity.name)
        self._references[seed] = retried(self._work.bench, lambda: reference_of(self._work, perplexity, seed))

    def unit(self, label: str, defense: Defense, seed: int) -> None:
        """All rows of one defense on one seed; an error is a row for every attack, and nothing more.

        Called again after a damaged artifact, it replaces what it had added.
        """
        self._tally.drop(label, defense.spec, seed)
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

    def entries(self) -> list[Row]:
        """What each defense is worth against each attack, as `Tally.entries` makes and this writes it."""
        found = self._tally.entries()
        for entry in found:
            if self._writer:
                self._writer.row(entry)
        return found

    def _point(self, label: str, defended: Defended, point: StoredPoint) -> None:
        work, seed, defense = self._work, defended.seed, defended.defense
        model = functools.cache(lambda: point.load(work.bench.device))
        # The same weights with no guard, for what a guard does to an attack alone.
        bare = dataclasses.replace(defended, defense=UNDEFENDED) if overrides(defense, "guard") else None
        reference = self._references[seed]
        try:
            found = [(u, measure(defended, point, u, model)[0]) for u in pricing(defense, self._utilities)]
            utility = {u.name: hooked(u, "score", partial(u.score, outcomes)) for u, outcomes in found}
            priced = {u.name: hooked(u, "cost", partial(reference.cost, u, outcomes)) for u, outcomes in found}
            status = reference.status(defended, point, found, utility[Perplexity.name].headline.value)
        except StoreError:
            raise
        except MemdefenseError as error:
            for attack in self._attacks:
                self._failed(label, defense, attack, seed, point.label, error)
            return
        costs = {u.name: priced.get(u.name, math.nan) for u in self._utilities}  # NaN: was not asked
        delta = _worst(costs, [Perplexity.name, *([Continuation.name] if bare else [])])
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
                "detector": {
                    "name": work.bench.detector_name,
                    "asked": self._settings.detector_recall,
                    "recall": self._recall(seed),
                },
                "cost": {
                    **defended.cost,
                    "extra_tokens": tokens_of(defended.cost) - reference.tokens,
                    "attack_seconds": artifact.facts["seconds"],
                    "attack_peak_memory_bytes": artifact.facts["peak_memory_bytes"],
                },
                "notes": {**defended.notes, **cast(dict[str, float], artifact.facts["notes"])},
                "train_config": dataclasses.asdict(defended.config),
            }
            perplexity = utility[Perplexity.name].headline.value
            self._add(row, artifact, outcomes, measured_of(row, attack, delta, perplexity, scores, terms))

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

    def _add(
        self, row: Row, artifact: Artifact | None, outcomes: Sequence[Outcome], measured: Measured | None = None
    ) -> None:
        row["key"] = artifact.key + row["recipe"][:8] if artifact else digest([row["recipe"], row["error"]])
        self._tally.add(row, measured)
        if not self._writer:
            return
        self._writer.row(row)
        if artifact:
            self._writer.file(outcomes_name(row["recipe"]), lambda path: write_outcomes(path, outcomes))
            if self._settings.log_samples:
                lines = "".join(json.dumps(dict(sample)) + "\n" for sample in read_samples(artifact))
                self._writer.text(f"outcomes/{row['recipe'][:32]}.samples.jsonl", lines)

    def _names(self, defense: Defense, attack: Attack) -> Row:
        work = self._work
        return {
            "benchmark": work.names[0],
            "benchmark_version": work.benchmark.version,
            "model": work.names[1],
            "data": f"{work.corpus_digest[:12]}/{work.base_digest[:12]}",
            "detector_spec": work.bench.detector_name,
            "detector_recall": self._settings.detector_recall,
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
                # Not the names above: where data and model lie, and how that was written, is not what they are.
                "benchmark": [work.benchmark.name, work.benchmark.version],
                "base": work.base_digest,
                "defense": defense.spec,
                "attack": attack.spec,
                "outside": [defense.outside(), attack.outside()],
                "code": [code_of(part) for part in (work.benchmark, defense, attack, "memdefense.lab")],
                "utilities": [code_of(utility) for utility in self._utilities],
                "config": dataclasses.asdict(work.config),
                "corpus": work.corpus_digest,
                "detector": work.bench.detector_identity,
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
            "provenance": made_with(self._provenance, registry.versions_of(work.benchmark, defense, attack)),
        }


def _detector_recall(work: Work, seed: int) -> float | None:
    """The share of the secrets' occurrences in the training text that a seed's detector finds; None without any."""
    lab = work.lab("detector", seed)
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
    """The largest cost, at least 0, of those that could be measured; NaN where one of the needed is not known.

    Args:
        costs: by utility.
        needed: those without which a point may have lost anything, of which the others see nothing.
    """
    if any(math.isnan(costs[name]) for name in needed):
        return math.nan
    return max(0.0, *(cost for cost in costs.values() if not math.isnan(cost)))
