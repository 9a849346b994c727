"""BalancedSubnet: the weights that memorization rests on are found by learned scores, and set to zero."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from memdefense.corpus import Documents
from memdefense.defense import Defense, Point
from memdefense.errors import DataError, SpecError

if TYPE_CHECKING:
    from torch import Tensor

    from memdefense.architecture import Matrix
    from memdefense.lab import Lab
    from memdefense.lm import LM
    from memdefense.mentions import Mention


@dataclasses.dataclass(frozen=True)
class Subnet(Defense):
    """Of each feed-forward matrix the weights without which memorized text is lost, and other text is not, become zero.

    Every weight gets a score. A forward pass leaves out the ``ratio`` of each matrix with the lowest absolute scores;
    the choice passes gradients on to the scores as if it were not there (straight-through). The scores are trained for
    a model that predicts memorized text badly and other text well; then the weights chosen last are zeroed for good.

    Paper: Sakarvadia et al. 2025 (BalancedSubnet): Pythia-6.9B reproduces 6.5 % of its memorized sequences in place of
    89.3 %, at a perplexity of 22.7 in place of 19.5.

    On `mailbox` (three seeds) 0.008 is left of 0.160, at 24.5 % of perplexity: as much as published, for more.

    Does not protect what the detector misses, nor memorized text without PII; and what weights elsewhere hold, in
    attention and embeddings, stays.

    Deviates [ours]: memorized are the first mentions of detected values after up to ``context`` tokens, those ``texts``
    that the model predicts best, and the loss is over the value alone (the authors have whole sequences that the model
    reproduces, and the loss over all tokens); other text is windows of public text, or of the private text where there
    is none, none of which holds PII that the detector finds. Each operating point has a ratio and scores of its own.
    Scores start uniform within the square root of one over a matrix's inputs, as the authors' do for Linear layers
    (theirs for GPT-2's Conv1D take the outputs). As in their code the loss of a batch is the sum over its sequences of
    their mean losses per token, and weight decay is 0.0005. Adapters (LoRA) are merged into the weights before.

    Attributes:
        ratio: share of each matrix that is zeroed, by operating point.
        weight: of the loss on other text; that on memorized text has one less it, with the sign turned.
        epochs: passes over memorized and as much other text.
        texts: values that are forgotten, at most.
        context: tokens before a value, at most, and length of a window of other text.
        batch: sequences per step, memorized and other together.

    Raises:
        SpecError: a number out of range.
        DataError: there is no other text to hold the model in place with.
        ModelError: blocks of an unknown build.
    """

    name: ClassVar[str] = "subnet"
    summary: ClassVar[str] = "Zeroes the feed-forward weights on which memorized PII rests, and other text does not."
    paper: ClassVar[str] = "Sakarvadia et al., ICLR 2025, arXiv 2410.02159"
    family: ClassVar[str] = "weights"
    protects_not: ClassVar[str] = "PII the detector misses, memorized text without PII, what attention has stored"

    ratio: tuple[float, ...] = (0.001, 0.005, 0.01, 0.02, 0.03)
    weight: float = 0.05
    epochs: int = 5
    texts: int = 200
    context: int = 64
    batch: int = 16

    def __post_init__(self) -> None:
        growing = all(a < b for a, b in zip(self.ratio, self.ratio[1:], strict=False))
        if not self.ratio or not growing or self.ratio[0] <= 0 or self.ratio[-1] >= 1:
            raise SpecError(
                f"subnet: ratio is {'|'.join(map(str, self.ratio))}; give growing shares above 0 and below 1"
            )
        if not 0 <= self.weight <= 1:
            raise SpecError(f"subnet: weight is {self.weight}; it is a share, 0 to 1")
        for field in ("epochs", "texts", "context"):
            if getattr(self, field) < 1:
                raise SpecError(f"subnet: {field} is {getattr(self, field)}; it must be at least 1")
        if self.batch < 2:
            raise SpecError(f"subnet: batch is {self.batch}; it must hold a memorized sequence and another")

    def edit(self, model: LM, documents: Documents, lab: Lab) -> Iterator[Point]:
        from memdefense.architecture import blocks_of
        from memdefense.mentions import best_known, mentions

        matrices = [matrix for block in blocks_of(model.model) for matrix in (*block.up, block.down)]
        found = mentions(model, documents, lab, context=self.context)
        memorized = best_known(model, found, self.texts)
        other = _other(model, lab.public or documents, lab, number=len(memorized), length=self.context)
        lab.note(values=len(found), memorized=len(memorized), other=len(other))
        if memorized and not other and self.weight:
            raise DataError(
                f"subnet: no window of {'public' if lab.public else 'private'} text is free of detected PII, so that "
                "nothing holds the model in place; give it public text, or weight=0"
            )
        for ratio in self.ratio:
            edited = model.copy()
            if memorized:
                masks = self._search(model, matrices, memorized, other, ratio, lab)
                for matrix, zeroed in zip(matrices, masks, strict=True):
                    edited.model.get_parameter(f"{matrix.name}.weight").detach()[zeroed] = 0
            yield Point(f"ratio-{ratio}", 1.0, edited)

    def _search(
        self,
        model: LM,
        matrices: Sequence[Matrix],
        memorized: Sequence[Mention],
        other: Sequence[Mention],
        ratio: float,
        lab: Lab,
    ) -> list[Tensor]:
        """Which weights of each matrix, as it is stored, are zeroed: bool."""
        import torch

        from memdefense.mentions import batches

        rng = lab.rng("subnet")
        names = [f"{matrix.name}.weight" for matrix in matrices]
        weights = [matrix.parameter.detach() for matrix in matrices]
        scores = []
        for matrix, weight in zip(matrices, weights, strict=True):
            bound = matrix.weight.shape[1] ** -0.5
            drawn = torch.from_numpy(rng.uniform(-bound, bound, tuple(weight.shape)))
            scores.append(drawn.to(weight.device, weight.dtype).requires_grad_())
        optimizer = torch.optim.SGD(scores, lr=0.1, momentum=0.9, weight_decay=5e-4)
        sequences = [*memorized, *other]
        signs = torch.tensor([self.weight - 1] * len(memorized) + [self.weight] * len(other), device=model.device)
        for epoch in range(self.epochs):
            order = rng.permutation(len(sequences)).tolist()
            for start in range(0, len(order), self.batch):
                chosen = order[start : start + self.batch]
                optimizer.zero_grad()
                for places, ids, value in batches([sequences[place] for place in chosen], model.device):
                    left = {n: w * kept(s, ratio) for n, w, s in zip(names, weights, scores, strict=True)}
                    losses = _losses(model, left, ids, value)
                    torch.autograd.backward((losses * signs[[chosen[place] for place in places]]).sum())
                optimizer.step()
                lab.spend(sum(len(sequences[place].ids) for place in chosen))
            lab.progress(f"scoring at ratio {ratio}", epoch + 1, self.epochs)
        return [kept(score.detach(), ratio) == 0 for score in scores]


def kept(scores: Tensor, ratio: float) -> Tensor:
    """1 where a weight is kept, 0 for the ``ratio`` of them with the lowest absolute scores; of the scores' shape.

    Its gradient is that of the absolute scores themselves (straight-through).
    """
    import torch

    size = scores.abs()
    lowest = size.detach().flatten().argsort(stable=True)[: round(ratio * scores.numel())]
    mask = torch.ones_like(size).flatten()
    mask[lowest] = 0
    return mask.view_as(size) + (size - size.detach())


def _losses(model: LM, weights: dict[str, Tensor], ids: Tensor, value: Tensor) -> Tensor:
    """The mean -log p of each row's tokens in ``value``, with some weights replaced: (B,)."""
    import torch

    out = torch.func.functional_call(model.model, weights, (), {"input_ids": ids, "use_cache": False})
    logprobs = torch.log_softmax(out.logits[:, :-1].float(), -1).gather(-1, ids[:, 1:, None])[..., 0]  # (B, T - 1)
    counted = value[:, 1:]
    losses: Tensor = -(logprobs * counted).sum(1) / counted.sum(1)
    return losses


def _other(lm: LM, documents: Documents, lab: Lab, *, number: int, length: int) -> list[Mention]:
    """Windows of text without detected PII, that many at most, drawn at random; all but their first token counts."""
    from memdefense.mentions import Mention

    windows: list[Mention] = []
    for place in lab.rng("other").permutation(len(documents)).tolist():
        if len(windows) >= number:
            break
        text, done = documents[place].text, 0
        for found in [*lab.find(text), None]:
            piece = text[done : found.start if found else len(text)]
            done = found.end if found else done
            ids = lm.encode(piece)[: min(length, lm.context)]
            if len(ids) > 1 and piece.strip():
                windows.append(Mention(tuple(ids), 1))
    return windows[:number]


__all__ = ["Subnet", "kept"]
