"""Against per-example gradients by autograd, one example at a time."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from memdefense.defenses import dp_layers
from memdefense.defenses.dp_layers import Ghost, Use, add_clipped, trained_layers
from memdefense.defenses.dp_sgd import started
from memdefense.errors import ModelError
from memdefense.lm import LM
from memdefense.train import LoRA

Losses = Callable[[nn.Module, Tensor], Tensor]


def batch(vocabulary: int, *, examples: int = 5, length: int = 12) -> Tensor:
    """Token ids, some of them many times, so that embedding rows collect several gradients."""
    drawn = torch.randint(0, vocabulary, (examples, length), generator=torch.Generator().manual_seed(1))
    drawn[:, ::3] = drawn[:, :1]
    drawn[:, 4] = 0  # the end of text, which Llama pads with: its embedding is not trained
    return drawn


def losses(model: nn.Module, ids: Tensor) -> Tensor:
    positions = torch.arange(ids.shape[1]).expand(len(ids), -1)
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    each = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    return each.mean(1)


def reference(model: nn.Module, ids: Tensor, clip: float, loss: Losses = losses) -> tuple[dict[str, Tensor], Tensor]:
    """The clipped sum and the norms, by one backward pass for each example."""
    named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    total = {name: torch.zeros_like(weight) for name, weight in named.items()}
    norms = []
    for row in ids:
        gradients = torch.autograd.grad(loss(model, row[None]).sum(), list(named.values()))
        norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
        for name, gradient in zip(named, gradients, strict=True):
            total[name] += gradient * min(1.0, clip / float(norm))
        norms.append(norm)
    return total, torch.stack(norms)


def prepared(lm: LM, lora: LoRA | None = None) -> nn.Module:
    """A copy whose every weight is away from its start: a norm at one or an adapter at zero would hide mistakes."""
    model: nn.Module = started(lm, lora, 0)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.05)
    model.train()
    return model


@pytest.mark.parametrize("ghost", ["on", "off"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox", "gpt2-lora", "llama-lora"])
def test_the_clipped_sum_is_that_of_single_examples(kind: str, ghost: Ghost, tiny_lm: LM, tiny_llama: LM) -> None:
    lora = LoRA(rank=3) if kind.endswith("lora") else None
    lms = {"gpt2": tiny_lm, "llama": tiny_llama, "neox": neox(tiny_lm)}
    model = prepared(lms[kind.partition("-")[0]], lora)
    ids = batch(tiny_lm.model.config.vocab_size)
    _, free = reference(model, ids, 1e9)
    clip = float(free.median())  # some are clipped, some are not
    total, norms = reference(model, ids, clip)
    found = add_clipped(trained_layers(model), lambda: losses(model, ids), clip=clip, ghost=ghost)
    torch.testing.assert_close(found, norms, rtol=1e-4, atol=1e-6)
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            assert weight.grad is not None
            torch.testing.assert_close(weight.grad, total[name], rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("short", [0, 1])
def test_no_gradient_of_a_matrix_is_made_where_memory_is_short_by_a_byte(
    short: int, tiny_lm: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five examples' gradients of all weights in float32, tied embeddings once, fill the room or miss it by a byte."""
    model = prepared(tiny_lm)
    layers, ids = trained_layers(model), batch(tiny_lm.model.config.vocab_size)
    weights = list(model.parameters())
    room = 4 * 5 * sum(weight.numel() for weight in weights)
    made: list[int] = []
    whole = dp_layers._gradients

    def watched(weight: nn.Parameter, uses: Sequence[Use | Tensor]) -> Tensor:
        made.append(weight.dim())
        found: Tensor = whole(weight, uses)
        return found

    monkeypatch.setattr(dp_layers, "_gradients", watched)

    def run(ghost: Ghost) -> list[Tensor]:
        made.clear()
        for weight in weights:
            weight.grad = None
        norms = add_clipped(layers, lambda: losses(model, ids), clip=0.1, ghost=ghost)
        return [norms, *(weight.grad for weight in weights if weight.grad is not None)]

    monkeypatch.setattr(dp_layers, "_ROOM", room - short)
    found = run("auto")
    assert (max(made) == 1) == bool(short)
    expected = run("on" if short else "off")
    assert len(found) == len(expected) == 1 + len(weights)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_tied_embeddings_count_as_one_weight(tiny_lm: LM) -> None:
    """The norm of the sum over both uses is not the root of the sum of their squares."""
    model = prepared(tiny_lm)
    for name, weight in model.named_parameters():
        weight.requires_grad_(name == "transformer.wte.weight")
    ids = batch(tiny_lm.model.config.vocab_size)
    apart = copy.deepcopy(model)
    head = apart.get_submodule("lm_head")
    head.register_parameter("weight", nn.Parameter(head.get_parameter("weight").detach().clone()))
    norms = {}
    for key, one in {"tied": model, "apart": apart}.items():
        _, norms[key] = reference(one, ids, 1.0)
        for ghost in ("on", "off"):
            found = add_clipped(trained_layers(one), functools.partial(losses, one, ids), clip=1.0, ghost=ghost)
            torch.testing.assert_close(found, norms[key], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(norms["tied"], norms["apart"], rtol=1e-2)


def test_batches_add_up(tiny_lm: LM) -> None:
    model = prepared(tiny_lm)
    layers, ids = trained_layers(model), batch(tiny_lm.model.config.vocab_size)
    add_clipped(layers, lambda: losses(model, ids), clip=0.1)
    whole = [weight.grad for weight in model.parameters()]
    for weight in model.parameters():
        weight.grad = None
    for part in (ids[:2], ids[2:]):
        add_clipped(layers, functools.partial(losses, model, part), clip=0.1)
    for left, weight in zip(whole, model.parameters(), strict=True):
        torch.testing.assert_close(left, weight.grad, rtol=1e-4, atol=1e-7)
    assert all(weight.requires_grad for weight in model.parameters())


def test_a_pass_in_bfloat16_is_still_clipped(tiny_lm: LM) -> None:
    model, ids = prepared(tiny_lm), batch(tiny_lm.model.config.vocab_size, examples=1)

    def half() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return losses(model, ids)

    norms = add_clipped(trained_layers(model), half, clip=0.01)
    assert norms.item() > 0.1
    kept = torch.stack([weight.grad.square().sum() for weight in model.parameters() if weight.grad is not None])
    assert kept.sum().sqrt().item() == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("ghost", ["on", "off"])
def test_a_layer_that_is_called_twice_counts_once(ghost: Ghost) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    given = torch.randn(4, 5, 3)

    def twice(model: nn.Module, rows: Tensor) -> Tensor:
        again: Tensor = model(model(rows))
        return again.square().sum((1, 2))

    total, norms = reference(model, given, 1.0, twice)
    found = add_clipped(trained_layers(model), lambda: twice(model, given), clip=1.0, ghost=ghost)
    torch.testing.assert_close(found, norms, rtol=1e-4, atol=1e-6)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, total[name], rtol=1e-4, atol=1e-6)


