"""An example of a third-party defense: it lower-cases what the model is trained on."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from memdefense import Defense, Documents

if TYPE_CHECKING:
    from memdefense import Lab


@dataclasses.dataclass(frozen=True)
class Lowercase(Defense):
    """Lower-cases a share of the training documents.

    A model that never saw a capital letter cannot give one back: names and codes lose their spelling, and text that is
    written as usual becomes harder to predict. An example, not a good defense.

    Does not protect what is written in small letters anyway, as most e-mail addresses are.

    Attributes:
        percent: of the documents that are changed, drawn by the run's seed.
    """

    name: ClassVar[str] = "lowercase"
    summary: ClassVar[str] = "Lower-cases the training text."
    family: ClassVar[str] = "data"
    protects_not: ClassVar[str] = "values in small letters, such as most e-mail addresses"

    percent: float = 100.0

    def curate(self, documents: Documents, lab: Lab, *, epoch: int = 0) -> Documents:
        """The documents, ids kept."""
        drawn = 100 * lab.rng("documents").random(len(documents)) < self.percent
        lab.note(lowercased=float(drawn.sum()))
        return [
            dataclasses.replace(document, text=document.text.lower()) if chosen else document
            for document, chosen in zip(documents, drawn, strict=True)
        ]
