"""DP-SGD: every person's or document's pull on the weights is clipped and drowned in noise while the model trains."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from memdefense.corpus import Documents, Redrawn
from memdefense.defense import Defense, Point, Stack, overrides
from memdefense.errors import ModelError, SpecError

from .dp_plan import Plan, accountant_of, plan, spent

if TYPE_CHECKING:
    import torch
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from torch import Tensor

    from memdefense.lab import Lab
    from memdefense.lm import LM
    from memdefense.packing import Rows
    from memdefense.train import LoRA

    from .dp_layers import Layers

_LARGEST = {"rdp": 100.0, "prv": 10.0}  # above it Opacus's search for the noise may not end


@dataclasses.dataclass(frozen=True)
class DPSGD(Defense):
    """Differentially private training: the model would have come out much the same without any one document.

    Every step draws each document by a coin of its own, clips each drawn document's gradient to one norm, adds Gaussian
    noise to the sum, and divides by the expected number of documents. The noise is the least for which Opacus's
    accountant gives (epsilon, delta) after the last step. The notes say what was spent: ``epsilon_0.2`` and the like at
    the operating point of that name, ``epsilon`` at the end of training.

    Paper: Abadi et al. 2016, arXiv 1607.00133; Opacus, arXiv 2109.12298; language models: Li et al. 2022, arXiv
    2110.05679. Published scale: GPT-2 at epsilon 8, loss 3.61 against 3.46 without privacy (second-hand).

    On `mailbox` (three seeds) epsilon 8 costs 24 to 26 % of perplexity; the published losses are 16 % apart (exp 0.15).
    The base model here has read mail of the same kind, and some 1,200 documents are few for so much noise.

    Does not protect what stands in many units: k documents of one person, or k that quote one address, have k times the
    epsilon (``unit=author`` counts a person's documents as one, but not the letters that others write about them); nor
    what the base model knew before. The claim is about fine-tuning alone. Choosing a field or an operating point by its
    result, and telling the number of units (with the benchmark's ``steps`` that of its rows too), are outside of it; so
    are the notes ``clipped`` and ``tokens_cut`` and the count of tokens in the cost, exact statistics of the private
    text that are told all the same. Chance is drawn from the run's seed, so that runs can be repeated; who wants the
    guarantee itself needs a secret source of noise.

    Deviates [ours]: a unit is one row, cut to the block (an author's documents end to end, in an order that is a hash
    of their ids and another in every pass), never packed, drawn afresh for each step; its loss is the mean over its
    tokens. The note ``tokens_cut`` is the share of the tokens that stand in no such row. AdamW with the run's schedule
    and weight decay, no warm-up. Clipping norm and learning rate lie near Li et al.'s; a batch is an eighth of the
    units. An empty batch steps with noise alone. Gradients are clipped by `memdefense.defenses.dp_layers`, since
    Opacus's ghost clipping refuses tied weights; products are in float32 also where the pass is in bfloat16. Behind any
    curation the claim is void (note ``claim_void``), even where it happened to change nothing, since what is done to
    one document may depend on the others; a curation that looks at one at a time would keep it, but cannot be told
    apart. Authors that are not named make it void for ``unit=author``. So does a part of the same stack that edits the
    weights, or guards them and is neither of the family ``generation`` nor a trivial row: it is given the private
    documents, and what it takes from them is neither clipped nor noised. Guards of those families are taken to read
    none of them; one that does makes the claim void without the note. With LoRA the adapters alone are trained, and
    merged at every operating point. A run that is killed starts again from its first step.

    Attributes:
        epsilon: the budget spent when training ends.
        delta: the other half of the budget; 0 is N ** -1.1 for N units.
        clip: the norm an example's gradient is clipped to.
        unit: whom it protects: one ``document``, or all documents of one ``author``.
        epochs: expected passes over the units; 0 takes as many as the benchmark's training makes over the same
            documents, so that a deduplication's ``match_steps`` holds for it too.
        batch: expected units per step; 0 is an eighth of all, and at least the benchmark's batch.
        learning_rate: of AdamW, at its peak.
        accountant: Opacus's ``rdp``, or ``prv``, which is tighter and slower.
        ghost: whether norms are taken without the gradients of every example; ``auto``: where these would fill
            more than 512 MiB.
        micro_batch: examples per pass; memory and speed.

    Raises:
        SpecError: a field is out of its range, there are too few units, delta is not below 1 / N, no noise reaches
            epsilon, or there is no Opacus.
        ModelError: the model has a layer whose per-example gradient is not known, no example drawn had a gradient but
            zero, or the weights did not move or are no longer finite.
    """

    name: ClassVar[str] = "dp-sgd"
    summary: ClassVar[str] = "Trains with clipped per-document gradients and noise: differential privacy."
    paper: ClassVar[str] = "Abadi et al. 2016, arXiv 1607.00133; Li et al. 2022, arXiv 2110.05679"
    family: ClassVar[str] = "training"
    protects_not: ClassVar[str] = "what stands in many documents or authors, and what the base model already knew"

    epsilon: float = 8.0
    delta: float = 0.0
    clip: float = 0.1
    unit: Literal["document", "author"] = "document"
    epochs: float = 0.0
    batch: int = 0
    learning_rate: float = 2e-3
    accountant: Literal["rdp", "prv"] = "rdp"
    ghost: Literal["auto", "on", "off"] = "auto"
    micro_batch: int = 8

    def __post_init__(self) -> None:
        if self.epsilon > _LARGEST[self.accountant]:
            raise SpecError(
                f"dp-sgd: epsilon {self.epsilon} is beyond {_LARGEST[self.accountant]:g}, up to which the noise can be "
                f"found with the {self.accountant} accountant; so large a budget says next to nothing anyway"
            )
        for field in ("epsilon", "clip", "learning_rate"):
            if not 0 < getattr(self, field) < math.inf:
                raise SpecError(f"dp-sgd: {field} is {getattr(self, field)}; it must be above 0 and finite")
        if not 0 <= self.delta < 1 or not 0 <= self.epochs < math.inf or self.batch < 0 or self.micro_batch < 1:
            raise SpecError(
                f"dp-sgd: delta {self.delta}, epochs {self.epochs}, batch {self.batch}, micro-batch "
                f"{self.micro_batch}: delta must be below 1, micro-batch at least 1, and none negative"
            )

    def train(self, model: LM, documents: Documents, lab: Lab) -> Iterable[Point]:
        import torch
        from transformers import get_scheduler

        from memdefense.train import precision

        from .dp_layers import trained_layers

        planned = plan(self, model, documents, lab)
        lab.note(**planned.notes, **_claim(self, documents, lab))
        chance = lab.rng("dp-sgd/sampling")
        training = started(model, lab.config.lora, lab.seed)
        layers = trained_layers(training)
        weights = [weight for weight in training.parameters() if weight.requires_grad]
        begun = {weight: weight.detach().clone() for weight in weights}
        optimizer = torch.optim.AdamW(weights, lr=self.learning_rate, weight_decay=lab.config.weight_decay)
        schedule = get_scheduler(lab.config.schedule, optimizer, num_warmup_steps=0, num_training_steps=planned.steps)
        noisy = _noisy(optimizer, self.clip, planned, int(lab.rng("dp-sgd/noise").integers(2**62)), model.device)
        kind = precision(lab.config.dtype, model.device.type, width=model.width)
        step = _Step(self, training, layers, "position_ids" in _accepted(model), kind == "bfloat16")
        accountant = accountant_of(self.accountant)
        for done in range(1, planned.steps + 1):
            rows = planned.rows(done)
            drawn = (chance.random(len(rows)) < planned.rate).nonzero()[0]
            for weight in weights:
                weight.grad = torch.zeros_like(weight)
            training.train()
            step(rows, drawn.tolist())
            noisy.step()
            noisy.zero_grad(set_to_none=True)
            schedule.step()
            accountant.step(noise_multiplier=planned.sigma, sample_rate=planned.rate)
            lab.progress("training", done, planned.steps)
            if done not in planned.kept:
                continue
            at = planned.kept[done]
            epsilon = spent(accountant, planned.delta)
            lab.note(
                **{f"epsilon_{round(at, 3)}": epsilon, "epsilon": epsilon}, clipped=step.clipped / max(step.seen, 1)
            )
            _check(step, layers, begun)
            yield Point(str(round(at, 3)), at, _merged(training, model))
        lab.spend(step.tokens)

    def beside(self, others: Sequence[Defense]) -> Mapping[str, float]:
        return {"claim_void": 1.0} if any(_voids(other) for other in others) else {}


def started(model: LM, lora: LoRA | None, seed: int) -> torch.nn.Module:
    """A copy of the model to train, with fresh adapters where they are asked for."""
    from memdefense.fit import silence, trainable

    with silence(), trainable(model, lora, seed) as training:
        return training


def _noisy(
    optimizer: torch.optim.Optimizer, clip: float, plan: Plan, seed: int, device: torch.device
) -> DPOptimizerFastGradientClipping:
    """Opacus's optimizer, which adds the noise to the clipped sum and divides by the expected batch."""
    import torch
    from opacus.optimizers import DPOptimizerFastGradientClipping

    return DPOptimizerFastGradientClipping(
        optimizer,
        noise_multiplier=plan.sigma,
        max_grad_norm=clip,
        expected_batch_size=plan.rate * len(plan.tables[0]),
        generator=torch.Generator(device).manual_seed(seed),
    )


class _Step:
    """Adds up the clipped gradients of a drawn batch, a few rows of like length at a time."""

    def __init__(self, defense: DPSGD, model: torch.nn.Module, layers: Layers, positions: bool, half: bool) -> None:
        self._defense, self._model, self._layers, self._positions, self._half = defense, model, layers, positions, half
        self.seen = self.clipped = self.tokens = 0
        self.pulled = 0.0  # the sum of all norms before clipping

    def __call__(self, rows: Rows, drawn: list[int]) -> None:
        from .dp_layers import add_clipped

        lengths = (rows.columns["document"] >= 0).sum(1)
        drawn = sorted(drawn, key=lambda place: (lengths[place], place))
        device = next(self._model.parameters()).device
        for start in range(0, len(drawn), self._defense.micro_batch):
            places = drawn[start : start + self._defense.micro_batch]
            columns = rows.__getitems__(places)
            longest = int(lengths[places[-1]])
            ids, labels = (columns[name][:, :longest].to(device) for name in ("ids", "labels"))
            losses = functools.partial(self._losses, ids, labels)
            norms = add_clipped(self._layers, losses, clip=self._defense.clip, ghost=self._defense.ghost)
            self.seen += len(places)
            self.pulled += float(norms.sum())
            self.clipped += int((norms > self._defense.clip).sum())
            self.tokens += int(lengths[places].sum())

    def _losses(self, ids: Tensor, labels: Tensor) -> Tensor:
        """The mean next-token loss of each row (B,); a row of one token has none."""
        import torch

        given = {"input_ids": ids}
        if self._positions:  # left to the model they are one row for the whole batch
            given["position_ids"] = torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self._half):
            logits = self._model(**given, use_cache=False).logits
        targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
        each = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), reduction="none", ignore_index=-100
        ).view_as(targets)
        return each.sum(1) / (targets != -100).sum(1).clamp_min(1)


