"""From one defense, one seed and one benchmark to measured operating points; it reads and writes the store alone.

The runner has no special case: everything a defense is, it is through its hooks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import jsonlines

from memdefense.attack import Attack, Measure, Outcome, Term, Utility
from memdefense.bench import StoredPoint
from memdefense.corpus import Documents, Redrawn, digest_documents
from memdefense.defense import Defense, overrides
from memdefense.errors import PluginError
from memdefense.lab import AttackLab
from memdefense.lm import LM
from memdefense.memory import peak, reset_peak
from memdefense.recipe import code_of
from memdefense.remember import Remembered, remembered
from memdefense.score import Scores
from memdefense.stages import check_documents, curated_by, edited_by, trained_by
from memdefense.store import Artifact
from memdefense.target import Target, limited
from memdefense.train import TrainConfig, precision
from memdefense.work import Work, hooked


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
        before = self.curated_digest
        guarded = hooked(self.defense, "guard", lambda: self.defense.guard(target, self.curated, lab))
        if overrides(self.defense, "guard"):
            check_documents(self.defense, self.curated, before)
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
    lab.config = config = hooked(defense, "configure", lambda: defense.configure(work.config, lab))
    curated, notes = curated_by(work, defense, lab, before)
    trained, cost = trained_by(work, defense, lab, curated)
    trained = trained[-1:] if defense.last else trained
    points, edit_cost = edited_by(work, defense, lab, curated, trained)
    check_documents(defense, originals, before)
    stacked = hooked(defense, "beside", lambda: defense.beside(()))
    notes = {**notes, **lab.notes, **stacked}
    return Defended(work, defense, seed, config, originals, curated, points, notes, {**cost, **edit_cost})


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
        "precision": precision(work.config.dtype, work.bench.device, width=work.base.width),
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
            curated=_copied(defended.curated),
            defended=again if plugin.shadows else None,
            at=point.at,
            base_digest=work.base_digest,
        )
        # Weights that an attack can reach may change under what is remembered of them.
        others = (
            []
            if attacked is work.base or plugin.access == "weights"
            else [(attacked, functools.partial(point.load, work.bench.device))]
        )
        with work.untouched(defense, *others) if guarded else contextlib.nullcontext():
            target, guard_notes = defended.served(attacked, None if plugin.access == "weights" else point, lab.replay)
        reset_peak(work.bench.device)
        started = time.monotonic()
        shown = target if isinstance(plugin, Utility) else limited(target, plugin.access)
        with work.untouched(plugin, *others):
            outcomes = hooked(plugin, "run", lambda: list(plugin.run(shown, corpus, lab)))
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


def pricing(defense: Defense, utilities: Iterable[Utility]) -> list[Utility]:
    """The utilities that a defense is measured by; the others cost it nothing."""
    return [utility for utility in utilities if not utility.of_guards or overrides(defense, "guard")]


def scored(attack: Attack, outcomes: Sequence[Outcome]) -> tuple[Scores, Sequence[Term]]:
    """An attack's scores and terms; what they raise is an error that names the attack."""
    scores = hooked(attack, "score", lambda: attack.score(outcomes))
    return scores, hooked(attack, "terms", lambda: list(attack.terms(outcomes)))


def write_outcomes(path: Path, outcomes: Iterable[Outcome]) -> None:
    """One JSON line per outcome: unit ids and numbers, never a value."""
    names = [field.name for field in dataclasses.fields(Outcome)]
    with jsonlines.open(path, "w") as lines:
        # Not by asdict, which copies each value with care: there are as many as there are units and points.
        lines.write_all({name: getattr(outcome, name) for name in names} for outcome in outcomes)


def read_outcomes(path: Path) -> list[Outcome]:
    """What `write_outcomes` wrote."""
    with jsonlines.open(path) as lines:
        return [Outcome(**line) for line in lines]


def read_samples(artifact: Artifact) -> Iterator[Mapping[str, str]]:
    """The raw samples an attack kept."""
    with jsonlines.open(artifact.file("samples.jsonl")) as lines:
        yield from lines


def _copied(documents: Documents) -> Documents:
    """Documents of its own for an attack; those that are drawn anew for every epoch are read from the store anyway."""
    if isinstance(documents, Redrawn):
        return documents
    return tuple(dataclasses.replace(document) for document in documents)


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
    "defend",
    "measure",
    "pricing",
    "read_outcomes",
    "read_samples",
    "scored",
    "write_outcomes",
]
