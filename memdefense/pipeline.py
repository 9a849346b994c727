"""From one defense, one seed and one benchmark to measured operating points; it reads and writes the store alone.

The runner has no special case: everything a defense is, it is through its hooks.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import jsonlines

from memdefense.attack import Attack, Measure, Outcome, Term
from memdefense.corpus import (
    Benchmark,
    Corpus,
    Document,
    Documents,
    Redrawn,
    digest_documents,
    read_documents,
    write_documents,
)
from memdefense.defense import Defense, Point, overrides
from memdefense.errors import MemdefenseError, PluginError
from memdefense.lab import AttackLab, Bench, Lab, StoredPoint, add_cost, save_point, stored_points
from memdefense.lm import LM
from memdefense.memory import peak, reset_peak
from memdefense.recipe import code_of
from memdefense.remember import Remembered, remembered
from memdefense.score import Scores
from memdefense.store import Artifact, DamagedError
from memdefense.target import Target, limited
from memdefense.train import TrainConfig

logger = logging.getLogger(__name__)
Made = TypeVar("Made")


@dataclasses.dataclass(frozen=True)
class Work:
    """What all units of a run have in common.

    Attributes:
        corpus_digest: of ``corpus``, so that it is read once.
        base_digest: of ``base``'s weights.
        config: how the undefended model is trained.
        edit_all: whether every training point is edited, not the last alone.
    """

    bench: Bench
    benchmark: Benchmark
    corpus: Corpus
    corpus_digest: str
    base: LM
    base_digest: str
    config: TrainConfig
    edit_all: bool = False

    @functools.cached_property
    def public_digest(self) -> str:
        """Of the documents anyone may use."""
        return digest_documents(self.corpus.public)

    def lab(self, who: str, seed: int, originals: Documents | None = None) -> Lab:
        """A defense's lab."""
        return Lab(
            self.bench,
            who=who,
            seed=seed,
            originals=self.corpus.train if originals is None else originals,
            public=self.corpus.public,
            config=self.config,
            base=self.base,
        )

    def inputs(self, plugin: Defense | Measure, seed: int) -> dict[str, object]:
        """What every key of a plugin's work holds."""
        return {
            "plugin": plugin.spec,
            "outside": plugin.outside(),
            "code": code_of(plugin),
            "core": code_of("memdefense.lab"),
            "seed": seed,
            "recall": self.bench.detector_recall,
            "base": self.base_digest,
            "public": self.public_digest,
            **self.bench.surroundings(),
        }


@dataclasses.dataclass(frozen=True)
class Defended:
    """One defense on one seed: its points, and what went into them."""

    work: Work
    defense: Defense
    seed: int
    config: TrainConfig
    originals: Documents
    curated: Documents
    points: Sequence[StoredPoint]
    notes: Mapping[str, float]
    cost: Mapping[str, float]

    @functools.cached_property
    def curated_digest(self) -> str:
        """Of the documents of epoch 0."""
        return digest_documents(self.curated)

    def target(self, model: LM) -> Target:
        """A model behind the defense's guard."""
        return self.served(model)[0]

    def served(
        self, model: LM, point: StoredPoint | None = None, replay: Callable[[float], None] = lambda seconds: None
    ) -> tuple[Target, Mapping[str, float]]:
        """A model behind the defense's guard, and what the guard notes.

        Args:
            model: what answers.
            point: whose weights they are, to the last bit: then signals are kept, those under the guard for all arms
                that share the weights.
            replay: told of the seconds of a pass that was made before.
        """
        lab = self.work.lab(self.defense.spec, self.seed, self.originals)
        lab.config = self.config
        target = lab.serve(model)
        if point:
            target = remembered(target, self.work.bench.store, self._identity(point), replay)
        guarded = _hook(self.defense, "guard", lambda: self.defense.guard(target, self.curated, lab))
        if point and not isinstance(guarded, Remembered):
            guarded = remembered(guarded, self.work.bench.store, self._identity(point, guard=True), replay)
        return guarded, lab.notes

    def _identity(self, point: StoredPoint, *, guard: bool = False) -> dict[str, object]:
        """What decides all a point says: its weights, and the guard with everything that it is made from."""
        made: dict[str, object] = {}
        if guard:
            originals, config = digest_documents(self.originals), dataclasses.asdict(self.config)
            made = self.work.inputs(self.defense, self.seed)
            made |= {"originals": originals, "curated": self.curated_digest, "config": config}
        return {"model": point.digest, "guard": made or "", **self.work.bench.surroundings()}


