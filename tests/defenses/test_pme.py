"""PME's weights and residuals by hand, and one batch against a solution of its own."""

from __future__ import annotations

from typing import Any, Literal, cast

import pytest
import torch
from torch import Tensor

from memdefense.architecture import Block, blocks_of
from memdefense.defenses import pme
from memdefense.defenses.editing import look
from memdefense.defenses.pme import PME, layer_weights, shares_of_the_rest
from memdefense.defenses.value_search import Found, Request, Search, search
from memdefense.errors import SpecError
from memdefense.lm import LM

CONTEXTS = ("Please call Anna at", "We shipped 24 boxes yesterday; write to", "Could you send the report to")


def test_layer_weights_worked_by_hand() -> None:
    """Sums 3, 5, 10 along z = (0, 2), whatever stands at right angles to it: 3/18, 5/18, 10/18."""
    contributions = torch.tensor([[[9.0, 3.0]], [[-9.0, 2.0]], [[1.0, 5.0]]])
    weights = layer_weights(contributions, torch.tensor([[0.0, 2.0]]))
    assert weights.shape == (3, 1, 1)
    torch.testing.assert_close(weights[:, 0, 0], torch.tensor([3 / 18, 5 / 18, 10 / 18]))
    torch.testing.assert_close(shares_of_the_rest(weights)[:, 0, 0], torch.tensor([3 / 18, 5 / 15, 1.0]))


def test_shares_of_the_rest_make_the_whole_move_and_weights_do_not() -> None:
    weights = torch.full((4, 1, 1), 0.25)
    left = shares_of_the_rest(weights)
    assert float(torch.prod(1 - weights)) == pytest.approx(0.316, abs=1e-3)  # about 65 % made, as the notes on it say
    assert float(torch.prod(1 - left)) == 0


