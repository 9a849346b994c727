from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from memdefense.corpus import Document, Redrawn
from memdefense.defense import Defense
from memdefense.defenses.elr import ELR, ELRLoss
from memdefense.errors import NotApplicable, SpecError
from memdefense.fit import fit, load_checkpoint
from memdefense.interval import wilson
from memdefense.lm import LM
from memdefense.testing import check_defense
from memdefense.train import Batch, StatefulLoss, TrainConfig, next_token_loss


def test_contract() -> None:
    check_defense(ELR(top=3))


class Fixed(nn.Module):
    """Gives the logits it is told, whatever it reads."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Fixed:
        return self


def batch(ids: list[list[int]], document: list[list[int]], offset: list[list[int]]) -> Batch:
    given, of, at = (torch.tensor(column) for column in (ids, document, offset))
    return Batch(given, given.masked_fill(of < 0, -100), of, at)


def test_two_steps_by_hand() -> None:
    loss = ELRLoss([3, 2], weight=3.0, beta=0.7, top=4)
    assert isinstance(loss, StatefulLoss)
    first = torch.tensor([[[1.0, 0.0, -1.0, 2.0], [0.5, 0.5, 0.0, -2.0], [0.0] * 4, [0.0] * 4]])
    second = torch.tensor([[[0.0, 3.0, 0.0, 0.0], [0.0] * 4, [2.0, 0.0, 0.0, 1.0], [0.0] * 4]])
    one = batch([[2, 1, 3, 0]], [[0, 0, 0, -1]], [[0, 1, 2, 0]])
    two = batch([[1, 0, 2, 1]], [[1, 1, 0, 0]], [[0, 1, 0, 1]])
    total, count = loss(Fixed(first), one)
    loss.commit(True)
    p = first.softmax(-1)[0]
    expected = 0.0
    for place, token in ((0, 1), (1, 3)):
        t = 0.3 * p[place]  # the target starts at zero and takes in the first prediction before it is used
        expected += float(-p[place, token].log() + 3 * torch.log(1 - (t * p[place]).sum()))
    assert int(count) == 2
    assert float(total.detach()) == pytest.approx(expected, rel=1e-6)
    model = Fixed(second)
    total, count = loss(model, two)
    loss.commit(True)
    q = second.softmax(-1)[0]
    targets = [0.3 * q[0], 0.3 * q[1], 0.7 * 0.3 * p[0] + 0.3 * q[2]]  # the third is document 0, offset 1, again
    expected = 0.0
    for place, (token, t) in enumerate(zip((0, 2, 1), targets, strict=True)):
        expected += float(-q[place, token].log() + 3 * torch.log(1 - (t * q[place]).sum()))
    assert int(count) == 3
    assert float(total.detach()) == pytest.approx(expected, rel=1e-6)
    total.backward()  # type: ignore[no-untyped-call]
    logits = second[0, 2].clone().requires_grad_()
    probabilities = logits.softmax(-1)
    by_hand = -probabilities[1].log() + 3 * torch.log(1 - (targets[2] * probabilities).sum())
    by_hand.backward()  # type: ignore[no-untyped-call]
    assert model.logits.grad is not None
    torch.testing.assert_close(model.logits.grad[0, 2], logits.grad)


def test_a_target_keeps_the_largest_entries_of_the_average() -> None:
    torch.manual_seed(0)
    loss, whole = ELRLoss([2], 3.0, 0.7, top=3), torch.zeros(40)
    for _ in range(6):
        logits = 2 * torch.randn(1, 2, 40)
        loss(Fixed(logits), batch([[1, 2]], [[0, 0]], [[0, 1]]))
        loss.commit(True)
        # By brute force: the average over all entries, cut to its three largest.
        whole = 0.7 * whole + 0.3 * logits[0, 0].softmax(-1)
        kept = whole.topk(3)
        whole = torch.zeros(40).scatter(0, kept.indices, kept.values)
        state = loss.state_dict()
        found = torch.zeros(40).scatter(0, state["token"][1].long(), state["share"][1])
        torch.testing.assert_close(found, whole)
        assert int((state["share"][0] > 0).sum()) == 0  # nothing predicts a row's first token


def test_a_step_that_starts_over_leaves_nothing() -> None:
    loss = ELRLoss([3], 3.0, 0.7, top=2)
    given = batch([[2, 1, 3]], [[0, 0, 0]], [[0, 1, 2]])
    loss(Fixed(torch.randn(1, 3, 5)), given)
    loss.commit(False)
    loss.commit(True)
    assert float(loss.state_dict()["share"].sum()) == 0


@pytest.mark.parametrize(("weight", "rest"), [(3.0, 0.976), (1.0, 0.821), (0.3, 0.630)])
def test_where_a_token_with_two_continuations_comes_to_rest(weight: float, rest: float) -> None:
    """Three of five times the first follows; p has been the same for six epochs. What the docstring says.

    The rest is the root of (0.6 - p) + weight c p (p - s) / (1 - c s), where s = p^2 + (1 - p)^2 and c = 1 - 0.7^6.
    """
    given = batch([[0, 0, 0, 0, 1, 1]], [[0] * 6], [[0, 1, 2, 3, 4, 5]])
    slopes = []
    for p in (rest - 0.002, rest + 0.002):
        loss, model = ELRLoss([6], weight, 0.7, top=2), Fixed(torch.tensor([p, 1 - p]).log().repeat(1, 6, 1))
        for _ in range(6):
            model.zero_grad()
            total, _ = loss(model, given)
            loss.commit(True)
            total.backward()  # type: ignore[no-untyped-call, unused-ignore]
        assert model.logits.grad is not None
        slopes.append(float(model.logits.grad[0, :, 0].sum()))
    assert slopes[0] < 0 < slopes[1]


DOCUMENTS = [Document(f"d{n}", f"The report {n} on room {n % 5} is ready for Anna and the team.") for n in range(9)]
CONFIG = TrainConfig(epochs=4, learning_rate=1e-2, batch_size=4, block_size=16, dtype="float32", checkpoints=4)


def loss_for(lm: LM) -> ELRLoss:
    return ELRLoss([len(lm.encode(document.text)) + 1 for document in DOCUMENTS], 3.0, 0.7, 4)


def test_an_interrupted_run_takes_its_targets_up_again(tiny_lm: LM, tmp_path: Path) -> None:
    loss = loss_for(tiny_lm)
    whole = fit(tiny_lm, DOCUMENTS, tmp_path / "whole", config=CONFIG, seed=0, loss=loss)[0]
    assert float(loss.state_dict()["share"].sum()) == 0  # a copy of it was trained with
    total = int(whole[-1].folder.name.rpartition("-")[2])

    def interrupt(done: int, _: int) -> None:
        if done == total * 3 // 4 + 1:
            raise KeyboardInterrupt

    folder = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_lm, DOCUMENTS, folder, config=CONFIG, seed=0, loss=loss, progress=interrupt)
    assert len(list(folder.glob("*/loss.pt"))) == 1  # the newest one's
    parts = fit(tiny_lm, DOCUMENTS, folder, config=CONFIG, seed=0, loss=loss)[0]
    for one, other in zip(whole, parts, strict=True):
        assert load_checkpoint(one, tiny_lm).digest() == load_checkpoint(other, tiny_lm).digest()
    plain = fit(tiny_lm, DOCUMENTS, tmp_path / "plain", config=CONFIG, seed=0)[0]
    assert load_checkpoint(plain[-1], tiny_lm).digest() != load_checkpoint(whole[-1], tiny_lm).digest()


def test_micro_batches_do_not_change_the_result(tiny_lm: LM, tmp_path: Path) -> None:
    models = []
    for size in (0, 1, 3):
        points = fit(
            tiny_lm, DOCUMENTS, tmp_path / str(size), config=CONFIG, seed=0, loss=loss_for(tiny_lm), micro_batch=size
        )[0]
        models.append(dict(load_checkpoint(points[-1], tiny_lm).model.named_parameters()))
    for other in models[1:]:
        for name, weight in models[0].items():
            torch.testing.assert_close(other[name], weight, atol=2e-3, rtol=2e-2, msg=name)


def test_without_weight_it_is_the_ordinary_loss(tiny_lm: LM) -> None:
    ids = torch.randint(1, 320, (2, 16), generator=torch.Generator().manual_seed(0))
    given = Batch(ids, ids, torch.zeros_like(ids), torch.arange(16).expand(2, 16))
    with torch.no_grad():
        found, expected = ELRLoss([16], 0.0, 0.7, 4)(tiny_lm.model, given), next_token_loss(tiny_lm.model, given)
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-5)
    assert int(found[1]) == int(expected[1])


def test_bad_values_and_documents_are_refused(tiny_lm: LM) -> None:
    for values in ({"weight": -1.0}, {"beta": 1.0}, {"top": 0}):
        with pytest.raises(SpecError, match="elr: weight is"):
            dataclasses.replace(ELR(), **values)
    redrawn = Redrawn(DOCUMENTS, lambda epoch: DOCUMENTS)
    with pytest.raises(NotApplicable, match="redrawn in every epoch"):
        ELR().train(tiny_lm, redrawn, cast(Any, None))


@pytest.mark.slow
def test_passages_are_recited_hardly_less(recite: Callable[[Defense], tuple[int, int, float]]) -> None:
    plain, plain_of, before = recite(Defense())
    hits, of, after = recite(ELR())
    assert wilson(plain, plain_of)[0] > 0.8  # 40 of 40
    assert hits < plain
    assert wilson(hits, of)[0] > 0.5  # 33 of 40: what the docstring says
    assert after < 1.1 * before
