"""Runs every defense against every attack, and scores the pairs; no plugin is named or treated apart here."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch

from memdefense import registry
from memdefense.attack import Attack, Measure, Utility
from memdefense.bench import Bench, Progress, save_point, stored_points
from memdefense.corpus import Benchmark, Corpus, digest_documents
from memdefense.defense import Defense, Point
from memdefense.detector import Detector
from memdefense.errors import DataError, MemdefenseError, SpecError, hint
from memdefense.fields import check_fields
from memdefense.lab import Lab
from memdefense.limits import limited_corpus, with_general_text
from memdefense.lm import LM, best_device
from memdefense.recipe import code_of, code_of_run
from memdefense.reference import UNDEFENDED
from memdefense.results import Results, Writer
from memdefense.settings import Settings
from memdefense.sheet import Sheet
from memdefense.store import Store
from memdefense.train import TrainConfig, precision
from memdefense.work import Work, hooked, retried

logger = logging.getLogger(__name__)


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
    plan = planned(benchmark, defenses, attacks, settings)
    writer = Writer(Path(settings.output)) if settings.output else None  # first: a wrong folder is told at once
    try:
        work = prepare(plan.benchmark, settings, progress)
    except MemdefenseError:
        if writer:
            writer.forget()
        raise
    if writer:
        writer.text("config.json", json.dumps(_described(plan, settings, work), indent=1, default=str))
    sheet = Sheet(work, settings, plan.utilities, plan.attacks, writer)
    try:
        for seed in settings.seeds:
            sheet.undefended(seed)
            for label, specs in plan.arms.items():
                for defense in specs:
                    retried(work.bench, functools.partial(sheet.unit, label, defense, seed))
        entries = sheet.entries()
    finally:
        _tell_reuse(work.bench.store)
    return Results(sheet.rows, entries, writer.folder if writer else None)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run measures.

    Attributes:
        benchmark: the data and the base model.
        arms: defenses by label, the undefended first, named or not.
        attacks: what is played.
        utilities: what is measured of every point beside.
    """

    benchmark: Benchmark
    arms: Mapping[str, Sequence[Defense]]
    attacks: Sequence[Attack]
    utilities: Sequence[Utility]


def planned(benchmark: Benchmark | str, defenses: object, attacks: object, settings: Settings) -> Plan:
    """What was named, and the code behind it read.

    Raises:
        SpecError: a name or a field is wrong, or no attack was named.
        DataError: a file that a field names is not there or cannot be read.
    """
    chosen = one_benchmark(benchmark)
    arms = _arms(defenses, settings.baselines)
    played = [cast(Attack, made[0]) for _, made in registry.instances("attacks", attacks)]
    utilities = [cast(Utility, made[0]) for _, made in registry.instances("utilities", "all")]
    if not played:
        raise SpecError("no attack was named; give one, such as prefix")
    for plugin in (chosen, *(spec for specs in arms.values() for spec in specs), *played, *utilities):
        plugin.ready()
    _pin([chosen, *(spec for specs in arms.values() for spec in specs)], [*played, *utilities])
    return Plan(chosen, arms, played, utilities)


def _pin(plugins: Sequence[object], measures: Sequence[Measure]) -> None:
    """Reads the code that keys are made of now, which is read once a process.

    A file that is edited while a run goes on must not lend its name to what the code that was loaded before makes.
    """
    core = [f"memdefense.{name}" for name in ("lab", "fit", "pipeline", "remember", "target", "entries")]
    for plugin in (*plugins, *measures, *core):
        code_of(plugin)
    for measure in measures:
        code_of_run(measure)


def one_benchmark(given: Benchmark | str) -> Benchmark:
    """The one benchmark that was named.

    Raises:
        SpecError: it is none, or several.
    """
    named = registry.instances("benchmarks", given)
    if len(named) != 1:
        raise SpecError(
            f"a run has one benchmark, not {len(named)}: {', '.join(label for label, _ in named) or 'none'}"
        )
    return cast(Benchmark, named[0][1][0])


def _one_detector(given: Detector | str) -> Detector:
    named = registry.instances("detectors", given) if isinstance(given, str) else [("", [given])]
    if len(named) != 1:
        raise SpecError(f"a run has one detector, not {len(named)}: {', '.join(label for label, _ in named) or 'none'}")
    detector = named[0][1][0]
    if not isinstance(detector, Detector):
        raise SpecError(f"detector is {given!r}; it takes a memdefense.Detector, or the spec of one, such as presidio")
    detector.ready()
    return detector


def _worth_telling(record: logging.LogRecord) -> bool:
    """False of the advice to mask padding: rows of training begin and end with the separator, which many models pad
    with too, and what is really padded stands at their end, where nothing reads it."""
    return "recommend passing in an `attention_mask`" not in record.getMessage()


