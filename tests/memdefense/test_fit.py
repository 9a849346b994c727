from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from memdefense.corpus import Document
from memdefense.errors import ModelError
from memdefense.fit import Checkpoint, FitTrainer, fit, load_checkpoint
from memdefense.lm import LM
from memdefense.packing import count_steps, rows
from memdefense.train import Batch, LoRA, TrainConfig, next_token_loss

CONFIG = TrainConfig(steps=10, learning_rate=1e-2, batch_size=4, block_size=16, dtype="float32", checkpoints=5)
WORDS = ["meeting", "report", "invoice", "boxes", "Anna", "noon", "room", "floor", "team", "mail"]


def documents(n: int = 12) -> list[Document]:
    rng = np.random.default_rng(0)
    return [Document(f"d{place}", " ".join(rng.choice(WORDS, int(rng.integers(3, 12))))) for place in range(n)]


def train(lm: LM, folder: Path, config: TrainConfig = CONFIG, *, seed: int = 0) -> list[Checkpoint]:
    return fit(lm, documents(), folder, config=config, seed=seed)[0]


def mean_loss(lm: LM, config: TrainConfig = CONFIG) -> float:
    made = rows(config, documents(), lm, seed=0)
    with torch.no_grad():
        total, count = next_token_loss(lm.model, Batch(**made.__getitems__(list(range(len(made))))))
    return float(total / count)


def weights(lm: LM) -> dict[str, Tensor]:
    return dict(lm.model.named_parameters())


