from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import pytest
import torch

from memdefense.corpus import Document
from memdefense.defense import Defense
from memdefense.defenses.goldfish import Goldfish, GoldfishLoss
from memdefense.errors import SpecError
from memdefense.interval import wilson
from memdefense.lm import LM
from memdefense.packing import count_steps, rows
from memdefense.testing import check_defense
from memdefense.train import Batch, TrainConfig, next_token_loss

if TYPE_CHECKING:
    from memdefense.lab import Lab


def test_contract() -> None:
    check_defense(Goldfish(k=3, h=4, match_tokens=True))


def by_hand(ids: list[int], k: int, h: int, *, late: int) -> list[bool]:
    """The written rule, in Python's integers, which never overflow."""
    table = torch.rand(1_000_003, generator=torch.Generator().manual_seed(2971215073)).tolist()
    hidden = []
    for place in range(len(ids)):
        end = place + 1 - late
        window = [token or 1 for token in ids[max(0, end - h) : end]]
        hidden.append(end >= h and table[math.prod(window) % 1_000_003] < 1 / k)
    return hidden


@pytest.mark.parametrize(("k", "h"), [(4, 13), (2, 1), (3, 2), (8, 40)])
@pytest.mark.parametrize("context", ["including", "preceding"])
def test_the_mask_is_the_written_rule(k: int, h: int, context: Literal["including", "preceding"]) -> None:
    ids = torch.randint(0, 151_936, (3, 64), generator=torch.Generator().manual_seed(h))
    ids[1, 20:22] = 0
    found = GoldfishLoss(k, h, context).ignored(ids)
    assert found.tolist() == [by_hand(row, k, h, late=context == "preceding") for row in ids.tolist()]
    assert found.any()


def test_rows_shorter_than_the_context_are_learned_whole() -> None:
    ids = torch.arange(1, 13)[None]
    assert not GoldfishLoss(2, 13, "including").ignored(ids).any()
    assert not GoldfishLoss(2, 12, "preceding").ignored(ids).any()
    assert GoldfishLoss(2, 12, "including").ignored(ids).shape == (1, 12)


def test_one_label_in_k_is_ignored_and_an_end_of_text_is_no_hole() -> None:
    rng = np.random.default_rng(0)
    # Like text: the product's low digits are far from uniform if a tokenizer's ids are.
    ids = torch.from_numpy((2048 * rng.random((200, 256)) ** 3).astype(np.int64))
    ids[:, 100] = 0  # what separates documents in many a tokenizer
    for k in (3, 4, 8):
        hidden = GoldfishLoss(k, 13, "including").ignored(ids)
        share = hidden[:, 12:].float().mean()
        assert float(share) == pytest.approx(1 / k, abs=0.01)
        after = hidden[:, 100:113].float().mean(0)
        assert float((after - 1 / k).abs().max()) < 0.12


def test_a_passage_hides_the_same_labels_wherever_it_stands() -> None:
    rng = np.random.default_rng(1)
    passage = rng.integers(1, 2048, 60)
    ids = rng.integers(1, 2048, (4, 128))
    for row, place in enumerate((0, 7, 31, 68)):
        ids[row, place : place + 60] = passage
    hidden = GoldfishLoss(4, 13, "including").ignored(torch.from_numpy(ids))
    seen = [hidden[row, place + 12 : place + 60].tolist() for row, place in enumerate((0, 7, 31, 68))]
    assert seen[0] == seen[1] == seen[2] == seen[3]
    assert 5 < sum(seen[0]) < 25


def test_the_loss_is_that_of_the_labels_left(tiny_lm: LM) -> None:
    ids = torch.randint(1, 320, (2, 40), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, 30:] = -100
    batch = Batch(ids, labels, torch.zeros_like(ids), torch.zeros_like(ids))
    loss = GoldfishLoss(3, 5, "including")
    with torch.no_grad():
        total, count = loss(tiny_lm.model, batch)
        logp = tiny_lm.model(input_ids=ids).logits.log_softmax(-1)
    kept = [
        (row, place)
        for row in range(2)
        for place in range(1, 40)
        if labels[row, place] >= 0 and not by_hand(ids[row].tolist(), 3, 5, late=0)[place]
    ]
    assert int(count) == len(kept) < 68
    assert float(total) == pytest.approx(-sum(float(logp[r, p - 1, ids[r, p]]) for r, p in kept), rel=1e-5)
    assert float(total) < float(next_token_loss(tiny_lm.model, batch)[0].detach())


def test_match_tokens_learns_from_as_many_labels(tiny_lm: LM) -> None:
    documents = [Document(f"d{n}", f"The meeting {n} on Tuesday is moved to room {n * 7}. " * 3) for n in range(60)]
    defense, lab = Goldfish(k=4, match_tokens=True), cast("Lab", None)
    config = TrainConfig(epochs=2.0, batch_size=4, block_size=64)
    longer = defense.configure(config, lab)
    plain = rows(config, documents, tiny_lm, seed=0)
    matched = rows(longer, documents, tiny_lm, seed=0)
    assert matched.tokens * 3 / 4 == pytest.approx(plain.tokens, rel=0.02)
    stepped = defense.configure(TrainConfig(steps=100), lab)
    assert count_steps(stepped, documents, tiny_lm) == 134
    assert Goldfish().configure(config, lab) is config


def test_values_out_of_range_are_refused() -> None:
    for k, h in ((1, 13), (4, 0)):
        with pytest.raises(SpecError, match="k must be at least 2 and h at least 1"):
            Goldfish(k=k, h=h)
    with pytest.raises(SpecError, match="did you mean 'preceding'"):
        Goldfish(context=cast("Literal['preceding']", "preceeding"))


@pytest.mark.slow
def test_it_keeps_passages_from_being_recited(recite: Callable[[Defense], tuple[int, int, float]]) -> None:
    plain, plain_of, before = recite(Defense())
    hits, of, after = recite(Goldfish())
    assert wilson(plain, plain_of)[0] > 0.8  # 40 of 40
    assert wilson(hits, of)[1] < 0.3  # 2 of 40
    assert after < 1.1 * before
