"""One training run on transformers' Trainer: exact denominators, resumable, and light enough to keep a CPU busy."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.pytorch_utils import Conv1D
from transformers.trainer_callback import PrinterCallback

from memdefense.corpus import Documents
from memdefense.errors import ModelError
from memdefense.lm import LM, _quiet
from memdefense.memory import keep_freed
from memdefense.packing import Blank, rows, step_at
from memdefense.train import Batch, LoRA, Loss, StatefulLoss, TrainConfig, next_token_loss, precision

logger = logging.getLogger(__name__)
Progress = Callable[[int, int], None]
"""``progress(done, total)`` in optimizer steps."""

_DONE = "memdefense.json"
_LOSS = "loss.pt"
# Attention weights that one pass may keep: 128 MB of them in bfloat16, and as much again in float32.
_KEPT_WEIGHTS = 1 << 26
# A warm-up that is longer than a fifth of the steps would leave little at the rate asked for, or nothing.
_WARM = 5
_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model folder that training left behind."""

    label: str
    at: float
    folder: Path


class FitTrainer(Trainer):
    """Trainer with a loss of sums and counts, and rows in the order given.

    Gradients of the sums are accumulated over micro-batches and divided once by the whole count, which is exact for
    every loss, however unevenly its counts fall on the micro-batches. A micro-batch that does not fit the device's
    memory is halved and the step done again.
    """

    loss: Loss = staticmethod(next_token_loss)
    micro_batch: int = 0
    half: bool = False

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        data: Any = train_dataset if train_dataset is not None else self.train_dataset
        return SequentialSampler(data)

    def floating_point_ops(self, inputs: dict[str, Tensor]) -> int:
        """Not counted: it would walk over all parameters at every step."""
        return 0

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One optimizer step's gradients, over all of its micro-batches."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        size = self.micro_batch or len(inputs["input_ids"])
        while True:
            try:
                mean = self._accumulate(model, inputs, size)
                _commit(self.loss, done=True)
                return mean
            except torch.cuda.OutOfMemoryError:
                if size == 1:
                    raise
                _commit(self.loss, done=False)
                size = self.micro_batch = max(1, size // 2)
                model.zero_grad()
                torch.cuda.empty_cache()
                logger.warning("out of GPU memory: micro-batches of %d rows from here on", size)

    def _accumulate(self, model: torch.nn.Module, inputs: dict[str, Tensor], size: int) -> Tensor:
        total, count = torch.zeros((), device=self.args.device), torch.zeros((), device=self.args.device)
        for start in range(0, len(inputs["input_ids"]), size):
            part = {name: column[start : start + size] for name, column in inputs.items()}
            # Not Trainer's bf16: its wrapper of the model would hand every loss a float32 copy of the logits.
            with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.half):
                summed, counted = self.loss(
                    model, Batch(part["input_ids"], part["labels"], part["document"], part["offset"])
                )
            if size >= len(inputs["input_ids"]):  # divided here, which saves a walk over all gradients
                mean = summed / counted.clamp_min(1)
                self.accelerator.backward(mean)
                return mean.detach()
            self.accelerator.backward(summed)
            total, count = total + summed.detach(), count + counted
        count = count.clamp_min(1)
        torch._foreach_div_([weight.grad for weight in model.parameters() if weight.grad is not None], count)
        return total / count