def test_shared_positions_are_refused(tiny_lm: LM) -> None:
    """GPT-2 left to itself looks its positions up once for all examples."""
    model, ids = prepared(tiny_lm), batch(tiny_lm.model.config.vocab_size)

    def shared() -> Tensor:
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
        return logits.float().mean((1, 2))

    with pytest.raises(ModelError, match=r"transformer\.wpe is given 1 rows for 5 examples"):
        add_clipped(trained_layers(model), shared, clip=1.0)


def test_unknown_layers_are_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Conv1d(2, 2, 1))
    with pytest.raises(ModelError, match=r"1 \(Conv1d, bias, weight\)"):
        trained_layers(model)
    with pytest.raises(ModelError, match="no weight that is trained"):
        trained_layers(model.requires_grad_(False))


def test_a_weight_that_no_loss_uses_is_named() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "idle": nn.Linear(2, 1)})
    ids = torch.ones(3, 4, 2)
    with pytest.raises(ModelError, match=r"idle\.weight is trained, but no example's loss depends on it"):
        add_clipped(trained_layers(model), lambda: model["used"](ids).sum((1, 2)), clip=1.0)


def neox(lm: LM) -> LM:
    config = GPTNeoXConfig(
        vocab_size=lm.model.config.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LM(GPTNeoXForCausalLM(config), lm.tokenizer)
