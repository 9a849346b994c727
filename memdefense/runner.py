"""Runs every defense against every attack, and scores the pairs; no plugin is named or treated apart here."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch

from memdefense import registry
from memdefense.attack import Attack, Measure, Outcome, Utility
from memdefense.corpus import Benchmark, Corpus, digest_documents
from memdefense.defense import Defense, Point, overrides
from memdefense.entries import Arm, Measured, entry_of, reduction
from memdefense.errors import DataError, MemdefenseError, NotApplicable, SpecError, StoreError, hint
from memdefense.lab import Bench, Lab, Progress, StoredPoint, read_samples, save_point, stored_points
from memdefense.limits import limited_corpus, with_general_text
from memdefense.lm import LM, best_device
from memdefense.pipeline import Defended, Work, defend, measure, retried, write_outcomes
from memdefense.recipe import code_of, digest
from memdefense.results import SCHEMA, Results, Row, Writer, provenance, say, score_rows
from memdefense.score import Scores
from memdefense.store import Artifact, Store
from memdefense.train import TrainConfig
from memdefense.utility import Perplexity

logger = logging.getLogger(__name__)
UNDEFENDED = Defense()


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a run is run; ``batch_size``, ``micro_batch`` and ``output`` change no number.

    Attributes:
        model: hub id or folder; "" for the benchmark's own.
        revision: of a hub model.
        seeds: one run of every defense each.
        training: fields of `TrainConfig` that override the benchmark's.
        store: where artifacts are kept; "" is ``$MEMDEFENSE_STORE`` or ``~/.cache/memdefense``.
        output: where results are written; "" writes none.
        device: ``cpu`` or ``cuda``; "" is the best there is.
        batch_size: sequences per evaluation pass; 0 chooses.
        micro_batch: rows per training pass; 0 is the whole batch.
        general_text: a text file for the general perplexity.
        detector_recall: drops values from the defender's detector by a seeded hash.
        edit_all: edits every training point, not the last alone.
        limit: so many secrets and held-out documents, sampled; 0 takes all.
        log_samples: writes prompts and generations beside the results; they hold private text.
        baselines: trivial defenses that come along in every run.
    """

    model: str = ""
    revision: str = ""
    seeds: Sequence[int] = (0,)
    training: Mapping[str, object] = dataclasses.field(default_factory=dict)
    store: str = ""
    output: str = ""
    device: str = ""
    batch_size: int = 0
    micro_batch: int = 0
    general_text: str = ""
    detector_recall: float = 1.0
    edit_all: bool = False
    limit: int = 0
    log_samples: bool = False
    baselines: str = "never-trained,refuse"


def run(
    benchmark: Benchmark | str = "mailbox",
    defenses: object = "rmft",
    attacks: object = "prefix",
    *,
    settings: Settings | None = None,
    progress: Progress | None = None,
    **options: object,
) -> Results:
    """Measures defenses against attacks; the undefended baseline comes along, named or not.

    Args:
        benchmark: a spec such as ``mailbox:documents=500``, or an object.
        defenses: specs (``"none,rmft,dedup+rmft"``), objects that need not be registered, or a mix.
        attacks: likewise.
        settings: how it is run.
        progress: told of every long step.
        options: fields of `Settings`, instead of an object.

    Raises:
        MemdefenseError: what the user can mend before anything runs. A pair that fails while it runs is a row of
            status ``error``, and the others go on.
    """
    settings = _settings(settings, options)
    chosen = cast(Benchmark, registry.instances("benchmarks", benchmark)[0][1][0])
    arms = _arms(defenses, settings.baselines)
    played = [cast(Attack, made[0]) for _, made in registry.instances("attacks", attacks)]
    utilities = [cast(Utility, made[0]) for _, made in registry.instances("utilities", "all")]
    if not played:
        raise SpecError("no attack was named; give one, such as prefix")
    work = prepare(chosen, settings, progress)
    writer = Writer(Path(settings.output)) if settings.output else None
    if writer:
        writer.text("config.json", json.dumps(_described(chosen, arms, played, settings, work), indent=1, default=str))
    sheet = Sheet(work, settings, utilities, played, writer)
    try:
        for seed in settings.seeds:
            sheet.undefended(seed)
            for label, specs in arms.items():
                for defense in specs:
                    retried(work.bench, functools.partial(sheet.unit, label, defense, seed))
        entries = sheet.entries(arms)
    finally:
        _tell_reuse(work.bench.store)
    return Results(sheet.rows, entries, writer.folder if writer else None)