class _Keep(TrainerCallback):
    """Asks for a checkpoint at the steps wanted, marks it complete, and keeps only the newest optimizer state."""

    def __init__(self, steps: Sequence[int], total: int, spent: float, progress: Progress | None, loss: Loss) -> None:
        self._steps, self._total, self._progress, self._loss = set(steps), total, progress, loss
        self._begun = time.monotonic() - spent

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        control.should_save = state.global_step in self._steps
        if self._progress:
            self._progress(state.global_step, self._total)
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        if not all(bool(torch.isfinite(weight).all()) for weight in given["model"].parameters()):
            raise ModelError(
                f"training diverged before step {state.global_step}: weights are no longer finite; "
                "lower the learning rate"
            )
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if isinstance(self._loss, StatefulLoss):
            torch.save(dict(self._loss.state_dict()), folder / _LOSS)
        mark = folder / (_DONE + ".part")
        mark.write_text(json.dumps({"step": state.global_step, "seconds": time.monotonic() - self._begun}))
        mark.rename(folder / _DONE)
        # Only now that another start is complete: a kill in between must leave one to resume from.
        for older in folder.parent.glob("checkpoint-*"):
            if older != folder:
                for state_file in ("optimizer.pt", "scheduler.pt", _LOSS):
                    (older / state_file).unlink(missing_ok=True)


