"""Every guard: generation and signals are drawn from one law, whatever else stands in the batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from memdefense.bench import Bench
from memdefense.defense import Defense
from memdefense.defenses.dp_decoding import DPDecoding
from memdefense.defenses.entropy_filter import EntropyFilter
from memdefense.defenses.layered import Layered
from memdefense.defenses.pattern_filter import PatternFilter
from memdefense.lab import Lab
from memdefense.lm import LM
from memdefense.store import Store
from memdefense.target import PLAIN, LocalTarget
from memdefense.train import TrainConfig

Reference = Callable[[Tensor], Tensor]

PROMPTS = ["Please call Anna at", "", "The invoice", "Could you send the report to the team, and keep the", "x", "We"]
TEXTS = [
    "Please call Anna at +1 415 555 0134 before noon.",
    "",
    "a",
    "The meeting on Tuesday is moved to the large room",
]


def as_it_is(rows: Tensor) -> Tensor:
    return rows


def mixed(rows: Tensor) -> Tensor:
    return torch.log(0.6 * rows.exp() + 0.4 / rows.shape[-1])


def clipped(rows: Tensor) -> Tensor:
    said = []
    for row in rows:
        shifted = row - row.max() + 2.0
        said.append(torch.log_softmax(torch.where(shifted < -2.0, -2.0, shifted) / 1.5, -1))
    return torch.stack(said)


def heated(rows: Tensor, tau: float, run: int, hot: float) -> Tensor:
    entropy = [-sum(p * math.log(p) for p in row.exp().tolist() if p > 0) for row in rows]
    said = []
    for place, row in enumerate(rows):
        recited = place >= run - 1 and all(entropy[place - back] < tau for back in range(run))
        said.append(torch.log_softmax(row / hot, -1) if recited else row)
    return torch.stack(said)


def hotter(rows: Tensor) -> Tensor:
    return heated(rows, 4.7, 3, 2.5)


def layered(rows: Tensor) -> Tensor:
    return mixed(heated(rows, 4.75, 5, 2.0))


ENTROPY = EntropyFilter(tau=4.7, run=3, hot=2.5)
LAYERED = Layered(tau=4.75, lam=0.6)
COLD: dict[Defense, Reference] = {ENTROPY: as_it_is, LAYERED: mixed}
"""What is left of a guard where no run of sure tokens is."""
CASES: list[tuple[Defense, Reference]] = [
    (PatternFilter(), as_it_is),
    (DPDecoding(lam=0.6), mixed),
    (DPDecoding(method="clip", bound=2.0, temperature=1.5), clipped),
    (ENTROPY, hotter),
    (LAYERED, layered),
]
NAMES = [defense.spec for defense, _ in CASES]


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


@torch.inference_mode()
def rows_of(model: LM, ids: list[int]) -> Tensor:
    return torch.log_softmax(model.model(input_ids=torch.tensor([ids])).logits[0].double(), -1)


def probe(ids: Tensor, hidden: Tensor, logprobs: Tensor) -> Tensor:
    """Makes an arg-max depend on the probabilities themselves and not on their order."""
    return torch.log_softmax(-10 * (logprobs + 2.5).square(), -1)


def start(model: LM, prompt: str) -> list[int]:
    return model.encode(prompt) or [int(str(model.tokenizer.eos_token_id))]


@pytest.mark.parametrize(("defense", "reference"), CASES, ids=NAMES)
def test_generation_is_that_of_full_recomputation(defense: Defense, reference: Reference, model: LM, lab: Lab) -> None:
    guarded = cast(LocalTarget, defense.guard(LocalTarget(model), (), lab)).guarded(law=probe)
    guarded = dataclasses.replace(guarded, owned=None)  # so that it can be asked greedily
    expected, changed = [], 0
    for prompt in PROMPTS:
        ids, made = start(model, prompt), list[int]()
        for _ in range(10):
            plain = rows_of(model, ids + made)
            said = reference(plain)
            changed += not torch.equal(said[-1], COLD.get(defense, as_it_is)(plain)[-1])
            made.append(int((said[-1] + 2.5).square().argmin()))
            if made[-1] == model.tokenizer.eos_token_id:
                made.pop()
                break
        expected.append(model.decode(made))
    if defense in COLD:
        assert 0 < changed < 60  # both within a run and outside
    for size in (0, 1, 4):
        sized = dataclasses.replace(guarded, batch_size=size)
        assert sized.generate(PROMPTS, max_new_tokens=10) == expected
        assert sized.generate(PROMPTS[::-1], max_new_tokens=10) == expected[::-1]
    assert [guarded.generate([prompt], max_new_tokens=10)[0] for prompt in PROMPTS] == expected


@pytest.mark.parametrize(("defense", "reference"), CASES, ids=NAMES)
def test_signals_are_those_of_full_recomputation(defense: Defense, reference: Reference, model: LM, lab: Lab) -> None:
    guarded = cast(LocalTarget, defense.guard(LocalTarget(model), (), lab))
    for size in (0, 1, 3):
        found = dataclasses.replace(guarded, batch_size=size).signals(TEXTS)
        for text, signals in zip(TEXTS, found, strict=True):
            ids = model.encode(text)
            if len(ids) < 2:
                assert not len(signals.logprob)
                continue
            said = reference(rows_of(model, ids))[:-1]
            mine = said.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
            np.testing.assert_allclose(signals.logprob, mine, atol=2e-4, rtol=2e-4)
            np.testing.assert_allclose(signals.mean, (said.exp() * said).sum(-1), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize(("defense", "reference"), CASES, ids=NAMES)
@pytest.mark.parametrize("prompt", ["The invoice 7731", "We shipped 24 boxes yesterday;"])
def test_tokens_are_drawn_with_the_probabilities_of_the_signals(
    defense: Defense, reference: Reference, prompt: str, model: LM, lab: Lab
) -> None:
    guarded, n = defense.guard(LocalTarget(model), (), lab), 2000
    said = reference(rows_of(model, model.encode(prompt)))[-1]
    order = said.argsort(descending=True).tolist()
    texts = [model.decode([token]) for token in order]
    alone = [t for t, text in zip(order, texts, strict=True) if model.encode(text, special=False) == [t]][:10]
    texts = [model.decode([token]) for token in alone]
    p = np.exp([float(found.logprob[0]) for found in guarded.signals(texts, contexts=[prompt] * len(texts))])
    np.testing.assert_allclose(p, said[alone].exp(), rtol=1e-3)
    drawn = guarded.generate([prompt] * n, max_new_tokens=1, sampling=PLAIN)
    counts = np.array([*(drawn.count(text) for text in texts), sum(text not in texts for text in drawn)])
    wanted = n * np.array([*p, 1 - p.sum()])
    assert float(((counts - wanted) ** 2 / wanted).sum()) < 30  # ten degrees of freedom: exceeded once in a thousand


def test_the_layers_of_one_guard_act_in_order(model: LM, lab: Lab) -> None:
    """On any text, the layered signals are those of the bounded distribution of the hotter one."""
    guarded = LAYERED.guard(LocalTarget(model), (), lab)
    ids = model.encode(TEXTS[0])
    rows = rows_of(model, ids)
    hot = heated(rows, 4.75, 5, 2.0)
    assert not torch.equal(hot, rows)
    mine = mixed(hot)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    np.testing.assert_allclose(guarded.signals([TEXTS[0]])[0].logprob, mine, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("kind", [PatternFilter, EntropyFilter, DPDecoding, Layered])
def test_a_bare_name_runs_five_specs_on_the_last_point(kind: type[Defense]) -> None:
    specs = kind.grid()
    assert len({spec.spec for spec in specs}) == 5
    assert all(spec.last for spec in specs)


@pytest.mark.parametrize("defense", [DPDecoding(), EntropyFilter(), Layered()])
def test_what_is_drawn_on_one_run_is_not_drawn_again_on_the_next(
    defense: Defense, store: Store, tiny_lm: LM, model: LM
) -> None:
    def said(seed: int) -> list[str]:
        lab = Lab(Bench(store), who="test", seed=seed, originals=(), public=(), config=TrainConfig(), base=tiny_lm)
        return defense.guard(LocalTarget(model), (), lab).generate(["The"] * 8, max_new_tokens=12)

    assert said(0) == said(0)
    assert said(0) != said(1)
