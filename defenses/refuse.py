"""The model that says nothing: no extraction, no use. It must not win a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from memdefense import GREEDY, PLAIN, Defense, Documents, Sampling, Signals

if TYPE_CHECKING:
    from memdefense import LM, Lab, Target
    from memdefense.target import Law, TextGuard


@dataclasses.dataclass(frozen=True)
class Refuse(Defense):
    """Undefended training behind a guard that answers every prompt with nothing.

    It shows that the utility axis works: a guard that blocks everything costs 100 %. It does not touch
    log-probabilities, so membership attacks that read those see the undefended model.
    """

    name: ClassVar[str] = "refuse"
    summary: ClassVar[str] = "Answers nothing: a trivial row that must not win."
    paper: ClassVar[str] = "no paper, a trivial row [ours]"
    family: ClassVar[str] = "trivial"
    protects_not: ClassVar[str] = "Log-probabilities and weights: it only silences text."

    def guard(self, target: Target, documents: Documents, lab: Lab) -> Target:
        return _Silent(target)


@dataclasses.dataclass(frozen=True)
class _Silent:
    """A target whose text is always empty; what it would have said is not even generated."""

    behind: Target

    @property
    def model(self) -> LM:
        return self.behind.model

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int, sampling: Sampling = GREEDY) -> list[str]:
        return [""] * len(prompts)

    def continues(self, prompts: Sequence[str], values: Sequence[str]) -> list[bool]:
        return [False] * len(prompts)

    def signals(
        self, texts: Sequence[str], *, contexts: Sequence[str] | None = None, sampling: Sampling = PLAIN
    ) -> list[Signals]:
        return self.behind.signals(texts, contexts=contexts, sampling=sampling)

    def guarded(
        self, *, law: Law | None = None, text: TextGuard | None = None, sampling: Sampling | None = None
    ) -> Target:
        return _Silent(self.behind.guarded(law=law, text=text, sampling=sampling))

    def unfiltered(self) -> Target:
        return self.behind.unfiltered()

    def filtered(self, prompts: Sequence[str], continuations: Sequence[str], *, max_new_tokens: int) -> list[str]:
        return [""] * len(prompts)