def fit(
    lm: LM,
    documents: Documents,
    folder: Path,
    *,
    config: TrainConfig,
    seed: int,
    device: str = "cpu",
    loss: Loss = next_token_loss,
    trainer: type[FitTrainer] = FitTrainer,
    blank: Blank | None = None,
    micro_batch: int = 0,
    progress: Progress | None = None,
) -> tuple[list[Checkpoint], dict[str, float]]:
    """Trains a copy of ``lm`` and leaves a model folder per checkpoint; called again after a crash, it resumes.

    Args:
        lm: where training starts; not changed.
        documents: in any order; their ids decide the order they are trained in.
        folder: a folder of its own; what an interrupted call left in it is picked up.
        config: see `TrainConfig`.
        seed: of the order and of dropout.
        device: ``cpu`` or ``cuda``.
        loss: what is minimised.
        trainer: a subclass, for what a loss cannot say.
        blank: gives the spans of a document's text whose tokens stay in the context and are never a target.
        micro_batch: rows per forward pass; 0 is the whole batch. Changes memory and speed, and the result
            only where there is dropout, whose masks are drawn for each pass.
        progress: called after every step.

    Returns:
        The checkpoints in order, and the cost: ``train_seconds`` and ``tokens``.

    Raises:
        DataError: nothing to train on, or nothing left to predict.
        ModelError: a block longer than the model's context, or training that diverged.
    """
    if config.block_size > lm.context:
        raise ModelError(
            f"block size {config.block_size} is beyond the model's context of {lm.context} tokens; lower --block-size"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ModelError(
            "start one process per GPU (CUDA_VISIBLE_DEVICES) on one --store, a seed each, instead of torchrun"
        )
    if not config.steps and not config.epochs:
        return [], {"train_seconds": 0.0, "tokens": 0.0}
    keep_freed()
    data = rows(config, documents, lm, seed=seed, blank=blank)
    total = -(-len(data) // config.batch_size)
    # Labelled by the fraction asked for: two arms whose numbers of steps differ share their labels all the same.
    fractions = (place / config.checkpoints for place in range(1, config.checkpoints + 1))
    kept = {step_at(total, at): at for at in fractions}
    last = _resume(folder)
    mark = json.loads((last / _DONE).read_text()) if last else {"step": 0, "seconds": 0.0}
    if isinstance(loss, StatefulLoss):
        loss = copy.deepcopy(loss)
        if last and mark["step"] < total:
            loss.load_state_dict(torch.load(last / _LOSS, map_location=device, weights_only=True))
    half = precision(config.dtype, device, width=lm.width) == "bfloat16"
    if mark["step"] < total:
        # Trainer writes what it is told into the model's configuration, which is saved with the weights.
        cached = getattr(lm.model.config, "use_cache", True)
        with silence(), trainable(lm, config.lora, seed) as model:
            if half and device == "cpu":
                _keep_attention(model, (micro_batch or config.batch_size) * config.block_size**2)
            running = trainer(
                model=model,
                args=_arguments(folder, config, total, seed, device, cached=cached),
                train_dataset=data,
                data_collator=_as_inputs,
                callbacks=[_Keep(list(kept), total, mark["seconds"], progress, loss)],
            )
            running.loss, running.micro_batch, running.half = loss, micro_batch, half
            running.remove_callback(PrinterCallback)
            running.train(resume_from_checkpoint=str(last) if last else None)
    found = [Checkpoint(str(round(at, 3)), at, folder / f"checkpoint-{step}") for step, at in kept.items()]
    seconds = json.loads((found[-1].folder / _DONE).read_text())["seconds"]
    return found, {"train_seconds": float(seconds), "tokens": float(data.tokens)}


def load_checkpoint(checkpoint: Checkpoint, base: LM, device: str = "cpu") -> LM:
    """The model of a checkpoint, its adapter merged."""
    if (checkpoint.folder / "adapter_config.json").exists():
        with silence():
            adapted = PeftModel.from_pretrained(base.copy().model, str(checkpoint.folder))
            merged = adapted.merge_and_unload()
        return LM(merged.to(device).eval(), base.tokenizer, base.origin)
    base.tokenizer.save_pretrained(checkpoint.folder)
    return LM.load(checkpoint.folder, device=device)


def _keep_attention(model: torch.nn.Module, pairs: int) -> None:
    """Keeps attention weights for the way back where they are few: torch's fused kernel computes them again.

    On a CPU in bfloat16 that is a tenth of a small model's step; in float32 the fused kernel is the faster one.

    Args:
        model: about to be trained.
        pairs: of tokens that one pass attends over, in all rows together.
    """
    config = model.config.get_text_config()  # type: ignore[union-attr,operator]
    heads = getattr(config, "num_attention_heads", 0) * getattr(config, "num_hidden_layers", 0)
    if config._attn_implementation == "sdpa" and 0 < pairs * heads <= _KEPT_WEIGHTS:
        model.set_attn_implementation("eager")  # type: ignore[operator]


def _commit(loss: Loss, *, done: bool) -> None:
    if isinstance(loss, StatefulLoss):
        loss.commit(done)


def _as_inputs(columns: Any) -> dict[str, Tensor]:
    return {"input_ids": columns["ids"], **{name: columns[name] for name in ("labels", "document", "offset")}}


def _arguments(
    folder: Path, config: TrainConfig, steps: int, seed: int, device: str, *, cached: bool
) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        warmup_steps=min(config.warmup_steps, steps // _WARM),
        use_cache=bool(cached),
        lr_scheduler_type=_SCHEDULES[config.schedule],
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch_fused",
        seed=seed,
        use_cpu=device == "cpu",
        save_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=device != "cpu",
    )
    # One GPU a run, however many there are: what a batch is must not depend on the machine.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _resume(folder: Path) -> Path | None:
    """The newest complete checkpoint; incomplete ones, which a kill left behind, are removed."""
    newest: tuple[int, Path] | None = None
    for path in folder.glob("checkpoint-*"):
        if not (path / _DONE).exists():
            shutil.rmtree(path, ignore_errors=True)
            continue
        step = int(path.name.rpartition("-")[2])
        if newest is None or step > newest[0]:
            newest = (step, path)
    return newest[1] if newest else None


@contextlib.contextmanager
def trainable(lm: LM, lora: LoRA | None, seed: int) -> Iterator[torch.nn.Module]:
    """A copy of the model to be trained, with adapters where they are asked for."""
    torch.manual_seed(seed)  # adapters are drawn at random
    model: torch.nn.Module = lm.copy().model
    if lora is not None:
        conv = any(isinstance(module, Conv1D) for module in model.modules())
        settings = LoraConfig(
            task_type="CAUSAL_LM",
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=list(lora.targets) or "all-linear",
            fan_in_fan_out=conv,
        )
        try:
            model = get_peft_model(model, settings)
        except ValueError as error:
            raise ModelError(f"no adapter fits this model: {str(error).splitlines()[0]}") from error
    yield model


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keeps Trainer's and peft's notices back: they are about choices made here on purpose."""
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        yield
