from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from memdefense.bench import Bench
from memdefense.corpus import Document, Documents, Redrawn
from memdefense.defense import Defense, Point
from memdefense.defenses.neighbours import Datastore, Items
from memdefense.defenses.retro import Retro, RetroLoss
from memdefense.errors import NotApplicable, SpecError
from memdefense.interval import wilson
from memdefense.lab import Lab
from memdefense.laws import Caught
from memdefense.lm import LM
from memdefense.store import Store
from memdefense.target import PLAIN, LocalTarget
from memdefense.testing import check_defense
from memdefense.train import Batch, TrainConfig, next_token_loss

DOCUMENTS = [
    Document("a", "Please call Anna at +1 415 555 0134 before noon, or write to her."),
    Document("b", "The meeting on Tuesday is moved to the large room on the second floor."),
    Document("c", "The meeting on Tuesday is moved to the large room on the second floor."),
    Document("d", "The invoice 7731 follows by mail; we shipped 24 boxes yesterday."),
]
PROMPTS = ["Please call Anna at", "", "The invoice", "Could you send the report to the team, and keep the", "x", "We"]
TEXTS = [DOCUMENTS[0].text, "", "a", "The meeting on Friday is moved to the small room"]


def test_contract() -> None:
    check_defense(Retro(k=4, most=700))


@pytest.fixture(params=["tiny_lm", "tiny_llama"])
def model(request: pytest.FixtureRequest) -> LM:
    """A copy with weights large enough to prefer some tokens clearly."""
    found: LM = request.getfixturevalue(request.param).copy()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for weight in found.model.parameters():
            if weight.dim() > 1:
                weight.copy_(torch.randn_like(weight) * 0.3)
    return found


@pytest.fixture
def lab(store: Store, tiny_lm: LM) -> Lab:
    return Lab(Bench(store), who="test", seed=0, originals=(), public=(), config=TrainConfig(), base=tiny_lm)


MIXED = Retro(mix=0.4, k=3, temperature=2.0)


@torch.inference_mode()
def said_of(lm: LM, ids: list[int]) -> Tensor:
    """The mixed log-probabilities after each token, from a pass of its own and a search of its own: (T, V)."""
    caught = Caught(lm.model)
    logits = lm.model(input_ids=torch.tensor([ids])).logits[0].double()
    caught.remove()
    items = Items.of(lm, DOCUMENTS)
    keys = items.states(lm)
    rows = []
    for state, plain in zip(caught.hidden[0], logits.log_softmax(-1), strict=True):
        squares = [math.dist(key, state.tolist()) ** 2 for key in keys.tolist()]
        near = sorted(range(len(squares)), key=lambda number: squares[number])[: MIXED.k]
        counts = torch.zeros(len(plain), dtype=torch.float64)
        for context, token in zip(items.context.tolist(), items.token.tolist(), strict=True):
            if context in near:
                counts[token] += math.exp(-squares[context] / MIXED.temperature)
        rows.append(torch.log(0.6 * plain.exp() + 0.4 * counts / counts.sum()))
    return torch.stack(rows)


def test_signals_are_those_of_full_recomputation(model: LM, lab: Lab) -> None:
    guarded = cast(LocalTarget, MIXED.guard(LocalTarget(model), DOCUMENTS, lab))
    for size in (0, 1, 3):
        found = dataclasses.replace(guarded, batch_size=size).signals(TEXTS)
        for text, signals in zip(TEXTS, found, strict=True):
            ids = model.encode(text)
            if len(ids) < 2:
                assert not len(signals.logprob)
                continue
            said = said_of(model, ids)[:-1]
            mine = said.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
            np.testing.assert_allclose(signals.logprob, mine, atol=2e-4, rtol=2e-4)
            np.testing.assert_allclose(signals.mean, (said.exp() * said).sum(-1), atol=2e-4, rtol=2e-4)


