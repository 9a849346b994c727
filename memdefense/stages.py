"""What the hooks of one defense make, each kept in the store: documents, trained points, edited points."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from memdefense.bench import StoredPoint, add_cost, save_point, stored_points
from memdefense.corpus import Document, Documents, Redrawn, digest_documents, read_documents, write_documents
from memdefense.defense import Defense, Point, overrides
from memdefense.errors import PluginError
from memdefense.lab import Lab
from memdefense.memory import peak, reset_peak
from memdefense.store import Artifact
from memdefense.train import precision
from memdefense.work import Work, hooked


def curated_by(work: Work, defense: Defense, lab: Lab, before: str) -> tuple[Documents, dict[str, float]]:
    """The documents to train on, and the hook's notes; ``before`` is the digest of those it is given.

    Raises:
        PluginError: the hook raised, changed what it was given, left nothing, or made documents of its own.
    """
    if not overrides(defense, "curate"):
        return lab.originals, {}

    def draw(epoch: int) -> tuple[list[Document], dict[str, float]]:
        config = dataclasses.asdict(lab.config)
        parts = {**work.inputs(defense, lab.seed), "documents": before, "epoch": epoch, "config": config}

        def maker(folder: Path) -> Mapping[str, object]:
            own = work.lab(defense.spec, lab.seed, lab.originals)
            own.config = lab.config
            started = time.monotonic()
            kept = hooked(defense, "curate", lambda: list(defense.curate(tuple(lab.originals), own, epoch=epoch)))
            known = {document.id for document in lab.originals}
            if not kept or any(document.id not in known for document in kept):
                what = "left no documents" if not kept else "made documents with ids of its own"
                raise PluginError(f"'{defense.spec}' failed in curate(): it {what}; keep the ids of those it was given")
            check_documents(defense, lab.originals, before)
            write_documents(folder / "documents.jsonl", kept)
            return {"notes": {**own.notes, "curate_seconds": round(time.monotonic() - started, 3)}}

        artifact = work.bench.store.make("curate", parts, maker)
        notes: dict[str, float] = dict(artifact.facts["notes"])  # type: ignore[call-overload]
        return list(read_documents(artifact.file("documents.jsonl"))), notes

    first, notes = draw(0)
    seconds = notes.pop("curate_seconds")
    lab.cost["curate_seconds"] = seconds
    return (Redrawn(first, lambda epoch: draw(epoch)[0]) if defense.redraws else tuple(first)), notes


def trained_by(
    work: Work, defense: Defense, lab: Lab, curated: Documents
) -> tuple[list[StoredPoint], dict[str, float]]:
    """The points of training, and what they cost.

    Raises:
        PluginError: the hook raised, changed the base model or the documents, or yielded no point.
    """
    if not overrides(defense, "train"):
        return hooked(defense, "train", lambda: lab.fit_stored(work.base, curated)), dict(lab.cost)
    parts = {
        **work.inputs(defense, lab.seed),
        "documents": digest_documents(curated),
        "originals": digest_documents(lab.originals),
        "config": dataclasses.asdict(lab.config),
        "precision": _precision(work, lab),
    }

    def hook() -> Iterable[Point]:
        given = work.base.copy()
        before = digest_documents(curated)
        yield from defense.train(given, curated, lab)
        if given.digest() != work.base_digest:
            raise PluginError(f"'{defense.spec}' changed the base model in train(); train a copy (lab.fit does)")
        check_documents(defense, curated, before)

    artifact = _points(work, "train", parts, defense, lab, hook)
    return stored_points(artifact), {**lab.cost, **_cost(artifact)}


def edited_by(
    work: Work, defense: Defense, lab: Lab, curated: Documents, trained: list[StoredPoint]
) -> tuple[list[StoredPoint], dict[str, float]]:
    """The points after the weights were edited, and what that cost; the trained ones where nothing is.

    Raises:
        PluginError: the hook raised, changed the documents, or yielded no point.
    """
    if not overrides(defense, "edit"):
        return trained, {"edit_seconds": 0.0}
    points: list[StoredPoint] = []
    cost: dict[str, float] = {}
    for source in trained if work.edit_all else trained[-1:]:
        parts = {
            **work.inputs(defense, lab.seed),
            "model": source.digest,
            "documents": digest_documents(curated),
            "config": dataclasses.asdict(lab.config),
            "precision": _precision(work, lab),
        }

        def hook(source: StoredPoint = source) -> Iterable[Point]:
            before = digest_documents(curated)
            yield from defense.edit(source.load(lab.device), curated, lab)
            check_documents(defense, curated, before)

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

        hooked(defense, kind, stored)
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


def check_documents(defense: Defense, documents: Documents, before: str) -> None:
    """Notices a hook that worked on the documents themselves.

    Raises:
        PluginError: they are not what they were.
    """
    if digest_documents(documents) != before:
        raise PluginError(f"defense '{defense.spec}' changed the documents it was given; return new ones instead")


def _precision(work: Work, lab: Lab) -> str:
    """What a hook trains in; that of a model narrower than the base follows from it."""
    return precision(lab.config.dtype, lab.device, width=work.base.width)


def _cost(artifact: Artifact) -> dict[str, float]:
    cost: dict[str, float] = dict(artifact.facts["cost"])  # type: ignore[call-overload]
    return cost