def prepare(benchmark: Benchmark, settings: Settings, progress: Progress | None = None) -> Work:
    """Corpus, base model and store of a run."""
    device = settings.device or best_device()
    store = Store(Path(settings.store or os.environ.get("MEMDEFENSE_STORE") or "~/.cache/memdefense").expanduser())
    bench = Bench(store, device, settings.batch_size, settings.micro_batch, settings.detector_recall, progress)
    if progress:
        progress(f"reading {benchmark.spec}", 0, 0)
    corpus = benchmark.corpus()
    if settings.general_text:
        corpus = with_general_text(corpus, Path(settings.general_text))
    if settings.limit:
        logger.warning("--limit %d measures a sample; do not publish its numbers", settings.limit)
        corpus = limited_corpus(corpus, settings.limit)
    base = cast(LM, retried(bench, lambda: _base(bench, benchmark, corpus, settings)))
    config = _config(benchmark, settings, base)
    return Work(bench, benchmark, corpus, corpus.digest(), base, base.digest(), config, settings.edit_all)


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
        self._references: dict[int, _Reference] = {}
        self._recall = _detector_recall(work)
        self._provenance = provenance(
            work.bench.device, torch.get_num_threads(), work.config.dtype, work.base.origin or work.base_digest[:12]
        )

    def undefended(self, seed: int) -> None:
        """The baseline of one seed: what leakage and utility are relative to."""
        self._references[seed] = cast(_Reference, retried(self._work.bench, lambda: self._reference(seed)))

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
        """One row per defense and attack."""
        found = []
        for label, specs in arms.items():
            for attack in self._attacks:
                undefended = self._measured.get((UNDEFENDED.spec, attack.spec), [])
                measured = {name: Arm(self._measured.get((name, attack.spec), []), undefended) for name in arms}
                rows = [r for r in self.rows if r["defense_label"] == label and r["attack_spec"] == attack.spec]
                statuses: dict[str, int] = {}
                for row in rows:
                    statuses[row["status"]] = statuses.get(row["status"], 0) + 1
                named = {
                    "row": "entry",
                    "schema": SCHEMA,
                    **self._names(specs[0], attack),
                    "defense_label": label,
                    "defense_spec": [spec.spec for spec in specs],
                    "statuses": statuses,
                    "errors": sorted({row["error"] for row in rows if row["error"]}),
                    "train_seconds": math.fsum(_cost_of(rows, "train_seconds")),
                }
                entry = {**named, **entry_of(measured[label], list(measured.values())), "provenance": self._provenance}
                entry["recipe"] = digest(sorted({row["recipe"] for row in rows}))
                entry["key"] = digest([entry["recipe"], sorted(row["key"] for row in rows)])
                found.append(entry)
                if self._writer:
                    self._writer.row(entry)
        return found

    def _reference(self, seed: int) -> _Reference:
        defended = defend(self._work, UNDEFENDED, seed)
        readings = {point.label: self._utility(defended, point) for point in defended.points}
        perplexity = {label: scores[Perplexity.name].headline.value for label, scores in readings.items()}
        best = min(perplexity, key=lambda label: perplexity[label])
        never = measure(defended, _as_point(self._work), Perplexity(), lambda: self._work.base)[0]
        return _Reference(
            {name: scores.headline.value for name, scores in readings[best].items()},
            {point.label: point for point in defended.points},
            {point.label: self._outcomes(defended, point) for point in defended.points},
            defended.curated_digest,
            Perplexity().score(never).headline.value,
            100 * (perplexity[defended.points[-1].label] / perplexity[best] - 1),
        )

    def _utility(self, defended: Defended, point: StoredPoint) -> dict[str, Scores]:
        return {
            utility.name: utility.score(found)
            for utility, found in zip(self._utilities, self._outcomes(defended, point), strict=True)
        }

    def _outcomes(self, defended: Defended, point: StoredPoint) -> list[list[Outcome]]:
        model = functools.cache(lambda: point.load(self._work.bench.device))
        return [measure(defended, point, utility, model)[0] for utility in self._utilities]

    def _point(self, label: str, defended: Defended, point: StoredPoint) -> None:
        work, seed, defense = self._work, defended.seed, defended.defense
        model = functools.cache(lambda: point.load(work.bench.device))
        try:
            found = [measure(defended, point, utility, model)[0] for utility in self._utilities]
        except StoreError:
            raise
        except MemdefenseError as error:
            for attack in self._attacks:
                self._failed(label, defense, attack, seed, point.label, error)
            return
        utility = {u.name: u.score(outcomes) for u, outcomes in zip(self._utilities, found, strict=True)}
        reference = self._references[seed]
        costs = {u.name: u.cost(utility[u.name].headline.value, reference.utility[u.name]) for u in self._utilities}
        known = [cost for cost in costs.values() if math.isfinite(cost)]
        delta = max(known) if known else math.nan
        status = self._status(defended, point, found, utility, reference)
        for number, attack in enumerate(self._attacks):
            if work.bench.progress:
                work.bench.progress(
                    f"{defense.spec}, seed {seed}: point {point.label}, {attack.spec}", number, len(self._attacks)
                )
            try:
                outcomes, artifact = measure(defended, point, attack, model)
                scores = attack.score(outcomes)
                terms = attack.terms(outcomes)
            except StoreError:
                raise
            except MemdefenseError as error:
                self._failed(label, defense, attack, seed, point.label, error)
                continue
            name = (
                point.label if len(defended.points) == 1 or label == defense.spec else f"{defense.spec}@{point.label}"
            )
            self._measured.setdefault((label, attack.spec), []).append(
                Measured(
                    seed, name, delta, scores, terms, utility[Perplexity.name].headline.value, status, defense.spec
                )
            )
            row = {
                **self._head(label, defense, attack, seed, point.label),
                "at": point.at,
                "status": status,
                "error": "",
                "leakage": scores.headline.value,
                "scores": score_rows(scores, "leakage"),
                "utility": {u: score_rows(s, u) for u, s in utility.items()},
                "d": {**costs, "worst": delta},
                "overfit_percent": reference.overfit,
                "detector": {"name": "memdefense.pii", "recall": self._recall},
                "cost": {
                    **defended.cost,
                    "attack_seconds": artifact.facts["seconds"],
                    "peak_memory_bytes": artifact.facts["peak_memory_bytes"],
                },
                "notes": {**defended.notes, **cast(dict[str, float], artifact.facts["notes"])},
                "train_config": dataclasses.asdict(defended.config),
            }
            self._add(row, artifact, outcomes)

    def _status(
        self,
        defended: Defended,
        point: StoredPoint,
        found: list[list[Outcome]],
        utility: Mapping[str, Scores],
        reference: _Reference,
    ) -> str:
        """``no-op`` where documents, weights and outputs are the undefended run's; ``collapsed`` where the model is
        worse than one that never saw the private text."""
        twin = reference.points.get(point.label)
        if overrides_anything(defended.defense) and twin is not None and twin.digest == point.digest:
            same = all(_close(a, b) for a, b in zip(found, reference.outcomes[point.label], strict=True))
            if same and defended.curated_digest == reference.curated:
                return "no-op"
        if utility[Perplexity.name].headline.value > reference.never_trained * (1 + 1e-9):
            return "collapsed"
        return "ok"

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