def defend(work: Work, defense: Defense, seed: int, documents: Documents | None = None) -> Defended:
    """Runs the hooks of one defense, each from the store where it is there.

    Args:
        work: the run's corpus, base model and store.
        defense: what is run.
        seed: of the order, and of every draw a hook makes.
        documents: other private documents than the corpus's, for shadow models.

    Raises:
        PluginError: a hook raised, changed its input, or yielded no point.
    """
    # Copies: a defense that changes what it was given must not reach the ones that run after it.
    given = work.corpus.train if documents is None else documents
    originals = tuple(dataclasses.replace(document) for document in given)
    before = digest_documents(originals)
    lab = work.lab(defense.spec, seed, originals)
    lab.config = config = _hook(defense, "configure", lambda: defense.configure(work.config, lab))
    curated, notes = _curate(work, defense, lab, before)
    trained, cost = _train(work, defense, lab, curated)
    trained = trained[-1:] if defense.last else trained
    points, edit_cost = _edit(work, defense, lab, curated, trained)
    _check_documents(defense, originals, before)
    return Defended(
        work, defense, seed, config, originals, curated, points, {**notes, **lab.notes}, {**cost, **edit_cost}
    )


def measure(
    defended: Defended, point: StoredPoint, plugin: Measure, model: Callable[[], LM]
) -> tuple[list[Outcome], Artifact]:
    """The outcomes of an attack or utility on one point.

    Args:
        defended: whose point it is.
        point: what is measured.
        plugin: the attack or utility.
        model: loads the point's model, called only where the store has no outcomes.
    """
    work, defense, seed = defended.work, defended.defense, defended.seed
    guarded = overrides(defense, "guard")
    parts = {
        **work.inputs(plugin, seed),
        "model": point.digest,
        "at": point.at,
        "guard": [defense.spec, code_of(defense)] if guarded else "",
        "corpus": work.corpus_digest,
        "curated": defended.curated_digest,
        "config": dataclasses.asdict(work.config),
    }
    if plugin.shadows:
        own = dataclasses.asdict(defended.config)
        parts["defense"] = [defense.spec, code_of(defense), code_of("memdefense.pipeline"), own, point.label]

    def maker(folder: Path) -> Mapping[str, object]:
        corpus = work.corpus.copy()  # and a copy of the weights below: what one plugin breaks, no other gets
        attacked = model().copy() if plugin.access == "weights" else model()

        def again(documents: Documents, other: int) -> Target:
            return _shadow(work, defense, point.label, documents, other, lab.replay)

        lab = AttackLab(
            work.bench,
            who=plugin.spec,
            seed=seed,
            originals=corpus.train,
            public=corpus.public,
            config=work.config,
            base=work.base,
            curated=defended.curated,
            defended=again if plugin.shadows else None,
            at=point.at,
            base_digest=work.base_digest,
        )
        # Weights that an attack can reach may change under what is remembered of them.
        target, guard_notes = defended.served(attacked, None if plugin.access == "weights" else point, lab.replay)
        reset_peak(work.bench.device)
        started = time.monotonic()
        outcomes = _hook(plugin, "run", lambda: list(plugin.run(limited(target, plugin.access), corpus, lab)))
        seconds = time.monotonic() - started + lab.replayed
        if corpus.digest() != work.corpus_digest:
            raise PluginError(f"'{plugin.spec}' changed the corpus it was given; work on copies instead")
        if plugin.access == "weights" and attacked.digest() != point.digest:
            raise PluginError(f"'{plugin.spec}' changed the weights it was given; work on target.model.copy()")
        write_outcomes(folder / "outcomes.jsonl", outcomes)
        with jsonlines.open(folder / "samples.jsonl", "w") as lines:
            lines.write_all(lab.samples)
        return {
            "seconds": seconds,
            "notes": {**guard_notes, **lab.notes},
            "peak_memory_bytes": peak(work.bench.device),
        }

    kind = "outcomes"
    artifact = work.bench.store.make(kind, parts, maker)
    return read_outcomes(artifact.file("outcomes.jsonl")), artifact


