"""Closed form, second moments and what is read at the look-up token."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
import torch
from torch import Tensor

from memdefense.architecture import blocks_of
from memdefense.bench import Bench
from memdefense.corpus import Document
from memdefense.defenses.editing import closed_form, insert, look, second_moments
from memdefense.lab import Lab
from memdefense.lm import LM
from memdefense.store import Store
from memdefense.train import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BUILDS = ("GPT-2", "GPT-Neo", "GPT-NeoX", "Llama")
PUBLIC = ["The meeting on Tuesday is moved.", "Please call before noon, or write.", "", "24 boxes" * 30, "a"]


class StubLab:
    """Makes what it is asked to keep, and tells nobody."""

    def cached(self, purpose: str, make: Callable[[], list[Tensor]], *inputs: object) -> list[Tensor]:
        return make()

    def progress(self, what: str, done: int, total: int) -> None:
        pass


def moments(lm: LM, places: Sequence[int], texts: Sequence[str] = PUBLIC) -> list[Tensor]:
    documents = [Document(str(place), text) for place, text in enumerate(texts)]
    lab = cast("Lab", StubLab())
    made: list[Tensor] = second_moments(lm, blocks_of(lm.model), places, documents, lab, passages=100)
    return made


@pytest.mark.parametrize("ridge", [0.01, 3.0, 15_000.0])
@pytest.mark.parametrize("requests", [1, 8, 40])
def test_closed_form_is_the_least_squares_solution(ridge: float, requests: int) -> None:
    """argmin ||D K - R||^2 + ridge tr(D C D^T), stacked into one ordinary least-squares problem with C = F F^T."""
    generator = torch.Generator().manual_seed(requests)
    inner, width = 24, 6
    keys = torch.randn(requests, inner, generator=generator, dtype=torch.float64)
    residual = torch.randn(requests, width, generator=generator, dtype=torch.float64)
    factor = torch.randn(inner, 60, generator=generator, dtype=torch.float64)
    moment = factor @ factor.T / 60
    rows = torch.cat([keys, (ridge / 60) ** 0.5 * factor.T])  # (requests + 60, inner)
    wanted = torch.cat([residual, torch.zeros(60, width, dtype=torch.float64)])
    expected = torch.linalg.lstsq(rows, wanted).solution.T
    found = closed_form(keys, residual, moment, ridge)
    assert found.shape == (width, inner)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


def test_closed_form_moves_the_output_by_the_residual_where_nothing_is_to_be_kept() -> None:
    keys, residual = torch.eye(3, 8) * 2, torch.arange(12.0).reshape(3, 4)
    change = closed_form(keys, residual, torch.eye(8), 1e-9)
    torch.testing.assert_close(keys.double() @ change.T, residual.double(), rtol=1e-6, atol=1e-6)
    # One unit key, C = 1: a share 1 / (1 + ridge) of it, worked by hand.
    change = closed_form(torch.tensor([[1.0, 0.0]]), torch.tensor([[6.0]]), torch.eye(2), 2.0)
    torch.testing.assert_close(change, torch.tensor([[2.0, 0.0]], dtype=torch.float64))


def test_a_moment_without_full_rank_is_no_obstacle() -> None:
    change = closed_form(torch.ones(1, 8), torch.ones(1, 2), torch.zeros(8, 8), 1.0)
    torch.testing.assert_close(torch.ones(1, 8).double() @ change.T, torch.ones(1, 2).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("build", BUILDS)
def test_second_moments_are_those_of_each_text_alone(four_builds: dict[str, LM], build: str) -> None:
    """Token by token, every text by itself and unpadded; the long one is cut to the context."""
    lm = four_builds[build]
    for place, moment in zip((0, 2), moments(lm, (0, 2)), strict=True):
        total, count = torch.zeros_like(moment, dtype=torch.float64), 0
        keys: list[Tensor] = []
        hook = blocks_of(lm.model)[place].down.module.register_forward_pre_hook(lambda _, i, k=keys: k.append(i[0]))
        for text in PUBLIC:
            if ids := lm.encode(text)[: lm.context]:
                with torch.no_grad():
                    lm.model(torch.tensor([ids]))
        hook.remove()
        for key in torch.cat([own[0] for own in keys]):
            total += torch.outer(key, key).double()
            count += 1
        assert count == sum(min(64, len(lm.encode(text))) for text in PUBLIC)
        torch.testing.assert_close(moment.double(), total / count, rtol=1e-4, atol=1e-5)


def test_second_moments_are_read_once_for_a_model_its_text_and_blocks(four_builds: dict[str, LM], store: Store) -> None:
    """Another run finds them in the store; another text, block or model is read anew."""
    documents = [Document(str(place), text) for place, text in enumerate(PUBLIC)]
    lm, other = four_builds["GPT-2"].copy(), four_builds["GPT-2"].copy()
    blocks_of(other.model)[0].down.weight.add_(1)
    passes: list[LM] = []
    for model in (lm, other):
        model.model.base_model.register_forward_hook(lambda *_, model=model: passes.append(model))

    def asked(model: LM, places: Sequence[int], passages: int) -> tuple[int, list[Tensor]]:
        passes.clear()
        config = TrainConfig()
        lab = Lab(Bench(store), who="pme", seed=0, originals=(), public=documents, config=config, base=model)
        made = second_moments(model, blocks_of(model.model), places, documents, lab, passages=passages)
        return len(passes), made

    read, first = asked(lm, (0, 1), 4)
    assert read > 0
    again, second = asked(lm, (0, 1), 4)
    assert again == 0
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    assert asked(lm, (0, 1), 3)[0] > 0
    assert asked(lm, (0, 2), 4)[0] > 0
    assert asked(other, (0, 1), 4)[0] > 0
    assert asked(lm, (0, 1), 4)[0] == 0


@pytest.mark.parametrize("build", BUILDS)
def test_look_reads_the_last_token_of_each_context(four_builds: dict[str, LM], build: str) -> None:
    """Against each context alone; and the matrices take what is read at one place to what is read at the other."""
    lm = four_builds[build]
    blocks = blocks_of(lm.model)
    prompts = [lm.encode(text) for text in PUBLIC if text]
    prompts = [prompt[:60] for prompt in prompts]
    lm.model.train()
    together = look(lm, blocks, prompts)
    assert lm.model.training
    assert all(weight.requires_grad for weight in lm.model.parameters())
    lm.model.train(False)
    for place, prompt in enumerate(prompts):
        alone = look(lm, blocks, [prompt])
        for name in ("keys", "ffn", "out"):
            torch.testing.assert_close(
                getattr(alone, name)[:, 0], getattr(together, name)[:, place], rtol=1e-4, atol=1e-4
            )
        with torch.no_grad():
            hidden = lm.model(torch.tensor([prompt]), output_hidden_states=True).hidden_states
        torch.testing.assert_close(hidden[1][0, -1], together.out[0, place], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(hidden[2][0, -1], together.out[1, place], rtol=1e-4, atol=1e-4)
    for place, block in enumerate(blocks):
        made = together.keys[place] @ block.down.weight.T
        made = made if block.down.bias is None else made + block.down.bias
        torch.testing.assert_close(made, together.ffn[place], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("build", BUILDS)
def test_an_insertion_moves_the_feed_forward_output_by_the_change(four_builds: dict[str, LM], build: str) -> None:
    lm = four_builds[build].copy()
    blocks = blocks_of(lm.model)
    prompts = [lm.encode(text) for text in PUBLIC[:2]]
    before = look(lm, blocks, prompts)
    change = torch.randn(blocks[0].down.weight.shape, dtype=torch.float64)
    insert(blocks[0].down, change)
    after = look(lm, blocks, prompts)
    expected = before.ffn[0] + before.keys[0] @ change.T.float()
    torch.testing.assert_close(after.ffn[0], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after.keys[0], before.keys[0])


def test_a_capped_insertion_has_the_norm_of_the_cap(four_builds: dict[str, LM]) -> None:
    lm = four_builds["GPT-2"].copy()
    down = blocks_of(lm.model)[0].down
    before = down.weight.clone()
    change = torch.randn(before.shape, dtype=torch.float64)
    insert(down, change, 0.01)
    made = (down.weight - before).double()
    assert float(made.norm()) == pytest.approx(0.01 * float(before.norm()), rel=1e-3)
    assert float((made * change).sum() / made.norm() / change.norm()) == pytest.approx(1, abs=1e-3)
    insert(down, -made, 0.5)  # below the cap: as it is
    torch.testing.assert_close(down.weight, before, rtol=1e-5, atol=1e-6)