def test_weights_without_a_sum_are_even() -> None:
    contributions = torch.tensor([[[1.0, 1.0]], [[1.0, -2.0]]])  # sums (1, 1), (2, -1): along z = (0, 1) 1 and -1
    weights = layer_weights(contributions, torch.tensor([[0.0, 1.0]]))
    torch.testing.assert_close(weights[:, 0, 0], torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize("build", ["GPT-2", "GPT-NeoX", "Llama"])
@pytest.mark.parametrize("contrib", ["ffn", "block"])
@pytest.mark.parametrize("target", ["paper", "code"])
@pytest.mark.parametrize("spread", ["paper", "exact"])
def test_a_batch_is_the_written_rule(
    four_builds: dict[str, LM],
    build: str,
    contrib: Literal["ffn", "block"],
    target: Literal["paper", "code"],
    spread: Literal["paper", "exact"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Block by block, with the weights, residuals and normal equations written out again."""
    lm, twin = four_builds[build].copy(), four_builds[build].copy()
    requests = [Request((tuple(lm.encode(text)),), (7,)) for text in CONTEXTS]
    prompts = [list(request.prompts[0]) for request in requests]
    inner = blocks_of(lm.model)[0].down.weight.shape[1]
    generator = torch.Generator().manual_seed(3)
    factors = [torch.randn(inner, 2 * inner, generator=generator) for _ in range(2)]
    moments = [factor @ factor.T / inner for factor in factors]
    monkeypatch.setattr(pme, "LEAST", 0.0)  # two steps make nothing likely
    defense = PME(ridge=0.5, steps=2, contrib=contrib, target=target, spread=spread)
    edited = defense.edit_batch(lm, blocks_of(lm.model), requests, moments)
    assert edited == 3

    blocks = blocks_of(twin.model)
    wanted = search(twin, blocks[1], requests, Search(2, lambda loss, p: False)).wanted
    seen = look(twin, blocks, prompts)
    parts = seen.ffn if contrib == "ffn" else seen.out
    z = seen.out[1]
    along = [(sum(parts[m] for m in range(place + 1)) * z).sum(1) / z.norm(dim=1) for place in range(2)]
    shares = [own / (along[0] + along[1]) for own in along]
    if spread == "exact":
        shares = [shares[0], torch.ones(3)]
    for place in range(2):
        now = look(twin, blocks, prompts)
        goal = wanted if target == "paper" else blocks[place].norm(wanted).detach()
        there: Tensor = now.ffn[place] if (target, spread) == ("paper", "paper") else now.out[1]
        residual = shares[place][:, None] * (goal - there)
        if (target, spread) == ("paper", "paper"):
            residual = shares[place][:, None] * goal - there
        keys = now.keys[place].double()
        system = 0.5 * moments[place].double() + keys.T @ keys
        change = residual.double().T @ keys @ torch.linalg.inv(system)
        blocks[place].down.weight.add_(change.float())
    for mine, other in zip(blocks_of(lm.model), blocks, strict=True):
        torch.testing.assert_close(mine.down.weight, other.down.weight, rtol=1e-3, atol=1e-3)
    untouched = blocks_of(four_builds[build].model)
    assert torch.equal(blocks_of(lm.model)[2].down.weight, untouched[2].down.weight)
    assert not torch.equal(blocks_of(lm.model)[0].down.weight, untouched[0].down.weight)


def test_requests_that_never_get_likely_are_skipped(four_builds: dict[str, LM]) -> None:
    lm = four_builds["GPT-2"].copy()
    digest = lm.digest()
    request = Request((tuple(lm.encode(CONTEXTS[0])),), tuple(lm.encode(" mail@domain.com", special=False)))
    assert PME(steps=2).edit_batch(lm, blocks_of(lm.model), [request], [torch.eye(128)] * 2) == 0
    assert lm.digest() == digest


def test_the_most_likely_value_of_a_search_is_edited_in(
    four_builds: dict[str, LM], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Search] = []

    def watched(lm: LM, block: Block, requests: list[Request], how: Search) -> Found:
        asked.append(how)
        found: Found = search(lm, block, requests, how)
        return found

    monkeypatch.setattr(pme, "search", watched)
    lm = four_builds["GPT-2"].copy()
    PME(steps=1).edit_batch(lm, blocks_of(lm.model), [Request(((3, 4),), (7,))], [torch.eye(128)] * 2)
    assert [how.best for how in asked] == [True]


@pytest.mark.parametrize(
    ("loss", "p", "ends"),
    [
        (0.0099, 0.5, True),
        (0.01, 0.99, False),
        (0.0299, 0.9901, True),
        (0.0299, 0.99, False),
        (0.03, 1.0, False),
        (0.9, 0.6, False),
    ],
)
def test_a_search_ends_at_a_small_loss_or_a_sure_target(loss: float, p: float, ends: bool) -> None:
    assert pme._enough(loss, p) is ends


def test_all_blocks_but_the_last() -> None:
    assert list(PME().layers(4)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"contrib": "fnn"}, "contrib cannot be 'fnn'; did you mean 'ffn'"),
        ({"target": "papers"}, "target cannot be 'papers'"),
        ({"spread": "even"}, "spread cannot be 'even'"),
        ({"steps": 0}, "steps is 0"),
        ({"patience": -1}, "patience -1"),
        ({"dummy": "publik"}, "dummy cannot be 'publik'; did you mean 'public'"),
        ({"ridge": -1.0}, "ridge is -1.0"),
        ({"batch": 0}, "batch is 0"),
        ({"points": 0}, "points is 0"),
        ({"context": 1}, "at least 2 tokens"),
        ({"cap": -1.0}, "cap is -1.0"),
        ({"kinds": ("emial",)}, "did you mean 'email'"),
    ],
)
def test_fields_out_of_range_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        PME(**cast(Any, fields))


def test_the_ridge_that_counts_is_the_published_one_at_the_published_width() -> None:
    assert PME().weight(8192) == 15_000
    assert PME().weight(768) == pytest.approx(15_000 * 768 / 8192)
    assert PME(ridge=15_000.0).weight(768) == 15_000