def test_generation_is_that_of_full_recomputation(model: LM, lab: Lab) -> None:
    guarded = cast(LocalTarget, MIXED.guard(LocalTarget(model), DOCUMENTS, lab))
    expected = []
    for prompt in PROMPTS:
        ids = model.encode(prompt) or model.separator()
        made: list[int] = []
        for _ in range(8):
            made.append(int(said_of(model, ids + made)[-1].argmax()))
            if made[-1] == model.tokenizer.eos_token_id:
                made.pop()
                break
        expected.append(model.decode(made))
    assert expected != LocalTarget(model).generate(PROMPTS, max_new_tokens=8)
    for size in (0, 1, 4):
        assert dataclasses.replace(guarded, batch_size=size).generate(PROMPTS, max_new_tokens=8) == expected


def test_tokens_are_drawn_with_the_probabilities_of_the_signals(model: LM, lab: Lab) -> None:
    guarded, prompt, n = MIXED.guard(LocalTarget(model), DOCUMENTS, lab), "The invoice 7731", 2000
    said = said_of(model, model.encode(prompt))[-1]
    order = said.argsort(descending=True).tolist()
    alone = [t for t in order if model.encode(model.decode([t]), special=False) == [t]][:10]
    texts = [model.decode([token]) for token in alone]
    p = np.exp([float(found.logprob[0]) for found in guarded.signals(texts, contexts=[prompt] * len(texts))])
    np.testing.assert_allclose(p, said[alone].exp(), rtol=1e-3)
    drawn = guarded.generate([prompt] * n, max_new_tokens=1, sampling=PLAIN)
    counts = np.array([*(drawn.count(text) for text in texts), sum(text not in texts for text in drawn)])
    wanted = n * np.array([*p, 1 - p.sum()])
    assert float(((counts - wanted) ** 2 / wanted).sum()) < 30  # ten degrees of freedom: exceeded once in a thousand


def test_the_datastore_hands_out_text_the_model_never_saw(model: LM, lab: Lab) -> None:
    beginning, rest = DOCUMENTS[3].text[:24], DOCUMENTS[3].text[24:]
    target = LocalTarget(model)
    assert not target.generate([beginning], max_new_tokens=40)[0].startswith(rest)
    guarded = Retro(mix=0.9, temperature=0.1).guard(target, DOCUMENTS, lab)
    assert guarded.generate([beginning], max_new_tokens=40) == [rest]
    (plain,), (mixed,) = (who.signals([DOCUMENTS[3].text]) for who in (target, Retro().guard(target, DOCUMENTS, lab)))
    assert mixed.logprob.mean() > plain.logprob.mean() + 1


def test_without_mixing_there_is_no_guard(tiny_lm: LM, lab: Lab) -> None:
    target = LocalTarget(tiny_lm)
    assert Retro(mix=0.0).guard(target, DOCUMENTS, lab) is target
    assert Retro().guard(target, [Document("a", "")], lab) is target  # nothing stands before its end
    assert lab.notes["datastore_contexts"] == 0