def scored(attack: Attack, outcomes: Sequence[Outcome]) -> tuple[Scores, Sequence[Term]]:
    """An attack's scores and terms; what they raise is an error that names the attack."""
    scores = _hook(attack, "score", lambda: attack.score(outcomes))
    return scores, _hook(attack, "terms", lambda: list(attack.terms(outcomes)))


def retried(store_of: Bench, task: Callable[[], Made]) -> Made:
    """Runs a unit again where it met a damaged artifact, which is dropped first."""
    for _ in range(20):
        try:
            return task()
        except DamagedError as damaged:
            logger.warning("the store's copy of %s; it is made again", damaged)
            store_of.store.drop(damaged.key)
    return task()


def write_outcomes(path: Path, outcomes: Iterable[Outcome]) -> None:
    """One JSON line per outcome: unit ids and numbers, never a value."""
    with jsonlines.open(path, "w") as lines:
        lines.write_all(dataclasses.asdict(outcome) for outcome in outcomes)


def read_outcomes(path: Path) -> list[Outcome]:
    """What `write_outcomes` wrote."""
    with jsonlines.open(path) as lines:
        return [Outcome(**line) for line in lines]


def _hook(plugin: Defense | Measure, name: str, call: Callable[[], Made]) -> Made:
    """Runs one hook; what it raises becomes an error that names it."""
    try:
        return call()
    except (MemdefenseError, DamagedError):
        raise
    except Exception as error:
        logger.debug("%s.%s failed", plugin.spec, name, exc_info=True)
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        line = f" ({Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno})" if where else ""
        raise PluginError(f"'{plugin.spec}' failed in {name}(): {type(error).__name__}: {error}{line}") from error


def _curate(work: Work, defense: Defense, lab: Lab, before: str) -> tuple[Documents, dict[str, float]]:
    if not overrides(defense, "curate"):
        return lab.originals, {}

    def draw(epoch: int) -> tuple[list[Document], dict[str, float]]:
        config = dataclasses.asdict(lab.config)
        parts = {**work.inputs(defense, lab.seed), "documents": before, "epoch": epoch, "config": config}

        def maker(folder: Path) -> Mapping[str, object]:
            own = work.lab(defense.spec, lab.seed, lab.originals)
            own.config = lab.config
            started = time.monotonic()
            kept = _hook(defense, "curate", lambda: list(defense.curate(tuple(lab.originals), own, epoch=epoch)))
            known = {document.id for document in lab.originals}
            if not kept or any(document.id not in known for document in kept):
                what = "left no documents" if not kept else "made documents with ids of its own"
                raise PluginError(f"'{defense.spec}' failed in curate(): it {what}; keep the ids of those it was given")
            _check_documents(defense, lab.originals, before)
            write_documents(folder / "documents.jsonl", kept)
            return {"notes": {**own.notes, "curate_seconds": round(time.monotonic() - started, 3)}}

        artifact = work.bench.store.make("curate", parts, maker)
        notes: dict[str, float] = dict(artifact.facts["notes"])  # type: ignore[call-overload]
        return list(read_documents(artifact.file("documents.jsonl"))), notes

    first, notes = draw(0)
    seconds = notes.pop("curate_seconds")
    lab.cost["curate_seconds"] = seconds
    return (Redrawn(first, lambda epoch: draw(epoch)[0]) if defense.redraws else tuple(first)), notes


def _train(work: Work, defense: Defense, lab: Lab, curated: Documents) -> tuple[list[StoredPoint], dict[str, float]]:
    if not overrides(defense, "train"):
        return lab.fit_stored(work.base, curated), dict(lab.cost)
    parts = {
        **work.inputs(defense, lab.seed),
        "documents": digest_documents(curated),
        "originals": digest_documents(lab.originals),
        "config": dataclasses.asdict(lab.config),
    }

    def hook() -> Iterable[Point]:
        given = work.base.copy()
        before = digest_documents(curated)
        yield from defense.train(given, curated, lab)
        if given.digest() != work.base_digest:
            raise PluginError(f"'{defense.spec}' changed the base model in train(); train a copy (lab.fit does)")
        _check_documents(defense, curated, before)

    artifact = _points(work, "train", parts, defense, lab, hook)
    return stored_points(artifact), {**lab.cost, **_cost(artifact)}


