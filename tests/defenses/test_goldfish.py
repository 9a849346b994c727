from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import pytest
import torch

from memdefense.corpus import Document
from memdefense.defense import Defense
from memdefense.defenses.goldfish import Goldfish, GoldfishLoss, _hidden
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


def places(ids: torch.Tensor) -> torch.Tensor:
    """Offsets of rows that are a document each."""
    return torch.arange(ids.shape[1]).expand(ids.shape)


@pytest.mark.parametrize(("k", "h"), [(4, 13), (2, 1), (3, 2), (8, 40)])
@pytest.mark.parametrize("context", ["including", "preceding"])
def test_the_mask_is_the_written_rule(k: int, h: int, context: Literal["including", "preceding"]) -> None:
    ids = torch.randint(0, 151_936, (3, 64), generator=torch.Generator().manual_seed(h))
    ids[1, 20:22] = 0
    found = GoldfishLoss(k, h, context).ignored(ids, places(ids))
    assert found.tolist() == [by_hand(row, k, h, late=context == "preceding") for row in ids.tolist()]
    assert found.any()


def test_rows_shorter_than_the_context_are_learned_whole() -> None:
    ids = torch.arange(1, 13)[None]
    assert not GoldfishLoss(2, 13, "including").ignored(ids, places(ids)).any()
    assert not GoldfishLoss(2, 12, "preceding").ignored(ids, places(ids)).any()
    assert GoldfishLoss(2, 12, "including").ignored(ids, places(ids)).shape == (1, 12)


def test_one_label_in_k_is_ignored_and_an_end_of_text_is_no_hole() -> None:
    rng = np.random.default_rng(0)
    # Like text: the product's low digits are far from uniform if a tokenizer's ids are.
    ids = torch.from_numpy((2048 * rng.random((200, 256)) ** 3).astype(np.int64))
    ids[:, 100] = 0  # what separates documents in many a tokenizer
    for k in (3, 4, 8):
        hidden = GoldfishLoss(k, 13, "including").ignored(ids, places(ids))
        share = hidden[:, 12:].float().mean()
        assert float(share) == pytest.approx(1 / k, abs=0.01)
        after = hidden[:, 100:113].float().mean(0)
        assert float((after - 1 / k).abs().max()) < 0.12


@pytest.mark.parametrize("context", ["including", "preceding"])
@pytest.mark.parametrize("pack", ["tokens", "document"])
def test_what_is_hidden_is_hidden_in_every_epoch_and_copy(
    tiny_lm: LM, context: Literal["including", "preceding"], pack: Literal["tokens", "document"]
) -> None:
    rng = np.random.default_rng(1)
    passage = " ".join(map(str, rng.integers(0, 999, 20)))
    documents = [Document(f"d{n}", f"Mail {n}: {rng.integers(0, 99)}. {passage}") for n in range(20)]
    config = TrainConfig(epochs=5.0, batch_size=4, block_size=32, pack=pack)
    run = rows(config, documents, tiny_lm, seed=0)
    batch = Batch(**run.__getitems__(list(range(len(run)))))
    learned = GoldfishLoss(4, 6, context).masked(batch).labels != -100
    late = context == "preceding"
    seen: set[tuple[int, ...]] = set()
    kept: set[tuple[int, ...]] = set()
    for number, document in enumerate(documents):
        ids = tiny_lm.encode(document.text) + tiny_lm.separator()
        hidden = by_hand(ids, 4, 6, late=late)
        learned_at = set(batch.offset[(batch.document == number) & learned].tolist())
        whole = len(ids) if pack == "tokens" else min(32, len(ids))
        assert learned_at == {at for at in range(whole) if not hidden[at]}  # all of the others, in some epoch
        assert set(range(5 + late)) <= learned_at
        for at in range(6, whole):
            (kept if hidden[at] else seen).add(tuple(ids[at - 6 : at + 1]))
    assert kept
    assert not seen & kept  # no copy gives away what another hides


def test_what_a_row_does_not_hold_the_context_of_is_not_learned_there() -> None:
    ids = torch.randint(1, 300, (1, 20), generator=torch.Generator().manual_seed(0))
    goes_on = GoldfishLoss(1_000_000, 6, "including").ignored(ids, torch.arange(40, 60)[None])
    assert goes_on[0].tolist() == [True] * 5 + [False] * 15
    begun = GoldfishLoss(1_000_000, 6, "including").ignored(ids, torch.arange(2, 22)[None])
    assert begun[0].tolist() == [False] * 3 + [True] * 2 + [False] * 15


def test_the_notes_say_what_is_ignored_and_what_is_never_learned(tiny_lm: LM) -> None:
    rng = np.random.default_rng(2)
    documents = [Document(f"d{n}", " ".join(map(str, rng.integers(0, 9999, 60)))) for n in range(30)]
    config = TrainConfig(epochs=4.0, batch_size=4, block_size=64)
    loss, run = GoldfishLoss(3, 5, "including"), rows(config, documents, tiny_lm, seed=0)
    notes = _hidden(loss, run, fixed=True)
    all_ids = [tiny_lm.encode(document.text) + tiny_lm.separator() for document in documents]
    never = [hidden for ids in all_ids for hidden in by_hand(ids, 3, 5, late=0)]
    assert notes["never_learned"] == pytest.approx(np.mean(never), abs=0.02)  # a few stand at a row's start only
    assert notes["never_learned"] < notes["labels_ignored"] < notes["never_learned"] + 4 / 64
    assert set(_hidden(loss, run, fixed=False)) == {"labels_ignored"}


def test_the_loss_is_that_of_the_labels_left(tiny_lm: LM) -> None:
    ids = torch.randint(1, 320, (2, 40), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, 30:] = -100
    batch = Batch(ids, labels, torch.zeros_like(ids), places(ids))
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


def test_match_tokens_rounds_steps_up_exactly() -> None:
    longer = Goldfish(k=7, match_tokens=True).configure(TrainConfig(steps=54), cast("Lab", None))
    assert longer.steps == 63  # 54 * 7 / 6, whose product of floats is a little more


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