def _accepted(model: LM) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(model.model.forward).parameters


def _claim(defense: DPSGD, documents: Documents, lab: Lab) -> dict[str, float]:
    """Whether the guarantee holds for the original text: not where it was changed, or whom it is about is unknown."""
    private = {document.id: (document.text, document.author) for document in lab.originals}
    trained = {document.id: (document.text, document.author) for document in documents}
    missing = len(private.keys() - trained.keys())
    nameless = sum(not document.author for document in documents) if defense.unit == "author" else 0
    void = private != trained or isinstance(documents, Redrawn) or nameless > 0
    return {"claim_void": void, "documents_missing": missing, "authors_missing": nameless}


def _voids(other: Defense) -> bool:
    """Whether another part of a stack chooses the text, or works on the trained model with it, or may do so."""
    if isinstance(other, Stack):
        return any(_voids(part) for part in other.parts)
    guards = overrides(other, "guard") and other.family not in ("generation", "trivial")
    return overrides(other, "curate") or overrides(other, "edit") or guards


def _check(step: _Step, layers: Layers, begun: Mapping[torch.nn.Parameter, Tensor]) -> None:
    """Refuses weights that no document pulled at, that are where they were, or nowhere.

    Noise alone moves every weight, so that they moved does not show that anything was learned.
    """
    import torch

    if step.seen and not step.pulled:
        raise ModelError(
            f"dp-sgd: the gradients of all {step.seen} examples drawn so far are zero, so nothing but noise was "
            "trained; use a model whose loss depends on the weights that are trained"
        )
    named = [
        (f"{name}.{key}", weight)
        for name, layer in layers.items()
        for key, weight in layer.named_parameters(recurse=False)
        if weight.requires_grad
    ]
    for name, weight in named:
        if not bool(torch.isfinite(weight).all()):
            raise ModelError(f"dp-sgd: training diverged: {name} is no longer finite; lower the learning rate")
        if torch.equal(weight, begun[weight]):
            raise ModelError(f"dp-sgd: {name} did not move, so it was not trained; raise the learning rate")


def _merged(training: torch.nn.Module, model: LM) -> LM:
    """A copy of the weights as they are, adapters merged."""
    from peft import PeftModel
    from transformers import PreTrainedModel

    from memdefense.fit import silence

    now = copy.deepcopy(training)
    if isinstance(now, PeftModel):
        with silence():
            now = now.merge_and_unload()
    assert isinstance(now, PreTrainedModel)
    return dataclasses.replace(model, model=now.train(False))
