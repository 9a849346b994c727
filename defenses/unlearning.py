"""The training loop of `unlearn`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from memdefense.architecture import Block, blocks_of
from memdefense.errors import ModelError
from memdefense.train import precision

from .forgetting import Ids, Texts, descent, nll, npo, padded, simnpo, steering

if TYPE_CHECKING:
    import numpy.typing as npt

    from memdefense.lab import Lab
    from memdefense.lm import LM

    from .unlearn import Unlearn

_TOGETHER = 8  # windows of one forward pass, and as many retained pieces
_FORGET_ALONE = ("ga", "task-vector")
_MEASURED = 256  # windows that the usual length of a hidden state is taken from


def trained(defense: Unlearn, lm: LM, texts: Texts, lab: Lab) -> Iterator[LM]:
    """Trains ``lm`` in place and yields it after every pass over the windows."""
    objective = _Objective(defense, lm, texts, lab)
    weights = objective.weights()
    optimizer = torch.optim.AdamW(weights, lr=0.0, weight_decay=0.0, fused=True)
    rng = lab.rng("unlearn/order")
    size = defense.batch_size
    warm = -(-len(texts.forget) // size)
    total, step = warm * defense.epochs, 0
    lm.model.train(False)
    for epoch in range(defense.epochs):
        order = rng.permutation(len(texts.forget))
        for start in range(0, len(order), size):
            share = min((step + 1) / warm, (total - step) / max(1, total - warm))
            optimizer.param_groups[0]["lr"] = defense.rate * lab.config.learning_rate * share
            chosen = order[start : start + size]
            few = len(chosen) if texts.retain and defense.method not in _FORGET_ALONE else 0
            beside = rng.integers(len(texts.retain), size=few) if few else np.zeros(0, dtype=np.int64)
            objective.gradients(_by_length(texts.forget, chosen), _by_length(texts.retain, beside))
            if lab.config.max_grad_norm:
                nn.utils.clip_grad_norm_(weights, lab.config.max_grad_norm)
            optimizer.step()
            lm.model.zero_grad()
            step += 1
            lab.spend(sum(len(texts.forget[number]) for number in chosen))
            lab.spend(sum(len(texts.retain[number]) for number in beside))
            lab.progress("unlearning", step, total)
        if not all(bool(torch.isfinite(weight).all()) for weight in weights):
            raise ModelError(f"unlearn diverged in epoch {epoch + 1}: weights are no longer finite; lower its rate")
        yield lm


def subtracted(defense: Unlearn, lm: LM, texts: Texts, lab: Lab) -> Iterator[LM]:
    """Takes what a copy learns on the windows off the weights of ``lm``, a part at a time, and yields it after each."""
    learned = lm.copy()
    for _ in trained(defense, learned, texts, lab):
        pass
    with torch.no_grad():
        start = [weight.clone() for weight in lm.model.parameters()]
        for part in range(1, defense.epochs + 1):
            taken = defense.scale * part / defense.epochs
            for weight, old, new in zip(lm.model.parameters(), start, learned.model.parameters(), strict=True):
                weight.copy_(old - taken * (new - old))
            yield lm


class _Objective:
    """What is minimised, and by which weights."""

    def __init__(self, defense: Unlearn, lm: LM, texts: Texts, lab: Lab) -> None:
        self._defense, self._lm, self._texts = defense, lm, texts
        self._half = precision(lab.config.dtype, lab.device, width=lm.width) == "bfloat16"
        if defense.method == "npo":
            self._reference = self._totals()
        if defense.method == "rmu":
            self._blocks = _steered(lm)
            self._before = lm.copy()
            self._goal = self._direction(lab.rng("unlearn/direction"))

    def weights(self) -> list[nn.Parameter]:
        """What is trained."""
        if self._defense.method != "rmu":
            return list(self._lm.model.parameters())
        return [block.down.parameter for block in self._blocks]

    def gradients(self, forget: Sequence[int], retain: Sequence[int]) -> None:
        """Adds up the gradients of one optimizer step, windows and retained pieces given by their numbers.

        Means over sequences and means over tokens are those of the step, however it is cut into passes.
        """
        by_token = self._defense.method in ("ga", "graddiff", "task-vector")
        for start in range(0, len(forget), _TOGETHER):
            some, others = forget[start : start + _TOGETHER], retain[start : start + _TOGETHER]
            share = len(some) / len(forget)
            with self._autocast():
                lost, held = self._losses(some, others)
            loss = lost * (self._tokens(some, "forget") / self._tokens(forget, "forget") if by_token else share)
            if held is not None:
                kept = self._tokens(others, "retain") / self._tokens(retain, "retain")
                loss = loss + held * (share if self._defense.method == "rmu" else kept)
            loss.backward()  # type: ignore[no-untyped-call]

    def _tokens(self, chosen: Sequence[int], side: Literal["forget", "retain"]) -> int:
        """Tokens that are predicted; the first of a run never is."""
        rows = self._texts.forget if side == "forget" else self._texts.retain
        return sum(len(rows[number]) - 1 for number in chosen)

    def _losses(self, forget: Sequence[int], retain: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """What is to be forgotten and what is to be kept, each with its weight; None where nothing is kept."""
        defense = self._defense
        ids, labels = padded([self._texts.forget[number] for number in forget], self._lm.device)
        if defense.method == "rmu":
            kept, kept_labels = padded([self._texts.retain[number] for number in retain], self._lm.device)
            with torch.no_grad():
                before = self._hidden(self._before, kept)
            lost = steering(self._hidden(self._lm, ids), self._goal, labels != -100)
            held = steering(self._hidden(self._lm, kept), before, kept_labels != -100)
            return defense.weight * lost, defense.alpha * held
        total, count = nll(self._lm.model, ids, labels)
        if defense.method == "task-vector":
            return descent(total, count), None
        if defense.method == "npo":
            lost = npo(total, self._reference[list(forget)], defense.slope)
        elif defense.method == "simnpo":
            lost = simnpo(total, count, defense.slope, defense.delta)
        else:
            lost = -descent(total, count)
        if defense.method == "ga":
            return defense.weight * lost, None
        held = descent(*nll(self._lm.model, *padded([self._texts.retain[number] for number in retain], ids.device)))
        return defense.weight * lost, defense.alpha * held

    @torch.no_grad()
    def _totals(self) -> Tensor:
        """The NLL of every window under the model as it is."""
        totals = torch.zeros(len(self._texts.forget), device=self._lm.device)
        order = _by_length(self._texts.forget, np.arange(len(totals)))
        for start in range(0, len(order), _TOGETHER):
            part = order[start : start + _TOGETHER]
            with self._autocast():
                rows = padded([self._texts.forget[number] for number in part], self._lm.device)
                totals[part] = nll(self._lm.model, *rows)[0]
        return totals

    def _hidden(self, lm: LM, ids: Tensor) -> Tensor:
        """The residual stream (B, T, width) after the block that is steered."""
        caught: list[Tensor] = []

        def catch(module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            caught.append(output if isinstance(output, Tensor) else output[0])

        handle = _steered(lm)[-1].module.register_forward_hook(catch)
        try:
            lm.model.base_model(input_ids=ids, use_cache=False)
        finally:
            handle.remove()
        return caught[0].float()

    @torch.no_grad()
    def _direction(self, rng: np.random.Generator) -> Tensor:
        drawn = rng.random(self._lm.width)
        sizes = []
        for start in range(0, min(_MEASURED, len(self._texts.forget)), _TOGETHER):
            ids, labels = padded(self._texts.forget[start : start + _TOGETHER], self._lm.device)
            sizes.append(self._hidden(self._lm, ids)[labels != -100].norm(dim=-1))
        length = self._defense.coefficient * float(torch.cat(sizes).mean())
        return torch.tensor(length * drawn / np.linalg.norm(drawn), dtype=torch.float32, device=self._lm.device)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._lm.device.type, dtype=torch.bfloat16, enabled=self._half)


def _steered(lm: LM) -> list[Block]:
    """The middle block and the two before it, as many as there are."""
    blocks = blocks_of(lm.model)
    middle = (len(blocks) - 1) // 2
    return blocks[max(0, middle - 2) : middle + 1]


def _by_length(rows: Sequence[Ids], chosen: npt.NDArray[np.int64]) -> list[int]:
    """Rows of like length side by side, which saves padding."""
    return sorted(chosen.tolist(), key=lambda number: len(rows[number]))