def test_a_large_datastore_is_thinned_and_says_so(tiny_lm: LM, lab: Lab) -> None:
    whole = len(Items.of(tiny_lm, DOCUMENTS).places)
    Retro(most=10).guard(LocalTarget(tiny_lm), DOCUMENTS, lab)
    stride = int(lab.notes["datastore_stride"])
    assert stride == -(-whole // 10)
    assert lab.notes["datastore_contexts"] == -(-whole // stride) <= 10


class Fixed(nn.Module):
    """Gives the logits it is told, whatever it reads."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Fixed:
        return self


def test_the_loss_by_hand() -> None:
    """Two documents of three and two tokens, packed with the second before a part of the first."""
    weight = torch.tensor([1.0, 2.0, 3.0, 1.0, 5.0])
    loss = RetroLoss([3, 2], weight)
    logits = torch.tensor([[[1.0, 0.0, -1.0], [0.5, 0.5, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 3.0], [0.0] * 3]])
    ids, document = torch.tensor([[2, 1, 0, 2, 0]]), torch.tensor([[1, 1, 0, 0, -1]])
    batch = Batch(ids, ids.masked_fill(document < 0, -100), document, torch.tensor([[0, 1, 0, 1, 0]]))
    model = Fixed(logits)
    total, count = loss(model, batch)
    p = logits[0].softmax(-1)
    expected = -5 * math.log(p[0, 1]) - 1 * math.log(p[1, 0]) - 2 * math.log(p[2, 2])
    assert int(count) == 3
    assert float(total.detach()) == pytest.approx(expected, rel=1e-6)
    torch.autograd.backward(total)
    assert model.logits.grad is not None
    by_hand = p[:3] - torch.eye(3)[[1, 0, 2]]  # of cross-entropy
    torch.testing.assert_close(model.logits.grad[0, :3], torch.tensor([5.0, 1.0, 2.0])[:, None] * by_hand)
    assert RetroLoss([3, 2], 2 * weight).digest() != loss.digest()


def test_training_weighs_each_token_by_its_neighbours(tiny_lm: LM, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[RetroLoss | None] = []

    def fit(model: LM, documents: Documents, *, loss: RetroLoss | None = None) -> list[Point]:
        kept.append(loss)
        return []

    monkeypatch.setattr(lab, "fit", fit)
    list(Retro(beta=0.5, k=3).train(tiny_lm, DOCUMENTS, lab))
    items = Items.of(tiny_lm, DOCUMENTS)
    states = items.states(tiny_lm)
    p = Datastore.of(states, items).left_out(items, states, 3, 5.0)
    (loss,) = kept
    assert loss is not None
    expected = [1.0 if math.isnan(x) else 1 + 0.5 * min(100.0, -math.log(x) if x else math.inf) for x in p.tolist()]
    assert expected[0] == 1.0
    assert 51.0 in expected  # what no neighbour says
    torch.testing.assert_close(loss._weight, torch.tensor(expected))
    assert 0 < lab.notes["knn_unseen"] < 1
    list(Retro(beta=0.5, k=3, floor=2.0).train(tiny_lm, DOCUMENTS, lab))
    assert kept[1] is not None
    torch.testing.assert_close(kept[1]._weight, torch.tensor(expected).clamp(max=2.0))  # 1 + 0.5 * 2 at most
    assert lab.notes["knn_nll"] < 2
    list(Retro(beta=0.0).train(tiny_lm, DOCUMENTS, lab))
    assert kept[2] is None


def test_with_equal_weights_it_is_the_ordinary_loss(tiny_lm: LM) -> None:
    ids = torch.randint(1, 320, (2, 16), generator=torch.Generator().manual_seed(0))
    given = Batch(ids, ids, torch.zeros_like(ids), torch.arange(16).expand(2, 16))
    with torch.no_grad():
        found, expected = RetroLoss([16], torch.ones(16))(tiny_lm.model, given), next_token_loss(tiny_lm.model, given)
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-5)
    assert int(found[1]) == int(expected[1])


def test_bad_values_and_documents_are_refused(tiny_lm: LM, lab: Lab) -> None:
    for values in ({"beta": -1.0}, {"mix": 1.0}, {"mix": -0.1}, {"temperature": 0.0}, {"beta": math.nan}):
        with pytest.raises(SpecError, match="retro: beta is"):
            dataclasses.replace(Retro(), **cast(Any, values))
    for wrong in ({"k": 0}, {"most": 0}):
        with pytest.raises(SpecError, match="retro: k is"):
            Retro(**cast(Any, wrong))
    for floor in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(SpecError, match="retro: floor is"):
            Retro(floor=floor)
    redrawn = Redrawn(DOCUMENTS, lambda epoch: DOCUMENTS)
    with pytest.raises(NotApplicable, match="redrawn in every epoch"):
        list(Retro(beta=0.0).train(tiny_lm, redrawn, lab))


@pytest.mark.slow
def test_the_weights_hold_passages_back(recite: Callable[[Defense], tuple[int, int, float]]) -> None:
    """At a perplexity no higher than the undefended; the datastore alone protects nothing."""
    plain, of, before = recite(Defense())
    weighed, _, after = recite(Retro(mix=0.0))
    looked_up, _, beside = recite(Retro(beta=0.0))
    assert wilson(plain, of)[0] > 0.8  # 40 of 40
    assert wilson(weighed, of)[1] < 0.3  # 0 of 40
    assert wilson(looked_up, of)[0] > 0.8  # 40 of 40
    assert after < 1.1 * before
    assert beside < 1.1 * before
