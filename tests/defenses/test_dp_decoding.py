from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from memdefense.bench import Bench
from memdefense.defense import Defense
from memdefense.defenses.dp_decoding import DPDecoding
from memdefense.errors import SpecError
from memdefense.interval import wilson
from memdefense.lab import Lab
from memdefense.lm import LM
from memdefense.store import Store
from memdefense.target import GREEDY, PLAIN, LocalTarget, Sampling
from memdefense.testing import check_defense
from memdefense.train import TrainConfig


@pytest.mark.parametrize("defense", [DPDecoding(), DPDecoding(method="clip", bound=1.0)])
def test_contract(defense: Defense) -> None:
    check_defense(defense)


def law(defense: DPDecoding, logits: Tensor) -> Tensor:
    said: Tensor = defense._law(torch.zeros(1, 1), torch.zeros(1, 1, 1), torch.log_softmax(logits, -1)[None])[0]
    return said.double()


SPECS = [
    DPDecoding(lam=0.9),
    DPDecoding(lam=0.01),
    DPDecoding(lam=0.0),
    DPDecoding(method="clip", bound=1.0),
    DPDecoding(method="clip", bound=3.0, temperature=2.0),
]


@pytest.mark.parametrize("defense", SPECS, ids=lambda spec: spec.spec)
def test_no_two_models_differ_by_more_than_epsilon(defense: DPDecoding) -> None:
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for size in (2, 50, 2048):
        for scale in (0.1, 1.0, 10.0, 100.0):
            said = law(defense, scale * torch.randn(200, size, generator=generator) + 40)
            torch.testing.assert_close(said.exp().sum(-1), torch.ones(200, dtype=torch.float64), atol=1e-4, rtol=0)
            ratio = float((said[:, None] - said[None]).amax()) if size < 2048 else float((said[:-1] - said[1:]).amax())
            assert ratio <= defense.epsilon(size) + 1e-4
            largest = max(largest, ratio / (defense.epsilon(size) or 1))
    assert largest > 0.5 or defense.lam == 0


@pytest.mark.parametrize("defense", SPECS, ids=lambda spec: spec.spec)
def test_two_models_come_close_to_epsilon(defense: DPDecoding) -> None:
    """One is sure of a token, the other sure that it is not the one."""
    sure, never = torch.full((1, 50_000), -500.0), torch.zeros(1, 50_000)
    sure[0, 7], never[0, 7] = 500.0, -500.0
    ratio = float((law(defense, sure) - law(defense, never))[0, 7])
    # Of the clipped logits' 4b / T a little is left over, since the other tokens are not infinitely many.
    assert defense.epsilon(50_000) - 0.02 < ratio + 1e-4
    assert ratio < defense.epsilon(50_000) + 1e-4


def test_epsilon_by_hand(store: Store, tiny_lm: LM) -> None:
    assert DPDecoding(lam=0.5).epsilon(1) == pytest.approx(math.log(2))
    assert DPDecoding(lam=0.9).epsilon(2048) == pytest.approx(math.log(1 + 2048 * 9))
    assert DPDecoding(method="clip", bound=3.0, temperature=2.0).epsilon(9) == 6.0
    assert DPDecoding(lam=0.0).epsilon(2048) == 0.0
    lab = Lab(Bench(store), who="t", seed=0, originals=(), public=(), config=TrainConfig(), base=tiny_lm)
    DPDecoding(lam=0.5).guard(LocalTarget(tiny_lm), (), lab)
    assert lab.notes == {"epsilon_per_token": pytest.approx(math.log(1 + tiny_lm.model.config.vocab_size))}


def test_the_guard_owns_the_sampling(store: Store, tiny_lm: LM) -> None:
    lab = Lab(Bench(store), who="t", seed=0, originals=(), public=(), config=TrainConfig(), base=tiny_lm)
    guarded = cast(LocalTarget, DPDecoding(lam=0.1).guard(LocalTarget(tiny_lm), (), lab))
    assert guarded.owned == dataclasses.replace(PLAIN, seed=guarded.owned.seed if guarded.owned else 0)
    said = guarded.generate(["The"] * 4, max_new_tokens=8, sampling=GREEDY)
    assert len(set(said)) == 4
    assert guarded.generate(["The"] * 4, max_new_tokens=8, sampling=Sampling(0.1, 1)) == said


def test_a_token_another_law_ruled_out_gets_its_share_back_and_no_more() -> None:
    logits = torch.tensor([[0.0, -math.inf, 1.0, 0.0]])
    said = law(DPDecoding(lam=0.5), logits).exp()
    assert said[0, 1] == pytest.approx(0.125)
    assert bool(torch.isfinite(law(DPDecoding(method="clip"), logits)).all())


def test_fields_out_of_range_are_refused() -> None:
    with pytest.raises(SpecError, match="did you mean 'clip'"):
        DPDecoding(method=cast(Any, "clipp"))
    for wrong in ({"lam": 1.0}, {"lam": -0.1}, {"lam": math.nan}, {"bound": 0.0}, {"temperature": math.inf}):
        with pytest.raises(SpecError, match="dp-decoding"):
            DPDecoding(**cast(Any, wrong))


@pytest.mark.slow
def test_it_keeps_addresses_from_coming_back(leaks: Callable[[Defense], list[tuple[int, int, float]]]) -> None:
    """Beside the undefended model the one that is only sampled, with nothing mixed in."""
    ((plain, of, before),) = leaks(Defense())
    ((drawn, _, _),) = leaks(DPDecoding(method="clip", bound=100.0))
    ((hits, _, after),) = leaks(DPDecoding(lam=0.75))
    assert wilson(plain, of)[0] > 0.8  # 30 of 30
    assert wilson(drawn, of)[0] > wilson(hits, of)[1]  # about 10 and 0
    assert 1.05 * before < after < 1.25 * before
