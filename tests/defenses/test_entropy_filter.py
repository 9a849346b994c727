from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from memdefense.bench import Bench
from memdefense.defense import Defense, Stack
from memdefense.defenses.dp_decoding import DPDecoding
from memdefense.defenses.entropy_filter import EntropyFilter
from memdefense.errors import SpecError
from memdefense.interval import wilson
from memdefense.lab import Lab
from memdefense.lm import LM
from memdefense.store import Store
from memdefense.target import LocalTarget, Sampling
from memdefense.testing import check_defense
from memdefense.train import TrainConfig


def test_contract() -> None:
    check_defense(EntropyFilter(tau=5.0, run=2))


def guarded(defense: Defense, lm: LM, store: Store) -> LocalTarget:
    lab = Lab(Bench(store), who="t", seed=0, originals=(), public=(), config=TrainConfig(), base=lm)
    return cast(LocalTarget, defense.guard(LocalTarget(lm), (), lab))


def test_hotter_after_a_run_of_sure_tokens_and_nowhere_else(tiny_lm: LM, store: Store) -> None:
    """Four tokens; a sure one has entropy 0.168, an unsure one 1.386, the threshold is between."""
    sure, unsure = torch.tensor([0.97, 0.01, 0.01, 0.01]).log(), torch.full((4,), 0.25).log()
    target = guarded(EntropyFilter(tau=0.2, run=3, hot=2.0), tiny_lm, store)
    (law,) = target.laws
    pattern = "sssussssu"
    rows = torch.stack([sure if letter == "s" else unsure for letter in pattern])
    ids = torch.arange(9)[None]
    said = law(ids, torch.zeros(1, 9, 1), rows[None])[0]
    hot = [not torch.equal(row, plain) for row, plain in zip(said, rows, strict=True)]
    assert hot == [False, False, True, False, False, False, True, True, False]
    # Square roots of the probabilities, made to add up to 1.
    top = math.sqrt(0.97) / (math.sqrt(0.97) + 3 * math.sqrt(0.01))
    assert float(said[2, 0].exp()) == pytest.approx(top)
    padded = torch.cat([torch.full((1, 1), -1), ids[:, 1:]], 1)  # what stands on padding was not sure
    assert torch.equal(law(padded, torch.zeros(1, 9, 1), rows[None])[0, 2], rows[2])


def test_only_sampling_is_left_where_nothing_counts_as_sure(tiny_lm: LM, store: Store) -> None:
    target = guarded(EntropyFilter(tau=0.0, calm=0.7), tiny_lm, store)
    assert target.owned == Sampling(seed=target.owned.seed if target.owned else 0)
    drawn = Sampling(0.7, seed=target.owned.seed)
    plain = LocalTarget(tiny_lm).generate(["The"] * 3, max_new_tokens=9, sampling=drawn)
    assert target.generate(["The"] * 3, max_new_tokens=9) == plain


def test_hot_is_the_temperature_that_is_drawn_at(tiny_lm: LM, store: Store) -> None:
    """Where all is sure it is drawn at ``hot``, whatever ``calm`` is."""
    target = guarded(EntropyFilter(tau=99.0, run=1, hot=1.8, calm=0.6), tiny_lm, store)
    found = target.signals(["The invoice 7731"])[0].logprob
    expected = LocalTarget(tiny_lm).signals(["The invoice 7731"], sampling=Sampling(1.8))[0].logprob
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("tau", "temperature"), [(0.0, 0.5), (99.0, 1.5)])
def test_both_temperatures_hold_under_another_owner_of_the_sampling(
    tau: float, temperature: float, tiny_lm: LM, store: Store
) -> None:
    mixing = DPDecoding(lam=0.8)
    stack = Stack((EntropyFilter(tau=tau, run=1, calm=0.5, hot=1.5), mixing))
    target = guarded(stack, tiny_lm, store)
    text, size = "The invoice 7731", tiny_lm.model.config.vocab_size
    alone = LocalTarget(tiny_lm).signals([text], sampling=Sampling(temperature))[0].logprob
    assert target.signals([text])[0].logprob == pytest.approx(np.log(0.8 * np.exp(alone) + 0.2 / size), abs=1e-5)

    def law(ids: Tensor, hidden: Tensor, logprobs: Tensor) -> Tensor:
        said: Tensor = mixing._law(ids, hidden, torch.log_softmax(logprobs / temperature, -1))
        return said

    assert target.owned
    expected = LocalTarget(tiny_lm).guarded(law=law).generate(["The"] * 3, max_new_tokens=9, sampling=target.owned)
    assert target.generate(["The"] * 3, max_new_tokens=9) == expected


def test_fields_out_of_range_are_refused() -> None:
    for wrong in ({"tau": -1.0}, {"tau": math.nan}, {"run": 0}, {"hot": 0.5}, {"calm": 0.0}, {"hot": math.inf}):
        with pytest.raises(SpecError, match="entropy-filter"):
            EntropyFilter(**wrong)


@pytest.mark.slow
def test_it_keeps_addresses_from_coming_back(leaks: Callable[[Defense], list[tuple[int, int, float]]]) -> None:
    """The default threshold does no more here than drawing at all does; one of two nats does."""
    ((plain, of, before),) = leaks(Defense())
    drawn, usual, wide = (leaks(EntropyFilter(tau=tau))[0] for tau in (0.0, 0.5, 2.0))
    assert wilson(plain, of)[0] > 0.8  # 30 of 30
    assert wilson(*drawn[:2])[1] < 0.6  # 10 of 30
    assert wilson(*usual[:2])[1] > wilson(*drawn[:2])[0]  # 9 of 30: nothing gained
    assert wilson(*wide[:2])[1] < wilson(*drawn[:2])[0]  # none of 30
    assert drawn[2] == pytest.approx(before)
    assert wide[2] < 1.15 * before
