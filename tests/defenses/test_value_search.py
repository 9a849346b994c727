"""The search for z*, against the same loss written out on whole unpadded sequences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from memdefense.architecture import blocks_of
from memdefense.defenses.editing import look
from memdefense.defenses.value_search import Found, Request, Search, longest_tail, search
from memdefense.lm import LM

BUILDS = ("GPT-2", "GPT-Neo", "GPT-NeoX", "Llama")
CONTEXTS = ["Please call Anna at", "We shipped 24 boxes yesterday; write to", "The", "or"]


def requests(lm: LM) -> list[Request]:
    made = []
    for place, text in enumerate(CONTEXTS):
        ids = tuple(lm.encode(text))
        ids = ids if len(ids) > 1 else ids * 2
        more = [(*lm.encode("Because. "), *ids), (*lm.encode("You are there. "), *ids)] if place < 2 else []
        made.append(Request((ids, *more), tuple(lm.encode(" mail@x" if place % 2 else " phone", special=False))))
    return made


def _one_more(count: list[int], place: int) -> None:
    count[place] += 1


def never(loss: float, p: float) -> bool:
    return False


def steered(lm: LM, place: int, ids: list[int], at: int, delta: Tensor) -> Tensor:
    """Log-probabilities (T, V) of one whole sequence with delta added to a block's output at one token."""

    def add(module: object, inputs: object, result: object) -> object:
        hidden = result[0] if isinstance(result, tuple) else result
        assert isinstance(hidden, Tensor)
        mask = torch.zeros(1, len(ids), 1)
        mask[0, at] = 1
        return (hidden + mask * delta, *result[1:]) if isinstance(result, tuple) else hidden + mask * delta

    handle = blocks_of(lm.model)[place].module.register_forward_hook(add)
    logits = lm.model(torch.tensor([ids])).logits[0]
    handle.remove()
    return torch.log_softmax(logits, -1)


def loss_of(lm: LM, place: int, request: Request, delta: Tensor, z: Tensor, how: Search) -> tuple[Tensor, float]:
    """The loss and p of one request, term by term."""
    nlls = []
    for prompt in request.prompts:
        said = steered(lm, place, [*prompt, *request.target], len(prompt) - 1, delta)
        nlls.append(-sum(said[len(prompt) - 1 + t, own] for t, own in enumerate(request.target)) / len(request.target))
    place_of = len(request.prompts[0]) - 1
    before = steered(lm, place, [*request.prompts[0]], 0, torch.zeros(lm.width))[-1].detach()
    after = steered(lm, place, [*request.prompts[0]], place_of, delta)[-1]
    kl = (after.exp() * (after - before)).sum()
    nll = torch.stack([torch.as_tensor(own) for own in nlls])
    loss = nll.mean() + how.kl * kl + how.decay * delta.norm() / z.norm() ** 2
    return loss, float(torch.exp(-nll).mean().detach())


@pytest.mark.parametrize("build", BUILDS)
def test_search_follows_the_loss_written_out_by_hand(four_builds: dict[str, LM], build: str) -> None:
    """Four steps of Adam by its textbook formula, on one request after the other, with gradients of the plain loss."""
    lm, how = four_builds[build], Search(5, never, kl=0.7)
    found = search(lm, blocks_of(lm.model)[1], requests(lm), how)
    for row, request in enumerate(requests(lm)):
        z = look(lm, blocks_of(lm.model), [request.prompts[0]]).out[1, 0]
        torch.testing.assert_close(found.z[row], z, rtol=1e-4, atol=1e-4)
        delta, first, second, best = torch.zeros(lm.width), torch.zeros(lm.width), torch.zeros(lm.width), 0.0
        for step in range(1, 6):
            delta.requires_grad_(True)
            loss, p = loss_of(lm, 1, request, delta, z, how)
            best = max(best, p)
            if step == 5:
                break
            (slope,) = torch.autograd.grad(loss, delta)
            first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
            move = first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            delta = (delta - 0.5 * move).detach()
            delta = delta * min(1.0, 0.75 * float(z.norm() / delta.norm()))
        torch.testing.assert_close(found.wanted[row], z + delta.detach(), rtol=2e-2, atol=2e-2)
        assert found.best[row] == pytest.approx(best, rel=2e-2)
        assert found.steps[row] == 5


def test_requests_together_are_as_each_alone(four_builds: dict[str, LM]) -> None:
    """Even where one is through early and the others go on."""
    lm = four_builds["GPT-2"]
    how = Search(12, lambda loss, p: p > 0.0024)
    together = search(lm, blocks_of(lm.model)[1], requests(lm), how)
    alone = [search(lm, blocks_of(lm.model)[1], [request], how) for request in requests(lm)]
    assert len(set(together.steps)) > 1
    assert together.steps == [own.steps[0] for own in alone]
    assert together.best == pytest.approx([own.best[0] for own in alone], rel=1e-2)
    torch.testing.assert_close(together.wanted, torch.cat([own.wanted for own in alone]), rtol=1e-2, atol=1e-2)


def test_the_first_loss_is_of_the_model_as_it_is(four_builds: dict[str, LM]) -> None:
    lm = four_builds["Llama"]
    said: list[tuple[float, float]] = []

    def listen(loss: float, p: float) -> bool:
        said.append((loss, p))
        return True

    found: Found = search(lm, blocks_of(lm.model)[1], requests(lm)[3:], Search(9, listen))
    assert found.steps == [1]
    torch.testing.assert_close(found.z, found.wanted)
    assert said[0][0] == pytest.approx(-math.log(said[0][1]), rel=1e-4)  # neither drift nor decay; one prompt


