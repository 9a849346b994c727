"""What the runner lends a plugin: training, the detector, random streams, a cache; and what it may not see it lacks."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from memdefense import pii
from memdefense.bench import Bench, StoredPoint, add_cost, save_point, stored_points
from memdefense.corpus import Document, Documents, Redrawn, digest_documents
from memdefense.defense import Point
from memdefense.errors import DataError, PluginError
from memdefense.fit import FitTrainer, fit, load_checkpoint
from memdefense.lm import LM
from memdefense.memory import peak, reset_peak
from memdefense.packing import Blank, count_epochs, rows, step_at
from memdefense.recipe import code_of, digest
from memdefense.remember import remembered
from memdefense.sibling import smaller
from memdefense.target import LocalTarget
from memdefense.train import Loss, TrainConfig, next_token_loss, precision

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from memdefense.lm import Target

Made = TypeVar("Made")
_NEVER = 1 << 62  # the step at which a document is read that never is


class Lab:
    """What a defense's hook works with.

    Attributes:
        originals: the private documents before any curation.
        public: documents anyone may use.
        config: how the undefended model is trained.
        device: ``cpu`` or ``cuda``.
        seed: of the run.
    """

    def __init__(
        self,
        bench: Bench,
        *,
        who: str,
        seed: int,
        originals: Documents,
        public: Documents,
        config: TrainConfig,
        base: LM | None,
    ) -> None:
        self.originals, self.public, self.config, self.seed = originals, public, config, seed
        self.device = bench.device
        self.notes: dict[str, float] = {}
        self.cost: dict[str, float] = {"train_seconds": 0.0, "tokens": 0.0, "peak_memory_bytes": 0.0}
        self.fit_wall = 0.0  # seconds really spent in `fit`, replays aside
        self._bench, self._who, self._base = bench, who, base

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the model that is defended."""
        return self._start().tokenizer

    def fit(
        self,
        model: LM,
        documents: Documents,
        *,
        loss: Loss | None = None,
        trainer: type[FitTrainer] | None = None,
        blank: Blank | None = None,
        config: TrainConfig | None = None,
    ) -> Iterable[Point]:
        """Trains a copy of ``model`` and yields its checkpoints; the store makes a second call free.

        Args:
            model: where training starts; never changed in place.
            documents: what it is trained on.
            loss: what is minimised; the mean next-token loss by default. Its fields and code are part of the key.
            trainer: a subclass of FitTrainer, for what a loss cannot say.
            blank: gives the spans of a document's text (in characters) whose tokens stay in the context and are never
                a target; a token that shares a character with a span is left out whole.
            config: another than the lab's own.
        """
        for point in self.fit_stored(model, documents, loss=loss, trainer=trainer, blank=blank, config=config):
            yield Point(point.label, point.at, point.load(self.device))

    def fit_stored(
        self,
        model: LM,
        documents: Documents,
        *,
        loss: Loss | None = None,
        trainer: type[FitTrainer] | None = None,
        blank: Blank | None = None,
        config: TrainConfig | None = None,
    ) -> list[StoredPoint]:
        """As `fit`, but the checkpoints stay in the store."""
        config = config or self.config
        drawn = [documents]
        if isinstance(documents, Redrawn):
            drawn = [documents.epoch(e) for e in range(count_epochs(config, documents, model, seed=self.seed))]
        spans = functools.cache(blank) if blank else None  # what is keyed is what is trained
        parts = {
            "code": code_of("memdefense.fit"),
            "model": model.digest(),
            "documents": [digest_documents(own) for own in drawn],
            "config": dataclasses.asdict(config),
            "precision": precision(config.dtype, self.device, width=model.width),  # "auto" differs between machines
            "seed": self.seed,
            "loss": _custom(loss),
            "trainer": code_of(trainer) if trainer else "",
            **({"blank": digest([[list(spans(d.text)) for d in own] for own in drawn])} if spans else {}),
            **self._bench.surroundings(),
        }

        def maker(folder: Path) -> Mapping[str, object]:
            reset_peak(self.device)
            kept, cost = fit(
                model,
                documents,
                folder / "training",
                config=config,
                seed=self.seed,
                device=self.device,
                loss=loss or next_token_loss,
                trainer=trainer or FitTrainer,
                blank=spans,
                micro_batch=self._bench.micro_batch,
                progress=(lambda done, total: self.progress("training", done, total)),
            )
            points = []
            for place, checkpoint in enumerate(kept):
                trained = load_checkpoint(checkpoint, model, self.device)
                points.append(save_point(folder, place, Point(checkpoint.label, checkpoint.at, trained)))
            shutil.rmtree(folder / "training", ignore_errors=True)
            return {"points": points, "cost": {**cost, "peak_memory_bytes": float(peak(self.device))}}

        started = time.monotonic()
        artifact = self._bench.store.make("fit", parts, maker)
        self.fit_wall += time.monotonic() - started
        add_cost(self.cost, artifact.facts["cost"])  # type: ignore[arg-type]
        return stored_points(artifact)

    def fresh(self, shrink: int = 1) -> LM:
        """The model before the private text, in memory of its own, or a smaller one of its family.

        A smaller one starts from random weights and is fitted on the public text: five epochs at a learning rate that
        follows from its size (Kaplan et al. 2020, appendix D.6), the rest as in ``config``; the store keeps it.

        Args:
            shrink: what width and number of layers are divided by.

        Raises:
            SpecError: ``shrink`` is below 1.
            ModelError: the model is too small to shrink so far.
            DataError: there is no public text to fit a smaller one on.
        """
        if shrink == 1:
            return self._start().copy()
        small = smaller(self._start(), shrink, seed=self.seed)
        if not self.public:
            raise DataError("there is no public text, on which a smaller model would be fitted; use shrink=1")
        config = dataclasses.replace(
            self.config,
            epochs=5.0,
            steps=0,
            learning_rate=0.003239 - 0.0001395 * math.log(small.parameters()),
            schedule="linear",
            pack="tokens",
            checkpoints=1,
            lora=None,
        )
        *_, last = self.fit(small, self.public, config=config)
        return last.model

    def _start(self) -> LM:
        if self._base is None:
            raise PluginError("a benchmark's base() has no model to start from: that is what it makes")
        return self._base

    def serve(self, model: LM) -> Target:
        """A model ready to answer prompts, unguarded."""
        return LocalTarget(model, self._bench.batch_size)

    def find(self, text: str, kinds: Sequence[str] = ()) -> list[pii.Pii]:
        """What the defender's detector finds, less the values that its recall makes it miss.

        Args:
            text: where it is looked for.
            kinds: that are wanted; none given, all that the detector finds.
        """
        known = self._bench.found.get(text)
        if known is None:
            known = self._bench.found[text] = self._bench.detector.find(text)
        if kinds:
            known = [hit for hit in known if hit.kind in kinds]
        recall = self._bench.detector_recall
        if recall >= 1:
            return list(known)
        return [hit for hit in known if _fraction(f"{self.seed}/{hit.kind}/{hit.canonical}") < recall]

    def cached(self, purpose: str, make: Callable[[], Made], *inputs: object) -> Made:
        """The result of ``make``, kept in the store under its code and inputs.

        Args:
            purpose: what it is, for `memdefense cache explain`.
            make: returns tensors, numbers and strings in lists and dicts; nothing else survives.
            inputs: all it depends on: models, documents, JSON values.
        """
        parts = {"purpose": purpose, "code": code_of(make), "inputs": [_content(item) for item in inputs]}

        def maker(folder: Path) -> Mapping[str, object]:
            torch.save(make(), folder / "value.pt")
            return {}

        artifact = self._bench.store.make("cached", {**parts, **self._bench.surroundings()}, maker)
        made: Made = torch.load(artifact.file("value.pt"), weights_only=True)
        return made

    def rng(self, purpose: str) -> np.random.Generator:
        """The random stream of this run, plugin and purpose, from its start."""
        seed = hashlib.sha256(f"{self.seed}/{self._who}/{purpose}".encode()).digest()
        return np.random.default_rng(np.frombuffer(seed, dtype=np.uint32))

    def note(self, **values: float) -> None:
        """Numbers that belong beside the result: epsilon spent, documents dropped, edits made."""
        self.notes.update({name: float(value) for name, value in values.items()})

    def spend(self, tokens: float) -> None:
        """Counts tokens that a hook trained on in a loop of its own; `fit` counts its own."""
        self.cost["tokens"] += tokens

    def progress(self, what: str, done: int, total: int) -> None:
        """Tells whoever watches how far a long step is."""
        if self._bench.progress:
            self._bench.progress(f"{self._who}, seed {self.seed}: {what}", done, total)


