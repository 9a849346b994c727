"""The model before the private text: perfectly private, and useless for what it was not taught."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from memdefense import Defense, Documents, Point

if TYPE_CHECKING:
    from memdefense import LM, Lab


@dataclasses.dataclass(frozen=True)
class NeverTrained(Defense):
    """The base model as it is.

    It bounds both axes: whatever it leaks, the model knew before it was fine-tuned, and whatever utility it has came
    without the private text. A defense that costs more than this one is not worth its training.
    """

    name: ClassVar[str] = "never-trained"
    summary: ClassVar[str] = "The base model, never fine-tuned: a trivial row."
    paper: ClassVar[str] = "no paper, a trivial row [ours]"
    family: ClassVar[str] = "trivial"
    protects_not: ClassVar[str] = "Text that was public already, or in the base model's own training data."

    def train(self, model: LM, documents: Documents, lab: Lab) -> Iterator[Point]:
        yield Point("base", 0.0, model)
