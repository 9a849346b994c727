"""What a defense is: five hooks, each of which does nothing by default; the class itself is the undefended baseline."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from memdefense.corpus import Document, Documents, Redrawn
from memdefense.errors import SpecError
from memdefense.plugin import Plugin

if TYPE_CHECKING:
    from memdefense.lab import Lab
    from memdefense.lm import LM, Target
    from memdefense.train import TrainConfig


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    """One operating point of a defense.

    Attributes:
        label: unique per spec, such as ``0.6`` or ``1.0/repair-2``.
        at: the fraction of the undefended run it stands for, 0 to 1.
        model: the model at that point.
    """

    label: str
    at: float
    model: LM


@dataclasses.dataclass(frozen=True)
class Defense(Plugin):
    """The undefended baseline, and the base class of every defense.

    Subclasses are frozen dataclasses whose fields are the hyper-parameters; they override the hooks they need. A hook
    gets documents and a lab, never the answer key.
    """

    name: ClassVar[str] = "none"
    summary: ClassVar[str] = "Ordinary fine-tuning: the undefended baseline every score is relative to."
    paper: ClassVar[str] = ""
    family: ClassVar[str] = "none"
    protects_not: ClassVar[str] = ""

    @property
    def redraws(self) -> bool:
        """Whether `curate` gives different documents in every epoch."""
        return False

    @property
    def last(self) -> bool:
        """Whether only the end of training is defended: its operating points are the specs of `grid` instead."""
        return False

    @classmethod
    def grid(cls) -> Sequence[Defense]:
        """The instances a bare name runs."""
        return [cls()]

    def configure(self, config: TrainConfig, lab: Lab) -> TrainConfig:
        """Changes how the model is trained; ``lab.originals`` are the documents before curation."""
        return config

    def curate(self, documents: Documents, lab: Lab, *, epoch: int = 0) -> Documents:
        """Changes what the model is trained on; documents keep their ids."""
        return documents

    def train(self, model: LM, documents: Documents, lab: Lab) -> Iterable[Point]:
        """Trains ``model`` (never in place) and yields operating points."""
        return lab.fit(model, documents)

    def edit(self, model: LM, documents: Documents, lab: Lab) -> Iterable[Point]:
        """Changes the trained weights and yields operating points; the default leaves them as they are."""
        return [Point("1.0", 1.0, model)]

    def guard(self, target: Target, documents: Documents, lab: Lab) -> Target:
        """Wraps the model at generation time."""
        return target

    def beside(self, others: Sequence[Defense]) -> Mapping[str, float]:
        """Notes on what the other parts of a stack make of this one: an edit voids a guarantee of training, say."""
        return {}


def overrides(defense: Defense, hook: str) -> bool:
    """Whether a defense does anything of its own in a hook."""
    if isinstance(defense, Stack):
        return any(overrides(part, hook) for part in defense.parts)
    return getattr(type(defense), hook) is not getattr(Defense, hook)


@dataclasses.dataclass(frozen=True)
class Stack(Defense):
    """Several defenses as one, ``dedup+rmft``: every hook in the order written.

    Raises:
        SpecError: two parts bring a training of their own.
    """

    name: ClassVar[str] = "stack"
    summary: ClassVar[str] = "Several defenses in order."
    family: ClassVar[str] = "stack"

    parts: tuple[Defense, ...] = ()

    def __post_init__(self) -> None:
        for hook in ("train", "edit"):
            rivals = [part.spec for part in self.parts if overrides(part, hook)]
            if len(rivals) > 1:
                raise SpecError(f"{' and '.join(rivals)} both {hook} the model: a stack can hold one such part")

    @property
    def spec(self) -> str:
        return "+".join(part.spec for part in self.parts)

    @property
    def redraws(self) -> bool:
        return any(part.redraws for part in self.parts)

    @property
    def last(self) -> bool:
        return any(part.last for part in self.parts)

    def configure(self, config: TrainConfig, lab: Lab) -> TrainConfig:
        for part in self.parts:
            config = part.configure(config, lab)
        return config

    def curate(self, documents: Documents, lab: Lab, *, epoch: int = 0) -> Documents:
        for part in self.parts:
            documents = part.curate(documents, lab, epoch=epoch)
        return documents

    def train(self, model: LM, documents: Documents, lab: Lab) -> Iterable[Point]:
        for part in self.parts:
            if overrides(part, "train"):
                return part.train(model, documents, lab)
        return lab.fit(model, documents)

    def edit(self, model: LM, documents: Documents, lab: Lab) -> Iterable[Point]:
        for part in self.parts:
            if overrides(part, "edit"):
                return part.edit(model, documents, lab)
        return [Point("1.0", 1.0, model)]

    def guard(self, target: Target, documents: Documents, lab: Lab) -> Target:
        for part in self.parts:
            target = part.guard(target, documents, lab)
        return target

    def beside(self, others: Sequence[Defense]) -> Mapping[str, float]:
        notes: dict[str, float] = {}
        for place, part in enumerate(self.parts):
            notes.update(part.beside((*others, *self.parts[:place], *self.parts[place + 1 :])))
        return notes


__all__ = ["Defense", "Document", "Documents", "Point", "Redrawn", "Stack", "overrides"]
