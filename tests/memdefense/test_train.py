from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from memdefense.corpus import Document
from memdefense.errors import SpecError
from memdefense.lm import LM
from memdefense.packing import rows
from memdefense.passes import MEASURED_FLOATS
from memdefense.train import Batch, TrainConfig, next_token_loss, precision, summed_nll


def test_the_loss_is_the_sum_over_predicted_tokens(tiny_lm: LM) -> None:
    documents = [Document(f"d{n}", "The boxes are in the large room. " * n) for n in range(1, 6)]
    made = rows(TrainConfig(epochs=1, block_size=16, batch_size=4), documents, tiny_lm, seed=0)
    last = len(made) - 1
    given = made.__getitems__([0, last])
    with torch.no_grad():
        total, count = next_token_loss(tiny_lm.model, Batch(**given))
    expected, n = 0.0, 0
    for ids, labels in zip(given["ids"], given["labels"], strict=True):
        logp = torch.log_softmax(tiny_lm.model(input_ids=ids[None]).logits[0].double(), -1)
        for place in range(1, len(ids)):
            if labels[place] != -100:
                expected -= float(logp[place - 1, ids[place]].detach())
                n += 1
    assert int(count) == n < 2 * 15  # the first token of a row is given, padding is not predicted
    assert float(total) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows_a_piece", [1, 3, 7, 100])
def test_the_loss_in_pieces_is_the_loss_and_holds_no_copy_of_the_logits(
    dtype: torch.dtype, rows_a_piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MEASURED_FLOATS, "cpu", rows_a_piece * 11 + 10)
    torch.manual_seed(0)
    logits = (4 * torch.randn(7, 11)).to(dtype).requires_grad_()
    labels = torch.tensor([3, -100, 0, 10, -100, 5, 5])
    held: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
        total = summed_nll(logits, labels)
    place = logits.untyped_storage().data_ptr()
    copies = [tensor for tensor in held if tensor.numel() >= 11 and tensor.untyped_storage().data_ptr() != place]
    (gradient,) = torch.autograd.grad(total, logits)
    exact = logits.detach().double().requires_grad_()
    kept = labels != -100
    expected = -torch.log_softmax(exact, -1)[kept, labels[kept]].sum()
    (wanted,) = torch.autograd.grad(expected, exact)
    assert total.dtype == torch.float32
    assert gradient.dtype == dtype
    assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert torch.allclose(gradient.double(), wanted, atol=1e-6 if dtype == torch.float32 else 4e-3)
    assert not copies


@pytest.mark.parametrize(
    "make",
    [
        lambda: TrainConfig(batch_size=0),
        lambda: TrainConfig(block_size=1),
        lambda: TrainConfig(checkpoints=0),
        lambda: TrainConfig(learning_rate=0.0),
        lambda: TrainConfig(learning_rate=float("nan")),
        lambda: TrainConfig(epochs=float("nan")),
        lambda: TrainConfig(epochs=-1),
        lambda: TrainConfig(warmup_steps=-1),
        lambda: TrainConfig(max_grad_norm=-1.0),
    ],
)
def test_settings_that_make_no_sense(make: Callable[[], TrainConfig]) -> None:
    with pytest.raises(SpecError):
        make()


@pytest.mark.parametrize(
    ("field", "value", "meant"),
    [("schedule", "cosin", "cosine"), ("pack", "authors", "author"), ("dtype", "float16", "bfloat16")],
)
def test_names_that_are_not_known(field: str, value: str, meant: str) -> None:
    with pytest.raises(SpecError, match=f"training: {field} cannot be '{value}'; did you mean '{meant}'"):
        TrainConfig(**{field: value})  # type: ignore[arg-type]


def test_precision_follows_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert precision("float32", "cpu") == "float32"
    assert precision("bfloat16", "cpu") == "bfloat16"
    for has, name in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has)
        assert precision("auto", "cpu") == name