@pytest.mark.parametrize(
    ("dtype", "most", "fused"), [("bfloat16", 1 << 26, 0), ("bfloat16", 0, 8), ("float32", 1 << 26, 8)]
)
def test_attention_weights_are_kept_in_bfloat16_where_they_are_few(
    dtype: Literal["bfloat16", "float32"],
    most: int,
    fused: int,
    tiny_lm: LM,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("memdefense.fit._KEPT_WEIGHTS", most)
    called: list[int] = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def counted(*args: Any, **given: Any) -> Tensor:
        called.append(1)
        return kernel(*args, **given)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    config = dataclasses.replace(CONFIG, steps=4, checkpoints=1, dtype=dtype)
    trained = load_checkpoint(train(tiny_lm, tmp_path / "own", config)[0], tiny_lm)
    assert len(called) == fused
    exact = load_checkpoint(train(tiny_lm, tmp_path / "f32", dataclasses.replace(config, dtype="float32"))[0], tiny_lm)
    assert mean_loss(trained) == pytest.approx(mean_loss(exact), rel=5e-3) != mean_loss(tiny_lm)
    assert trained.model.config._attn_implementation == tiny_lm.model.config._attn_implementation == "sdpa"


def test_training_lowers_the_loss_and_leaves_the_given_model(tiny_lm: LM, tmp_path: Path) -> None:
    digest = tiny_lm.digest()
    points, cost = fit(
        tiny_lm, documents(), tmp_path, config=dataclasses.replace(CONFIG, steps=40, warmup_steps=3), seed=0
    )
    assert tiny_lm.digest() == digest
    losses = [mean_loss(load_checkpoint(point, tiny_lm)) for point in points]
    assert losses[-1] < 0.5 * mean_loss(tiny_lm)
    assert losses == sorted(losses, reverse=True)
    assert cost["tokens"] == rows(dataclasses.replace(CONFIG, steps=40), documents(), tiny_lm, seed=0).tokens
    assert cost["train_seconds"] > 0


def test_one_step_equals_adamw_by_hand(tiny_lm: LM, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, steps=3, schedule="constant", checkpoints=1)
    trained = load_checkpoint(train(tiny_lm, tmp_path, config)[0], tiny_lm)
    model, before = tiny_lm.copy().model.train(), weights(tiny_lm)
    made = rows(config, documents(), tiny_lm, seed=0)
    decay = [w for name, w in model.named_parameters() if w.dim() > 1]
    others = [w for name, w in model.named_parameters() if w.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}], lr=1e-2
    )
    for step in range(3):
        given = made.__getitems__(list(range(4 * step, 4 * step + 4)))
        logits = model(input_ids=given["ids"]).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), given["labels"][:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    for name, weight in model.named_parameters():
        # By norms, for a gradient that is nearly nothing has a step of up to 1e-2, by its last bits.
        moved = (weight - before[name]).detach().norm()
        assert float((weights(trained)[name] - weight).detach().norm()) <= 1e-3 * float(moved), name


class Uneven(FitTrainer):
    """Keeps the gradients of the first step."""

    seen: tuple[dict[str, Tensor], float] | None = None

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        grads = {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}
        type(self).seen = type(self).seen or (grads, float(loss))
        return loss


@pytest.mark.parametrize("pack", ["tokens", "document"])
def test_micro_batches_give_the_gradients_of_the_whole_batch(tiny_lm: LM, tmp_path: Path, pack: str) -> None:
    config = dataclasses.replace(CONFIG, steps=1, batch_size=6, block_size=32, pack=pack)  # type: ignore[arg-type]
    labels = rows(config, documents(), tiny_lm, seed=0).columns["labels"][:6]
    if pack == "document":
        assert len(set((labels != -100).sum(1).tolist())) > 3  # the counts are uneven
    found: list[tuple[dict[str, Tensor], float]] = []
    for size in (0, 1, 4):
        Uneven.seen = None
        fit(tiny_lm, documents(), tmp_path / str(size), config=config, seed=0, trainer=Uneven, micro_batch=size)
        assert Uneven.seen is not None
        found.append(Uneven.seen)
    for grads, loss in found[1:]:
        assert loss == pytest.approx(found[0][1], rel=1e-6)
        for name, grad in grads.items():
            torch.testing.assert_close(grad, found[0][0][name], atol=1e-5, rtol=1e-5, msg=name)


@dataclasses.dataclass(frozen=True)
class FirstToken:
    """Counts one token per row, and says which columns it was given."""

    def __call__(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        assert batch.ids.shape == batch.labels.shape == batch.document.shape == batch.offset.shape
        assert bool(((batch.document < 0) == (batch.labels == -100)).all())
        logp = model(input_ids=batch.ids).logits[:, 0].log_softmax(-1)
        return -logp.gather(1, batch.ids[:, 1:2]).sum(), torch.tensor(len(batch.ids))


def test_a_loss_of_ones_own(tiny_lm: LM, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, steps=2, checkpoints=1)
    whole, _ = fit(tiny_lm, documents(), tmp_path / "a", config=config, seed=0, loss=FirstToken())
    parts, _ = fit(tiny_lm, documents(), tmp_path / "b", config=config, seed=0, loss=FirstToken(), micro_batch=3)
    plain = train(tiny_lm, tmp_path / "c", config)
    one, other, third = (load_checkpoint(points[0], tiny_lm) for points in (whole, parts, plain))
    assert one.digest() != third.digest()
    for name, weight in weights(one).items():
        torch.testing.assert_close(weights(other)[name], weight, atol=2e-4, rtol=1e-3, msg=name)


def test_checkpoints_stand_at_even_fractions(tiny_lm: LM, tmp_path: Path) -> None:
    points = train(tiny_lm, tmp_path / "a")
    assert [(p.label, p.at, p.folder.name) for p in points] == [
        (f"{n / 5}", n / 5, f"checkpoint-{2 * n}") for n in range(1, 6)
    ]
    few = train(tiny_lm, tmp_path / "b", dataclasses.replace(CONFIG, steps=2))
    assert [p.folder.name for p in few] == ["checkpoint-1", "checkpoint-2"]
    assert few[-1].at == 1.0
    assert len({p.label for p in few}) == 2
    digests = {load_checkpoint(p, tiny_lm).digest() for p in points}
    assert len(digests) == 5


def test_steps_taken_are_those_counted(tiny_lm: LM, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, steps=0, epochs=1.5, checkpoints=1)
    told: list[tuple[int, int]] = []
    fit(tiny_lm, documents(), tmp_path, config=config, seed=3, progress=lambda *at: told.append(at))
    total = count_steps(config, documents(), tiny_lm, seed=3)
    assert told == [(step, total) for step in range(1, total + 1)]


def test_no_steps_are_no_checkpoints(tiny_lm: LM, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, steps=0, epochs=0)
    assert fit(tiny_lm, documents(), tmp_path, config=config, seed=0) == ([], {"train_seconds": 0.0, "tokens": 0.0})


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tiny_lm: LM, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, steps=3, checkpoints=1)
    digests = [
        load_checkpoint(train(tiny_lm, tmp_path / f"{place}", config, seed=seed)[0], tiny_lm).digest()
        for place, seed in enumerate((0, 0, 1))
    ]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("lora", [None, LoRA(rank=2, alpha=4, dropout=0.2)])
@pytest.mark.parametrize("stop", [1, 5, 9])
def test_an_interrupted_run_resumes_to_the_same_bits(tiny_lm: LM, tmp_path: Path, lora: LoRA | None, stop: int) -> None:
    # Dropout draws from the random state, which must be that of the step resumed at.
    noisy = tiny_lm.copy()
    for module in noisy.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.2
    config = dataclasses.replace(CONFIG, lora=lora)
    whole = fit(noisy, documents(), tmp_path / "whole", config=config, seed=0)[0]

    def interrupt(done: int, total: int) -> None:
        if done == stop:
            raise KeyboardInterrupt

    steps: list[int] = []
    folder = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        fit(noisy, documents(), folder, config=config, seed=0, progress=interrupt)
    parts = fit(noisy, documents(), folder, config=config, seed=0, progress=lambda done, _: steps.append(done))[0]
    assert steps == list(range((stop - 1) // 2 * 2 + 1, 11))  # from the last checkpoint, at even steps
    assert [p.label for p in parts] == [p.label for p in whole]
    for one, other in zip(whole, parts, strict=True):
        assert load_checkpoint(one, noisy).digest() == load_checkpoint(other, noisy).digest()


def test_what_a_kill_left_half_written_is_not_resumed_from(tiny_lm: LM, tmp_path: Path) -> None:
    whole = train(tiny_lm, tmp_path / "whole")
    folder = tmp_path / "broken"

    def interrupt(done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tiny_lm, documents(), folder, config=CONFIG, seed=0, progress=interrupt)
    (folder / "checkpoint-6" / "memdefense.json").unlink()  # as if killed while the sixth was written ...
    for state in ("optimizer.pt", "scheduler.pt"):  # ... when the one before still had its optimizer
        (folder / "checkpoint-6" / state).rename(folder / "checkpoint-4" / state)
    (folder / "checkpoint-6" / "model.safetensors").write_bytes(b"half")
    # The state of step 6 stands in for that of step 4, so the weights differ; what counts is where it starts.
    steps: list[int] = []
    fit(tiny_lm, documents(), folder, config=CONFIG, seed=0, progress=lambda done, _: steps.append(done))
    assert steps == list(range(5, 11))
    assert json.loads((folder / "checkpoint-6" / "memdefense.json").read_text())["step"] == 6
    assert load_checkpoint(whole[-1], tiny_lm).context == 64


def test_a_finished_run_is_not_trained_again(tiny_lm: LM, tmp_path: Path) -> None:
    first = train(tiny_lm, tmp_path)
    steps: list[int] = []
    again, cost = fit(
        tiny_lm, documents(), tmp_path, config=CONFIG, seed=0, progress=lambda done, _: steps.append(done)
    )
    assert steps == []
    assert again == first
    assert cost["train_seconds"] > 0


@pytest.mark.parametrize("which", ["tiny_lm", "tiny_llama"])
def test_adapters_train_and_merge(which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    lm: LM = request.getfixturevalue(which)
    digest = lm.digest()
    config = dataclasses.replace(CONFIG, steps=30, lora=LoRA(rank=4, alpha=8), checkpoints=2)
    points = train(lm, tmp_path / "run", config)
    assert lm.digest() == digest
    merged = [load_checkpoint(point, lm) for point in points]
    assert (points[0].folder / "adapter_config.json").exists()
    assert type(merged[1].model) is type(lm.model)
    losses = [mean_loss(lm), *(mean_loss(model) for model in merged)]
    assert losses[2] < losses[1] < losses[0] - 0.05
    assert set(weights(merged[1])) == set(weights(lm))
    changed = {name for name, weight in weights(merged[1]).items() if not torch.equal(weight, weights(lm)[name])}
    linear = {
        f"{name}.weight"
        for name, module in lm.model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and name != "lm_head"
    }
    assert changed == linear
    merged[1].save(tmp_path / "merged")
    assert LM.load(tmp_path / "merged").digest() == merged[1].digest()
    only = LoRA(rank=2, targets=("c_attn",) if which == "tiny_lm" else ("q_proj",))
    few = train(lm, tmp_path / "few", dataclasses.replace(CONFIG, steps=2, lora=only, checkpoints=1))
    model = load_checkpoint(few[0], lm)
    touched = {n for n, w in weights(model).items() if not torch.equal(w, weights(lm)[n])}
    assert len(touched) == 2
    assert all(only.targets[0] in name for name in touched)


def test_adapters_on_modules_there_are_not(tiny_lm: LM, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no adapter fits"):
        train(tiny_lm, tmp_path, dataclasses.replace(CONFIG, lora=LoRA(targets=("nonesuch",))))


def test_bfloat16_trains_float32_weights(tiny_lm: LM, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, steps=30, dtype="bfloat16", checkpoints=1)
    half = load_checkpoint(train(tiny_lm, tmp_path / "half", config)[0], tiny_lm)
    full = load_checkpoint(train(tiny_lm, tmp_path / "full", dataclasses.replace(config, dtype="float32"))[0], tiny_lm)
    assert {weight.dtype for weight in weights(half).values()} == {torch.float32}
    assert half.digest() != full.digest()
    assert mean_loss(half) == pytest.approx(mean_loss(full), rel=0.1)
    assert mean_loss(half) < 0.6 * mean_loss(tiny_lm)


def test_diverged_training_is_an_error_that_says_what_to_do(tiny_lm: LM, tmp_path: Path) -> None:
    def broken(model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        total, count = next_token_loss(model, batch)
        return total * torch.inf, count

    with pytest.raises(ModelError, match=r"diverged before step 2: .* lower the learning rate"):
        fit(tiny_lm, documents(), tmp_path, config=CONFIG, seed=0, loss=broken)


def test_a_block_beyond_the_context(tiny_lm: LM, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="block size 65 is beyond the model's context of 64"):
        train(tiny_lm, tmp_path, dataclasses.replace(CONFIG, block_size=65))


def test_several_processes_are_refused(tiny_lm: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ModelError, match="one process per GPU"):
        train(tiny_lm, tmp_path)


@pytest.mark.parametrize(("schedule", "warmup"), [("linear", 2), ("cosine", 2), ("constant", 2), ("linear", 500)])
def test_schedules(tiny_lm: LM, tmp_path: Path, schedule: Literal["linear", "cosine", "constant"], warmup: int) -> None:
    rates: list[float] = []

    class Watched(FitTrainer):
        def training_step(
            self, model: torch.nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
        ) -> Tensor:
            assert self.optimizer is not None
            rates.append(self.optimizer.param_groups[0]["lr"] / CONFIG.learning_rate)
            return super().training_step(model, inputs, num_items_in_batch)

    # Of ten steps two are a fifth, and no longer warm-up is kept.
    config = dataclasses.replace(CONFIG, schedule=schedule, warmup_steps=warmup, checkpoints=1)
    fit(tiny_lm, documents(), tmp_path, config=config, seed=0, trainer=Watched)
    left = [step / 8 for step in range(8)]
    after = {
        "linear": [1 - done for done in left],
        "cosine": [0.5 * (1 + float(np.cos(np.pi * done))) for done in left],
        "constant": [1.0] * 8,
    }
    assert rates == pytest.approx([0.0, 0.5, *after[schedule]])
