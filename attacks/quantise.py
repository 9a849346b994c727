"""Prefix extraction from rounded weights: a small edit of large weights may be lost in the rounding."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from memdefense import LM, Attack, Corpus, Outcome, Scores
from memdefense.attack import Access, Term

from .prefix import Prefix

if TYPE_CHECKING:
    from memdefense import AttackLab
    from memdefense.access import WeightTarget


@dataclasses.dataclass(frozen=True)
class Quantise(Attack):
    """Rounds the weights to a few bits and asks as `prefix` does, with its scores.

    What editing and unlearning change is small beside the weights themselves, so a rounding to few levels may undo it
    and bring back what was there before. This is the attack of one who knows that the weights were edited; it needs
    them, and so bypasses every guard. Against a model that was never edited it shows what the rounding costs by itself,
    and the undefended row beside it is its reference. It cannot show what quantisers that look at data would do.

    Paper: Zhang et al. 2025, arXiv 2410.16454: 4 bits bring back a large part of what was unlearned. Deviates [ours]:
    rounding to nearest, symmetric, with one scale per output channel, in every linear layer but the output embedding;
    activations, embeddings and norms stay. It is simulated: the weights are rounded and stored as float32 again, which
    gives what a kernel with such weights and float32 sums would, at float32's speed.

    Attributes:
        bits: of a weight: 4 leaves 15 levels per output channel, 8 leaves 255.
    """

    name: ClassVar[str] = "quantise"
    family = "extraction"
    summary: ClassVar[str] = "Rounds the weights to 4 or 8 bits, then asks as prefix does."
    passes: ClassVar[str] = "1 generation"
    needs: ClassVar[str] = "secrets"
    paper: ClassVar[str] = "Zhang et al., ICLR 2025, arXiv 2410.16454"
    adaptive_to: ClassVar[tuple[str, ...]] = ("weights",)

    bits: Literal[4, 8] = 4

    @property
    def access(self) -> Access:
        return "weights"

    def run(self, target: WeightTarget, corpus: Corpus, lab: AttackLab) -> Iterator[Outcome]:
        """Rounds, and asks for every secret.

        Raises:
            NotApplicable: as `Prefix.run`.
        """
        model = target.model.copy()
        lab.note(matrices_rounded=quantised(model, self.bits))
        yield from Prefix().run(lab.serve(model), corpus, lab)

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        return Prefix().score(outcomes)

    def terms(self, outcomes: Sequence[Outcome]) -> Sequence[Term]:
        return Prefix().terms(outcomes)


def quantised(lm: LM, bits: int) -> int:
    """Rounds every matrix of a model in place to 2 ** bits - 1 levels per output channel.

    Returns:
        How many matrices were rounded: all linear layers but the output embedding.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    most, count = 2 ** (bits - 1) - 1, 0
    last = lm.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for module in lm.model.modules():
            if not isinstance(module, torch.nn.Linear | Conv1D) or module is last:
                continue
            weight = module.get_parameter("weight")  # (out, in), or (in, out) of a Conv1D
            scale = weight.abs().amax(0 if isinstance(module, Conv1D) else 1, keepdim=True) / most
            weight.copy_(torch.where(scale > 0, (weight / scale).round() * scale, weight))
            count += 1
    return count
