"""The defended model and the defended text themselves, out of the store and into a folder of the user's own."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from memdefense import registry
from memdefense.bench import Progress, StoredPoint
from memdefense.corpus import Benchmark, write_documents
from memdefense.defense import Defense, overrides
from memdefense.errors import DataError, SpecError
from memdefense.pipeline import Defended, defend
from memdefense.plugin import Plugin, spell
from memdefense.results import check_new, plain
from memdefense.runner import prepare
from memdefense.settings import Settings
from memdefense.work import retried

# Why documents are in neither split, by what `Corpus.counts` calls it.
_LEFT_OUT = {
    "empty": "without text",
    "short": "too short",
    "duplicates": "held-out copies of each other",
    "near_duplicates": "held-out ones that repeat a private one",
}


def export(
    benchmark: Benchmark,
    defense: Defense,
    output: Path,
    *,
    settings: Settings,
    point: str = "",
    whole: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes one operating point of a defense into a new folder, which holds private text and is the owner's alone.

    ``model`` is the model with its tokenizer, ``text.jsonl`` what it was trained on after the defense (of a defense
    that draws anew in every epoch, of the first), ``train.jsonl`` and ``held_out.jsonl`` the documents as they were,
    and ``defended.json`` how it was made, what was read and what was left out. A document's ``source`` is where it
    stood in the data: the number of its row, from 0, or the path of its message. What a run of the same settings has
    trained is taken from the store.

    Args:
        benchmark: whose text it is.
        defense: one spec of a defense.
        output: a folder that is not there yet, or is empty.
        settings: how it is trained; of one seed.
        point: the label of an operating point; "" is the last.
        whole: also trains on the text that is held out for measuring; the model is then another than the one measured.
        progress: told of every long step.

    Returns:
        What ``defended.json`` holds.

    Raises:
        SpecError: more than one seed, or no point of that label.
        DataError: the folder is not empty, or cannot be written.
    """
    if len(settings.seeds) != 1:
        raise SpecError(f"one model has one seed, not {len(settings.seeds)}")
    check_new(output)
    work = prepare(benchmark, settings, progress)
    private = (*work.corpus.train, *work.corpus.held_out) if whole else None

    def made() -> tuple[Defended, StoredPoint, Path]:
        defended = defend(work, defense, settings.seeds[0], private)
        chosen = _point(defended, point)
        return defended, chosen, chosen.artifact.file(chosen.folder)

    defended, chosen, weights = retried(work.bench, made)
    facts: dict[str, Any] = {
        "benchmark": benchmark.spec,
        "base": work.base.origin or f"{benchmark.name} default",
        "defense": defense.spec,
        "guarded": overrides(defense, "guard"),
        "curates": overrides(defense, "curate"),
        "seed": defended.seed,
        "point": chosen.label,
        "at": chosen.at,
        "held_out": [] if whole else [document.id for document in work.corpus.held_out],
        "counts": dict(work.corpus.counts),
        "documents": {
            "trained on": len(defended.curated),
            "changed": len({*defended.curated} - {*defended.originals}),
            "dropped": len({document.id for document in defended.originals} - {doc.id for doc in defended.curated}),
        },
        "detector": work.bench.detector_name,
        "detector_recall": settings.detector_recall,
        "training": dataclasses.asdict(defended.config),
        "notes": defended.notes,
        "cost": defended.cost,
        "digest": chosen.digest,
        **work.bench.surroundings(),
    }
    sources = work.corpus.sources
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as aside:
            folder = Path(aside) / "whole"
            folder.mkdir(mode=0o700)
            shutil.copytree(weights, folder / "model")
            write_documents(folder / "text.jsonl", defended.curated, sources)
            write_documents(folder / "train.jsonl", defended.originals, sources)
            write_documents(folder / "held_out.jsonl", () if whole else work.corpus.held_out, sources)
            (folder / "defended.json").write_text(json.dumps(plain(facts), indent=1) + "\n", encoding="utf-8")
            folder.replace(output)  # over an empty folder too
    except OSError as error:
        raise DataError(f"cannot write {output}: {error.strerror}; choose another folder with -o") from error
    return facts


def told(facts: Mapping[str, Any]) -> list[str]:
    """What became of the documents, in a sentence each: what was read and left out, and what the defense did to them.

    Args:
        facts: as `export` returns them.
    """
    counts, documents = facts["counts"], facts["documents"]
    lines = []
    if "read" in counts:
        missing = [f"{counts[name]:,} {words}" for name, words in _LEFT_OUT.items() if counts.get(name)]
        lines.append(
            f"{counts['read']:,} documents read, {counts['train']:,} of them private text, {counts['held_out']:,} held "
            f"out" + (f"; left out: {', '.join(missing)}" if missing else "")
        )
    lines.append(
        f"trained on {documents['trained on']:,} documents; the defense changed {documents['changed']:,} and dropped "
        f"{documents['dropped']:,}"
    )
    if facts["notes"]:
        lines.append(", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in facts["notes"].items()))
    if facts["curates"] and not (documents["changed"] or documents["dropped"]):
        lines.append("the defense found nothing to change: the text is what it was")
    return lines


def one_defense(spec: str) -> Defense:
    """The one defense that a text names.

    Raises:
        SpecError: it names none or several, or one that runs a grid.
    """
    named = registry.instances("defenses", spec)
    specs = [made for _, several in named for made in several]
    if len(named) != 1:
        raise SpecError(f"one defense is exported, not {len(named)}; join several with +, as in dedup+rmft")
    if len(specs) != 1:
        raise SpecError(
            f"{spec} stands for {len(specs)} operating points; name one, with all of its fields: "
            + "; ".join(_whole_spec(made) for made in specs)
        )
    return cast(Defense, specs[0])


def _whole_spec(plugin: Plugin) -> str:
    """A spec that stands for one point: of a grid's default, whose own spec is the bare name, a field is spelt out."""
    if ":" in plugin.spec or not plugin.fields:
        return plugin.spec
    name, value = next(iter(plugin.fields.items()))
    return f"{plugin.spec}:{name.replace('_', '-')}={spell(value)}"


def _point(defended: Defended, label: str) -> StoredPoint:
    labels = [point.label for point in defended.points]
    if label and label not in labels:
        raise SpecError(f"{defended.defense.spec} has no point '{label}'; it has {', '.join(labels)}")
    return defended.points[labels.index(label) if label else -1]


__all__ = ["export", "one_defense", "told"]
