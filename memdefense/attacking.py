"""Attacks on a model that the user brings, with what it was trained on and what it was not; no defense is trained."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import cast

import torch

from memdefense import registry
from memdefense.attack import Attack
from memdefense.bench import Progress, StoredPoint
from memdefense.corpus import Benchmark
from memdefense.defense import Defense
from memdefense.errors import MemdefenseError, NotApplicable, SpecError, StoreError
from memdefense.lm import LM
from memdefense.pipeline import Defended, measure, scored, write_outcomes
from memdefense.recipe import code_of, digest
from memdefense.results import SCHEMA, Row, Writer, made_with, outcomes_name, provenance, say, score_rows
from memdefense.runner import prepare
from memdefense.settings import Settings, nameplate
from memdefense.store import Artifact
from memdefense.work import Work, retried


def attack_model(
    benchmark: Benchmark,
    attacks: object,
    *,
    settings: Settings,
    reference: str = "",
    progress: Progress | None = None,
) -> list[Row]:
    """Plays attacks against one model and scores them; an attack that fails is a row of status ``error``.

    Args:
        benchmark: whose ``train`` are the members and whose ``held_out`` are not.
        attacks: specs, objects, or a mix.
        settings: how it is run; ``model`` is what is attacked.
        reference: hub id or folder of the model before it saw the members, at its default revision, for attacks that
            compare with it or start from it; without it, they are played as far as `Attack.without_base` goes.
        progress: told of every long step.

    Raises:
        MemdefenseError: what the user can mend before anything runs.
    """
    if not settings.model:
        raise SpecError("no model was named; give the one that is attacked, a folder or a hub id")
    played = [cast(Attack, made[0]) for _, made in registry.instances("attacks", attacks)]
    if not played:
        raise SpecError("no attack was named; give one, such as prefix")
    for attack in played:
        attack.ready()
    writer = Writer(Path(settings.output)) if settings.output else None

    def load(device: str) -> LM:
        return LM.load(settings.model, revision=settings.revision or None, device=device)

    attacked = load("cpu")
    block = min(benchmark.config.block_size, attacked.context)  # of models that an attack may train
    base, revision = (reference, "") if reference else (settings.model, settings.revision)
    started = dataclasses.replace(settings, model=base, revision=revision, training={"block_size": block})
    work = prepare(benchmark, started, progress)
    attacked.to(work.bench.device)
    point = StoredPoint("as brought", 1.0, attacked.digest(), cast(Artifact, None), "", load)
    if reference and work.base_digest == point.digest:
        raise SpecError(f"'{reference}' is '{settings.model}' itself; give the model before it saw the members")
    if reference and attacked.model.config.vocab_size != work.base.model.config.vocab_size:
        raise SpecError(f"'{reference}' is no reference for '{settings.model}': their vocabularies differ")
    if writer:
        named = {
            "benchmark": work.names[0],
            "attacks": [attack.spec for attack in played],
            "reference": nameplate(reference),
        }
        told = {**settings.told(), "detector": work.bench.detector_name}
        writer.text("config.json", json.dumps({**named, "settings": told}, indent=1))
    rows = []
    for seed in settings.seeds:
        defended = Defended(
            work, Defense(), seed, work.config, work.corpus.train, work.corpus.train, (point,), notes={}, cost={}
        )
        for number, attack in enumerate(played):
            if progress:
                progress(f"{attack.spec}, seed {seed}", number, len(played))
            rows.append(_row(work, defended, point, attacked, attack, bool(reference), writer))
    return rows


def _row(
    work: Work,
    defended: Defended,
    point: StoredPoint,
    attacked: LM,
    asked: Attack,
    compared: bool,
    writer: Writer | None,
) -> Row:
    """One attack's row; ``compared`` says that the base model is the one before the members."""
    asked = asked.of_brought()
    played = asked if compared else asked.without_base()
    attack = played or asked
    code = [code_of(attack), code_of("memdefense.lab")]
    recipe = digest(
        {
            "model": point.digest,
            "base": work.base_digest,
            "corpus": work.corpus_digest,
            "attack": attack.spec,
            "outside": attack.outside(),
            "seed": defended.seed,
            "code": code,
        }
    )
    row: Row = {
        "row": "attack",
        "schema": SCHEMA,
        "benchmark": work.names[0],
        "benchmark_version": work.benchmark.version,
        "model": nameplate(attacked.origin),
        "attack": attack.name,
        "attack_spec": attack.spec,
        "attack_family": attack.family,
        "access": attack.access,
        "seed": defended.seed,
        "recipe": recipe,
        "status": "ok",
        "error": "",
        "leakage": None,
    }
    try:
        if not played:
            raise NotApplicable(
                "it needs the model before it saw the members, and none was given; give --reference with its folder "
                "or hub id"
            )
        outcomes, artifact = retried(work.bench, lambda: measure(defended, point, attack, lambda: attacked))
        scores, _ = scored(attack, outcomes)
    except StoreError:
        raise
    except MemdefenseError as error:
        row |= {"status": "n/a" if isinstance(error, NotApplicable) else "error", "error": say(error)}
    else:
        row |= {
            "leakage": scores.headline.value,
            "scores": score_rows(scores, "leakage"),
            "notes": {**cast(dict[str, float], artifact.facts["notes"]), "without_base": float(attack != asked)},
            "cost": {name: artifact.facts[name] for name in ("seconds", "peak_memory_bytes")},
        }
        if writer:
            writer.file(outcomes_name(recipe), functools.partial(write_outcomes, outcomes=outcomes))
    row["key"] = digest([recipe, row["status"], row["error"]])
    made = provenance(work.bench.device, torch.get_num_threads(), str(attacked.model.dtype), nameplate(attacked.origin))
    row["provenance"] = made_with(made, registry.versions_of(work.benchmark, asked))
    if writer:
        writer.row(row)
    return row