def prepare(benchmark: Benchmark, settings: Settings, progress: Progress | None = None) -> Work:
    """Corpus, base model and store of a run."""
    logging.getLogger("transformers.modeling_utils").addFilter(_worth_telling)  # once, however often it is added
    device = settings.device or best_device()
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        said = str(error).splitlines()[0]
        raise SpecError(f"device '{device}' cannot be used here: {said}; leave out --device for the best") from error
    detector = _one_detector(settings.detector)
    store = Store(Path(settings.store or os.environ.get("MEMDEFENSE_STORE") or "~/.cache/memdefense").expanduser())
    bench = Bench(
        store, device, settings.batch_size, settings.micro_batch, settings.detector_recall, progress, detector
    )
    named = _named(bench, settings) if settings.model else None  # a wrong name is told before much is read
    if progress:
        progress(f"reading {benchmark.spec}", 0, 0)
    corpus = hooked(benchmark, "corpus", benchmark.corpus)
    if settings.general_text:
        corpus = with_general_text(corpus, Path(settings.general_text))
    if settings.limit:
        logger.warning("--limit %d measures a sample; do not publish its numbers", settings.limit)
        corpus = limited_corpus(corpus, settings.limit)
    again = functools.partial(_base, bench, benchmark, corpus, settings)
    base = named or retried(bench, again)
    config = _config(benchmark, settings, base)
    return Work(bench, benchmark, corpus, corpus.digest(), base, base.digest(), config, again, settings.edit_all)


def _settings(settings: Settings | None, options: Mapping[str, object]) -> Settings:
    known = {field.name for field in dataclasses.fields(Settings)}
    for name in options:
        if name not in known:
            raise SpecError(f"run() has no option '{name}'{hint(name, known)}")
    given = dataclasses.replace(settings or Settings(), **options)  # type: ignore[arg-type]
    if isinstance(given.seeds, int):
        raise SpecError(f"seeds={given.seeds} is one number; it takes several, such as range({given.seeds}) or (0, 1)")
    check_fields(given, "run()")
    for seed in given.seeds:
        if not isinstance(seed, int) or seed < 0:
            raise SpecError(f"a seed is {seed!r}; it takes a whole number, 0 or more")
    if not given.seeds:
        raise SpecError("no seed was given; one run needs at least one")
    if not 0 < given.detector_recall <= 1:
        raise SpecError(f"detector recall is {given.detector_recall}; it is a share above 0, at most 1")
    return given


def _arms(defenses: object, baselines: str) -> dict[str, list[Defense]]:
    """Defenses by label, the undefended first, named or not."""
    arms: dict[str, list[Defense]] = {UNDEFENDED.spec: [UNDEFENDED]}
    asked = registry.instances("defenses", defenses)
    if not asked:
        raise SpecError("no defense was named; give one, such as rmft, or none for the baseline alone")
    named = [*asked, *registry.instances("defenses", baselines)]
    for label, made in named:
        specs = [cast(Defense, item) for item in made]
        arms.setdefault(specs[0].spec if len(specs) == 1 else label, specs)
    return arms


def _named(bench: Bench, settings: Settings) -> LM:
    return LM.load(settings.model, revision=settings.revision or None, device=bench.device)


def _base(bench: Bench, benchmark: Benchmark, corpus: Corpus, settings: Settings) -> LM:
    if settings.model:
        return _named(bench, settings)
    lab = Lab(bench, who=benchmark.name, seed=0, originals=(), public=corpus.public, config=benchmark.config, base=None)
    parts = {
        "benchmark": benchmark.spec,
        "version": benchmark.version,
        "code": code_of(benchmark),
        "core": code_of("memdefense.lab"),
        "precision": precision(benchmark.config.dtype, bench.device),
        "public": digest_documents(corpus.public),
        **bench.surroundings(),
    }

    def maker(folder: Path) -> Mapping[str, object]:
        return {
            "points": [
                save_point(folder, 0, Point("base", 0.0, hooked(benchmark, "base", lambda: benchmark.base(lab))))
            ],
            "cost": lab.cost,
        }

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


def _described(plan: Plan, settings: Settings, work: Work) -> dict[str, object]:
    corpus = work.corpus
    return {
        "benchmark": work.names[0],
        "defenses": {label: [spec.spec for spec in specs] for label, specs in plan.arms.items()},
        "attacks": [attack.spec for attack in plan.attacks],
        "settings": {**settings.told(), "detector": work.bench.detector_name},
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
        try:
            (store.folder / "last-run.json").write_text(json.dumps(store.events, default=str))
        except OSError as error:  # what it stands in for, a full disk say, has been told or is about to be
            logger.debug("what was reused is not written down: %s", error)


__all__ = ["Plan", "Results", "Settings", "one_benchmark", "planned", "prepare", "run"]