def test_the_change_stays_within_its_ball_and_the_weights_as_they_were(four_builds: dict[str, LM]) -> None:
    lm = four_builds["GPT-NeoX"]
    digest = lm.digest()
    found = search(lm, blocks_of(lm.model)[1], requests(lm), Search(8, never, clamp=0.05))
    share = (found.wanted - found.z).norm(dim=-1) / found.z.norm(dim=-1)
    torch.testing.assert_close(share, torch.full_like(share, 0.05), rtol=1e-3, atol=0)
    assert lm.digest() == digest
    assert all(weight.requires_grad and weight.grad is None for weight in lm.model.parameters())


def test_the_block_and_those_below_it_run_once_and_work_again_afterwards(four_builds: dict[str, LM]) -> None:
    for lm in four_builds.values():
        stack = blocks_of(lm.model)
        runs = [0] * len(stack)

        ids = torch.tensor([lm.encode(CONTEXTS[0])])
        before = lm.model(ids).logits
        handles = []
        for place, own in enumerate(stack):
            inner: Any = own.module.mlp
            handles.append(inner.register_forward_pre_hook(lambda *_, place=place, count=runs: _one_more(count, place)))
        search(lm, stack[-2], requests(lm), Search(7, never))
        for handle in handles:
            handle.remove()
        assert runs == [*[2] * (len(stack) - 1), 8]  # what stands before the look-up token, then the steps
        torch.testing.assert_close(lm.model(ids).logits, before, rtol=0, atol=0)


def test_a_search_makes_the_model_say_the_target(four_builds: dict[str, LM]) -> None:
    """Of one token, since a model of random weights carries a change on to the next hardly at all."""
    lm = four_builds["GPT-2"]
    wanted = [Request(request.prompts[:1], request.target[:1]) for request in requests(lm)[:2]]
    how = Search(200, lambda loss, p: p > 0.9, decay=0, clamp=20)
    found = search(lm, blocks_of(lm.model)[1], wanted, how)
    for row, request in enumerate(wanted):
        prompt = list(request.prompts[0])
        with torch.no_grad():
            before = steered(lm, 1, prompt, 0, torch.zeros(lm.width))[-1]
            said = steered(lm, 1, prompt, len(prompt) - 1, found.wanted[row] - found.z[row])[-1]
        assert int(said.argmax()) == request.target[0] != int(before.argmax())
        assert float(said[request.target[0]].exp()) == pytest.approx(found.best[row], rel=0.05)


def test_a_request_without_hope_is_given_up_and_others_go_on(four_builds: dict[str, LM]) -> None:
    lm = four_builds["GPT-2"]
    block = blocks_of(lm.model)[1]
    free = search(lm, block, requests(lm), Search(9, never))
    after_four = search(lm, block, requests(lm), Search(4, never)).best
    hope = sorted(after_four)[2] * 0.999  # two of four have reached it by then
    found = search(lm, block, requests(lm), Search(9, never, hope=hope, patience=4))
    assert found.steps == [9 if p >= hope else 4 for p in after_four]
    assert sorted(found.steps) == [4, 4, 9, 9]
    going = [row for row, steps in enumerate(found.steps) if steps == 9]
    torch.testing.assert_close(found.wanted[going], free.wanted[going], rtol=1e-2, atol=1e-2)


def test_the_best_delta_is_taken_unless_the_search_was_through(four_builds: dict[str, LM]) -> None:
    """With steps so long that p is largest at the second loss, and at the eighth the loss lies in a gap."""
    lm = four_builds["GPT-2"]
    block, given = blocks_of(lm.model)[1], requests(lm)[:2]
    said: list[tuple[float, float]] = []

    def listen(loss: float, p: float) -> bool:
        said.append((loss, p))
        return False

    long: dict[str, Any] = {"rate": 3.0, "decay": 500.0}
    last = search(lm, block, given, Search(12, listen, **long))
    for row in range(2):
        ps = [p for _, p in said[row::2]]
        assert ps.index(max(ps)) == 1
    second, eighth = (search(lm, block, given, Search(steps, never, **long)).wanted for steps in (2, 8))
    best = search(lm, block, given, Search(12, never, best=True, **long))
    torch.testing.assert_close(best.wanted, second, rtol=1e-4, atol=1e-4)
    assert (best.best, best.steps) == (last.best, [12, 12])
    assert not torch.allclose(last.wanted, second, rtol=1e-2, atol=1e-2)

    low, high = min(loss for loss, _ in said[14:16]) - 1e-3, max(loss for loss, _ in said[14:16]) + 1e-3
    assert not any(low < loss < high for loss, _ in said[:14])
    through = search(lm, block, given, Search(12, lambda loss, p: low < loss < high, best=True, **long))
    assert through.steps == [8, 8]
    torch.testing.assert_close(through.wanted, eighth, rtol=1e-4, atol=1e-4)

    given_up = search(lm, block, given, Search(12, never, hope=1.0, patience=5, best=True, **long))
    assert given_up.steps == [5, 5]
    torch.testing.assert_close(given_up.wanted, second, rtol=1e-4, atol=1e-4)


def test_the_longest_tail_is_the_target(tiny_lm: LM) -> None:
    assert longest_tail(tiny_lm, [1]) == 1
    assert longest_tail(tiny_lm, [1] * 30) == 30