@dataclasses.dataclass(frozen=True)
class _Reference:
    """The undefended run of one seed."""

    utility: Mapping[str, float]  # at the checkpoint of the lowest held-out perplexity
    points: Mapping[str, StoredPoint]
    outcomes: Mapping[str, list[list[Outcome]]]
    curated: str
    never_trained: float  # the base model's held-out perplexity
    overfit: float  # percent by which the final held-out perplexity exceeds its minimum


def overrides_anything(defense: Defense) -> bool:
    """Whether a defense is more than the baseline."""
    return any(overrides(defense, hook) for hook in ("configure", "curate", "train", "edit", "guard"))


def _settings(settings: Settings | None, options: Mapping[str, object]) -> Settings:
    known = {field.name for field in dataclasses.fields(Settings)}
    for name in options:
        if name not in known:
            raise SpecError(f"run() has no option '{name}'{hint(name, known)}")
    given = dataclasses.replace(settings or Settings(), **options)  # type: ignore[arg-type]
    if not given.seeds:
        raise SpecError("no seed was given; one run needs at least one")
    if not 0 < given.detector_recall <= 1:
        raise SpecError(f"detector recall is {given.detector_recall}; it is a share above 0, at most 1")
    return given


def _arms(defenses: object, baselines: str) -> dict[str, list[Defense]]:
    """Defenses by label, the undefended first, named or not."""
    arms: dict[str, list[Defense]] = {UNDEFENDED.spec: [UNDEFENDED]}
    named = [*registry.instances("defenses", defenses), *registry.instances("defenses", baselines)]
    for label, made in named:
        specs = [cast(Defense, item) for item in made]
        arms.setdefault(specs[0].spec if len(specs) == 1 else label, specs)
    return arms