def _edit(
    work: Work, defense: Defense, lab: Lab, curated: Documents, trained: list[StoredPoint]
) -> tuple[list[StoredPoint], dict[str, float]]:
    if not overrides(defense, "edit"):
        return trained, {}
    points: list[StoredPoint] = []
    cost: dict[str, float] = {}
    for source in trained if work.edit_all else trained[-1:]:
        parts = {
            **work.inputs(defense, lab.seed),
            "model": source.digest,
            "documents": digest_documents(curated),
            "config": dataclasses.asdict(lab.config),
        }

        def hook(source: StoredPoint = source) -> Iterable[Point]:
            before = digest_documents(curated)
            yield from defense.edit(source.load(lab.device), curated, lab)
            _check_documents(defense, curated, before)

        artifact = _points(work, "edit", parts, defense, lab, hook)
        for point in stored_points(artifact):
            points.append(dataclasses.replace(point, label=f"{source.label}/{point.label}", at=source.at))
        spent = _cost(artifact)
        seconds = spent.pop("train_seconds")
        add_cost(cost, {"edit_seconds": seconds, **{f"edit_{name}": value for name, value in spent.items()}})
    return points, cost


def _points(
    work: Work, kind: str, parts: Mapping[str, object], defense: Defense, lab: Lab, hook: Callable[[], Iterable[Point]]
) -> Artifact:
    def maker(folder: Path) -> Mapping[str, object]:
        started, replayed = time.monotonic(), dict(lab.cost)
        reset_peak(work.bench.device)
        saved: list[dict[str, object]] = []

        def stored() -> None:
            for point in hook():
                if not isinstance(point, Point):
                    raise TypeError(f"it yields {type(point).__name__}, not memdefense.Point")
                saved.append(save_point(folder, len(saved), point))

        _hook(defense, kind, stored)
        labels = [str(point["label"]) for point in saved]
        if not saved or len(set(labels)) < len(labels):
            what = "yielded no operating point" if not saved else "yielded two points of one label"
            raise PluginError(f"'{defense.spec}' failed in {kind}(): it {what}")
        spent = {name: lab.cost[name] - replayed[name] for name in ("train_seconds", "tokens")}
        own = max(0.0, time.monotonic() - started - lab.fit_wall)
        spent["train_seconds"] += own
        memory = max(float(peak(work.bench.device)), lab.cost["peak_memory_bytes"])  # of a fit within, or after it
        return {"points": saved, "notes": lab.notes, "cost": {**spent, "peak_memory_bytes": memory}}

    lab.fit_wall = lab.cost["peak_memory_bytes"] = 0.0
    artifact = work.bench.store.make(kind, parts, maker)
    lab.notes.update(artifact.facts["notes"])  # type: ignore[call-overload]
    return artifact


def _check_documents(defense: Defense, documents: Documents, before: str) -> None:
    if digest_documents(documents) != before:
        raise PluginError(f"defense '{defense.spec}' changed the documents it was given; return new ones instead")


def _cost(artifact: Artifact) -> dict[str, float]:
    cost: dict[str, float] = dict(artifact.facts["cost"])  # type: ignore[call-overload]
    return cost


def _shadow(
    work: Work, defense: Defense, label: str, documents: Documents, seed: int, replay: Callable[[float], None]
) -> Target:
    started = time.monotonic()
    shadow = defend(work, defense, seed, documents)
    # An attack costs what its shadow models cost, also where another seed of the run has trained them before.
    spent = sum(seconds for name, seconds in shadow.cost.items() if name.endswith("_seconds"))
    replay(max(0.0, spent - (time.monotonic() - started)))
    point = next((point for point in shadow.points if point.label == label), shadow.points[-1])
    return shadow.served(point.load(work.bench.device), point, replay)[0]


__all__ = [
    "Defended",
    "Work",
    "defend",
    "measure",
    "read_outcomes",
    "retried",
    "scored",
    "write_outcomes",
]