class AttackLab(Lab):
    """What an attack works with, beside its target and the corpus.

    Attributes:
        base: the model before the private text, which an attacker may own too.
        curated: the documents the target was really trained on, to label what was kept.
        at: the share of the undefended run that the target stands for.
        replayed: seconds of passes that others made and whose signals were used here.
    """

    def __init__(
        self,
        bench: Bench,
        *,
        who: str,
        seed: int,
        originals: Documents,
        public: Documents,
        config: TrainConfig,
        base: LM,
        curated: Documents,
        defended: Callable[[Sequence[Document], int], Target] | None,
        at: float = 1.0,
        base_digest: str = "",
    ) -> None:
        super().__init__(bench, who=who, seed=seed, originals=originals, public=public, config=config, base=base)
        self.base, self.curated, self.at = base, curated, at
        self.samples: list[Mapping[str, str]] = []
        self.replayed = 0.0
        self._defended, self._base_digest = defended, base_digest

    def serve(self, model: LM) -> Target:
        """As `Lab.serve`; what the base model says of a text stays in the store, for all defenses and seeds."""
        target = super().serve(model)
        if model is not self.base:
            return target
        self._base_digest = self._base_digest or model.digest()
        identity = {"model": self._base_digest, "guard": "", **self._bench.surroundings()}
        return remembered(target, self._bench.store, identity, self.replay)

    def replay(self, seconds: float) -> None:
        """Counts the time of a pass that was made before."""
        self.replayed += seconds

    def defend(self, documents: Documents, seed: int) -> Target:
        """The whole defended pipeline again, on other documents: a shadow model.

        It is taken at the operating point that is attacked, or at the last where there is none of that label.

        Raises:
            PluginError: the attack did not declare that it uses the defense.
        """
        if self._defended is None:
            raise PluginError(
                f"'{self._who}' runs the defense again without saying so: let its `shadows` be True, so that what it "
                "finds is kept apart for each defense"
            )
        return self._defended(documents, seed)

    def seen(self) -> frozenset[str]:
        """Ids of the original documents that the undefended run has read from at ``at``, the same for every defense.

        A document counts from its first token on.
        """

        def first_steps() -> list[int]:
            order = rows(self.config, self.originals, self.base, seed=self.seed).columns["document"]  # (rows, T)
            first = np.full(len(self.originals), _NEVER)
            for row in range(len(order) - 1, -1, -1):
                first[order[row][order[row] >= 0]] = row // self.config.batch_size + 1
            return [*first.tolist(), -(-len(order) // self.config.batch_size)]

        if not (self.config.steps or self.config.epochs) or self.at <= 0:
            return frozenset()
        asked = dataclasses.asdict(self.config)
        *first, total = self.cached("first steps", first_steps, self.base, self.originals, asked, self.seed)
        reached = step_at(total, self.at)
        return frozenset(d.id for d, step in zip(self.originals, first, strict=True) if step <= reached)

    def keep(self, sample: Mapping[str, str]) -> None:
        """A raw prompt or generation, for the store's private folder alone."""
        self.samples.append(sample)


def _custom(loss: Loss | None) -> object:
    if loss is None:
        return ""
    fields: dict[str, str] = {}
    if dataclasses.is_dataclass(loss):
        fields = {field.name: str(getattr(loss, field.name)) for field in dataclasses.fields(loss)}
    content = getattr(loss, "digest", None)  # a loss that holds a model says which
    return [code_of(loss), fields, content() if callable(content) else ""]


def _content(item: object) -> object:
    if isinstance(item, LM):
        return item.digest()
    if isinstance(item, Sequence) and item and isinstance(item[0], Document):
        return digest_documents(item)
    return digest(item)


def _fraction(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") / 2**64
