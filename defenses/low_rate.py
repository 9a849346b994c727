"""The control of every defense that makes training slower: the same training at a lower learning rate."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from memdefense import Defense, SpecError

if TYPE_CHECKING:
    from memdefense import Lab
    from memdefense.train import TrainConfig


@dataclasses.dataclass(frozen=True)
class LowRate(Defense):
    """The undefended training with a part of its learning rate: as many passes, smaller steps.

    Early stopping is one way to train less, and a lower rate is another, which nobody needs a paper for. Where the
    undefended rate is higher than held-out text would have it, this row leaks less at no cost, and what a defense is
    worth is what it gains over this one too.

    No paper; all of it [ours]. On `mailbox` (three seeds) it takes 77 % (AURC) of what prefixes draw out, 24 points
    [3, 45] more than stopping early, and ends 2.8 to 4.5 % above the lowest perplexity of the undefended run. On
    version 2, whose own rate was higher than held-out text would have it, it took 95 % and ended below.

    Does not protect anything on purpose: what is seen often enough is learned at any rate.

    Attributes:
        factor: the part of the learning rate, above 0; 1 is the undefended training.

    Raises:
        SpecError: the factor is not above 0, or not finite.
    """

    name: ClassVar[str] = "low-rate"
    summary: ClassVar[str] = "The undefended training at a third of its learning rate: a trivial row."
    paper: ClassVar[str] = "no paper, a control [ours]"
    family: ClassVar[str] = "trivial"
    protects_not: ClassVar[str] = "anything on purpose: what is seen often is learned at any rate"

    factor: float = 1 / 3

    def __post_init__(self) -> None:
        if not 0 < self.factor < float("inf"):
            raise SpecError(f"low-rate: factor is {self.factor}; it must be above 0 and finite")

    def configure(self, config: TrainConfig, lab: Lab) -> TrainConfig:
        return dataclasses.replace(config, learning_rate=config.learning_rate * self.factor)