def _base(bench: Bench, benchmark: Benchmark, corpus: Corpus, settings: Settings) -> LM:
    if settings.model:
        return LM.load(settings.model, revision=settings.revision or None, device=bench.device)
    lab = Lab(bench, who=benchmark.name, seed=0, originals=(), public=corpus.public, config=benchmark.config, base=None)
    parts = {
        "benchmark": benchmark.spec,
        "version": benchmark.version,
        "code": code_of(benchmark),
        "core": code_of("memdefense.lab"),
        "public": digest_documents(corpus.public),
        **bench.surroundings(),
    }

    def maker(folder: Path) -> Mapping[str, object]:
        return {"points": [save_point(folder, 0, Point("base", 0.0, benchmark.base(lab)))], "cost": lab.cost}

    point = stored_points(bench.store.make("base", parts, maker))[0]
    return dataclasses.replace(point.load(bench.device), origin="")


def _config(benchmark: Benchmark, settings: Settings, base: LM) -> TrainConfig:
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    for name in settings.training:
        if name not in known:
            raise SpecError(f"training has no field '{name}'{hint(name, known)}")
    config = dataclasses.replace(benchmark.config, **settings.training)  # type: ignore[arg-type]
    if config.block_size > base.context:
        raise DataError(
            f"a block size of {config.block_size} is beyond the model's context of {base.context} tokens; "
            "lower it with --block-size"
        )
    return config


def _as_point(work: Work) -> StoredPoint:
    return StoredPoint("base", 0.0, work.base_digest, cast(Artifact, None), "")


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


def _close(ours: Iterable[Outcome], theirs: Iterable[Outcome]) -> bool:
    mine, other = ({o.unit: o.values for o in side} for side in (ours, theirs))
    return mine.keys() == other.keys() and all(
        abs(mine[unit][name] - other[unit][name]) < 1e-6 for unit in mine for name in mine[unit]
    )


def _cost_of(rows: Iterable[Row], name: str) -> list[float]:
    """A cost once per (defense spec, seed): every point of a run carries the whole of it."""
    return list(
        {(row["defense_spec"], row["seed"]): row["cost"].get(name, 0.0) for row in rows if "cost" in row}.values()
    )


def _described(
    benchmark: Benchmark,
    arms: Mapping[str, Sequence[Defense]],
    attacks: Sequence[Measure],
    settings: Settings,
    work: Work,
) -> dict[str, object]:
    corpus = work.corpus
    return {
        "benchmark": benchmark.spec,
        "defenses": {label: [spec.spec for spec in specs] for label, specs in arms.items()},
        "attacks": [attack.spec for attack in attacks],
        "settings": dataclasses.asdict(settings),
        "training": dataclasses.asdict(work.config),
        "corpus": {
            "digest": work.corpus_digest,
            "documents": {s: len(getattr(corpus, s)) for s in ("public", "train", "held_out", "general")},
            "secrets": {"members": sum(s.member for s in corpus.secrets), "all": len(corpus.secrets)},
            "canaries": len(corpus.canaries),
            "counts": dict(corpus.counts),
        },
    }


def _tell_reuse(store: Store) -> None:
    """Leaves what was reused and what was made, and from what, for ``memdefense cache explain``."""
    if store.events:
        (store.folder / "last-run.json").write_text(json.dumps(store.events, default=str))


__all__ = ["Results", "Settings", "prepare", "reduction", "run"]
