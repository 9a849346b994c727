"""DEPN: the feed-forward neurons that carry private values are found by integrated gradients and silenced."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from memdefense.corpus import Documents
from memdefense.defense import Defense, Point
from memdefense.errors import ModelError, SpecError

if TYPE_CHECKING:
    from torch import Tensor

    from memdefense.lab import Lab
    from memdefense.lm import LM
    from memdefense.mentions import Mention

Neuron = tuple[int, int]
"""The number of its block, and its place in it."""


@dataclasses.dataclass(frozen=True)
class DEPN(Defense):
    """Privacy neurons, those through which the model says a private value, lose their output weights after training.

    For every value the share of each feed-forward neuron in the probability of the value's tokens is measured by
    integrated gradients: the activations of one block are scaled from zero to what they are, and the gradients on the
    way are added up. Neurons with at least a tenth of the largest share are a value's candidates; those that are
    candidates of most values are erased: their column of the down-projection becomes zero. Where there are fewer
    candidates than an operating point asks for, all of them are erased, so that it and the later ones are the same
    model; the note ``erased`` says how many neurons are gone at the last.

    Paper: Wu et al. 2023, on BERT: less of Enron's phone numbers, names and texts is exposed with tens of neurons gone
    (second-hand).

    On `mailbox` (three seeds) 0.042 is left of 0.160, at 17.1 % of perplexity.

    Does not protect a value whose neurons are its own, since only shared ones become frequent; nor what the detector
    misses; nor what attention has stored.

    Deviates [ours]: the causal form. A text is the first mention of a value after up to ``context`` tokens; activations
    are those at the positions that predict the value's tokens, scaled together, and the attribution is of the sum of
    the tokens' probabilities (the authors mask and attribute one token at a time and add the results). Steps are taken
    at their midpoints, nearer to the integral than at one of the ends. Of all values the ``texts`` that the model
    predicts best are used, since the authors attribute memorized texts alone. Ties go to the larger attribution.
    Adapters (LoRA) are merged into the weights before.

    Attributes:
        top: neurons erased at most, by operating point.
        texts: values attributed, at most.
        context: tokens before a value, at most.
        steps: of the integral.
        share: of the largest attribution of a text, from which a neuron is its candidate.
        control: ``random`` erases as many random neurons of the same blocks, as the authors' control does.

    Raises:
        SpecError: a number out of range, or an unknown control.
        ModelError: more neurons than the model has, or blocks of an unknown build.
    """

    name: ClassVar[str] = "depn"
    summary: ClassVar[str] = "Silences the feed-forward neurons through which private values are predicted."
    paper: ClassVar[str] = "Wu et al. 2023, arXiv 2310.20138"
    family: ClassVar[str] = "weights"
    protects_not: ClassVar[str] = "values with neurons of their own, PII the detector misses, what attention has stored"

    top: tuple[int, ...] = (10, 20, 50, 100, 200)
    texts: int = 100
    context: int = 64
    steps: int = 20
    share: float = 0.1
    control: Literal["none", "random"] = "none"

    def __post_init__(self) -> None:
        if not self.top or self.top[0] < 1 or any(a >= b for a, b in zip(self.top, self.top[1:], strict=False)):
            raise SpecError(f"depn: top is {'|'.join(map(str, self.top))}; give growing numbers, such as 10|20|50")
        for field in ("texts", "context", "steps"):
            if getattr(self, field) < 1:
                raise SpecError(f"depn: {field} is {getattr(self, field)}; it must be at least 1")
        if not 0 < self.share <= 1:
            raise SpecError(f"depn: share is {self.share}; give a number above 0 and at most 1")

    def edit(self, model: LM, documents: Documents, lab: Lab) -> Iterator[Point]:
        from memdefense.architecture import blocks_of, inner_width
        from memdefense.mentions import best_known, mentions

        blocks = blocks_of(model.model)
        width = inner_width(blocks)
        if self.top[-1] > len(blocks) * width:
            raise ModelError(f"depn: the model has {len(blocks) * width} neurons, fewer than {self.top[-1]}; lower top")
        found = mentions(model, documents, lab, context=self.context)
        chosen = best_known(model, found, self.texts)
        lab.note(values=len(found), attributed=len(chosen))
        erased = self._ranked(model, chosen, lab)
        lab.note(candidates=len(erased), erased=min(len(erased), self.top[-1]))
        if self.control == "random":
            erased = _random(erased, width, lab)
        done = 0
        for number in self.top:
            for layer, neuron in erased[done:number]:
                blocks[layer].down.weight[:, neuron] = 0
            done = number
            yield Point(f"top-{number}", 1.0, model)

    def _ranked(self, model: LM, chosen: Sequence[Mention], lab: Lab) -> list[Neuron]:
        """The candidates of all texts: the most frequent first, then the larger attribution."""
        import torch

        times: Counter[Neuron] = Counter()
        total: Counter[Neuron] = Counter()
        for done, mention in enumerate(chosen):
            shares = attributions(model, mention, steps=self.steps)
            for layer, neuron in torch.nonzero(shares >= self.share * shares.max()).tolist():
                if shares[layer, neuron] > 0:
                    times[layer, neuron] += 1
                    total[layer, neuron] += float(shares[layer, neuron])  # type: ignore[assignment]
            lab.progress("attributing", done + 1, len(chosen))
        return sorted(times, key=lambda neuron: (-times[neuron], -total[neuron], neuron))


def attributions(lm: LM, mention: Mention, *, steps: int) -> Tensor:
    """How much of the summed probability of a value's tokens comes through each neuron: (blocks, inner), on the CPU.

    Integrated gradients from zero activations of one block, at the positions that predict the value, to the actual
    ones; the sum over a block is the difference between the two, but for the error of ``steps`` midpoints.
    """
    import torch

    from memdefense.architecture import blocks_of

    ids = torch.tensor([mention.ids], device=lm.device)  # (1, T)
    places = slice(mention.start - 1, len(mention.ids) - 1)
    scales = (torch.arange(steps, device=lm.device) + 0.5) / steps
    found = []
    for block in blocks_of(lm.model):
        scaled: list[Tensor] = []
        actual: list[Tensor] = []

        def scale(
            module: torch.nn.Module,
            inputs: tuple[Tensor, ...],
            scaled: list[Tensor] = scaled,
            actual: list[Tensor] = actual,
        ) -> tuple[Tensor, ...]:
            entering = inputs[0].detach()  # (steps, T, inner)
            own = entering[:, places]
            actual.append(own[0])
            scaled.append((own * scales[:, None, None]).requires_grad_())
            return (torch.cat([entering[:, : places.start], scaled[0], entering[:, places.stop :]], 1), *inputs[1:])

        handle = block.down.module.register_forward_pre_hook(scale)
        try:
            with torch.enable_grad():
                logits = lm.model(input_ids=ids.expand(steps, -1), use_cache=False).logits[:, places].float()
                probability = torch.softmax(logits, -1).gather(-1, ids[:, mention.start :, None].expand(steps, -1, 1))
                (gradient,) = torch.autograd.grad(probability.sum(), scaled)
        finally:
            handle.remove()
        found.append((gradient.mean(0) * actual[0]).sum(0).double().cpu())  # over the value's positions
    return torch.stack(found)


def _random(neurons: Sequence[Neuron], width: int, lab: Lab) -> list[Neuron]:
    """As many distinct neurons, each drawn from the block of the one it stands for."""
    rng = lab.rng("control")
    orders = {layer: iter(rng.permutation(width).tolist()) for layer in sorted({layer for layer, _ in neurons})}
    return [(layer, next(orders[layer])) for layer, _ in neurons]


__all__ = ["DEPN", "attributions"]
