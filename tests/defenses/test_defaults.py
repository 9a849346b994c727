"""The defaults that a paper or its code fixes, by the number they give; what is ours is free to change."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
import torch

from memdefense.architecture import Block, blocks_of
from memdefense.defense import Defense
from memdefense.defenses import memit, pme
from memdefense.defenses.dedup import Dedup
from memdefense.defenses.depn import DEPN
from memdefense.defenses.distillation import Distillation
from memdefense.defenses.dp_decoding import DPDecoding
from memdefense.defenses.dp_sgd import DPSGD
from memdefense.defenses.elr import ELR
from memdefense.defenses.entropy_filter import EntropyFilter
from memdefense.defenses.goldfish import Goldfish
from memdefense.defenses.layered import Layered
from memdefense.defenses.memit import MEMIT
from memdefense.defenses.pme import PME
from memdefense.defenses.retro import Retro
from memdefense.defenses.rmft import RMFT
from memdefense.defenses.sani import SANI
from memdefense.defenses.semdedup import SemDedup
from memdefense.defenses.subnet import Subnet
from memdefense.defenses.unlearn import Unlearn
from memdefense.defenses.value_search import Found, Request, Search
from memdefense.lm import LM

if TYPE_CHECKING:
    from memdefense.lab import Lab

PUBLISHED: list[tuple[Defense, dict[str, object]]] = [
    (RMFT(), {"keep": "first", "anchor": "part", "redraw": "once"}),
    (Dedup(), {"threshold": 0.8, "span": 50}),
    (SemDedup(), {"threshold": 0.85}),
    (Goldfish(), {"k": 4, "h": 13, "context": "including"}),
    (DPSGD(), {"epsilon": 8.0, "delta": 0.0}),
    (Distillation(), {"method": "word", "alpha": 0.5, "temperature": 1.0}),
    (ELR(), {"weight": 3.0, "beta": 0.7}),
    (Retro(), {"k": 16, "mix": 0.2}),
    (SANI(), {"ratio": 0.5, "layers": 1, "rare": 2, "stages": "both"}),
    (PME(), {"batch": 8, "steps": 500, "passages": 100_000, "contrib": "ffn", "target": "paper", "spread": "paper"}),
    (MEMIT(), {"steps": 25, "passages": 100_000}),
    (Unlearn(method="ga"), {"weight": 1.0, "alpha": 1.0, "batch_size": 32}),
    (Unlearn(method="graddiff"), {"weight": 1.0, "alpha": 1.0, "batch_size": 32}),
    (Unlearn(method="npo"), {"weight": 1.0, "alpha": 1.0, "slope": 0.1}),
    (Unlearn(method="simnpo"), {"weight": 0.125, "alpha": 1.0, "slope": 4.5, "delta": 0.0}),
    (Unlearn(method="rmu"), {"weight": 1.0}),
    (Unlearn(method="task-vector"), {"scale": 1.0}),
    (DEPN(), {"steps": 20, "share": 0.1}),
    (Subnet(), {"weight": 0.05}),
    (EntropyFilter(), {"run": 5}),
    (DPDecoding(), {"method": "mix"}),
    (Layered(), {"threshold": 0.85}),
]


@pytest.mark.parametrize(("defense", "values"), PUBLISHED, ids=[defense.spec for defense, _ in PUBLISHED])
def test_defaults_are_those_published(defense: Defense, values: dict[str, object]) -> None:
    assert {field: getattr(defense, field) for field in values} == values


REQUEST = Request(((3, 4), (5, 6, 4)), (7,))


class StubLab:
    """A random stream, and nobody who is told."""

    def rng(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng(3)

    def progress(self, what: str, done: int, total: int) -> None:
        pass


@pytest.mark.parametrize(("best", "edited"), [(0.1, 1), (0.0999, 0)])
def test_the_search_of_pme_is_the_published_one(
    best: float, edited: int, four_builds: dict[str, LM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a request whose dummy gets less likely than 0.1 is skipped; that one is given up at 100 steps is ours."""
    asked: list[tuple[Block, Search]] = []

    def watched(lm: LM, block: Block, requests: list[Request], how: Search) -> Found:
        asked.append((block, how))
        rows = torch.ones(len(requests), lm.width)
        return Found(rows, rows, [best] * len(requests), [1] * len(requests))

    monkeypatch.setattr(pme, "search", watched)
    lm = four_builds["GPT-2"].copy()
    blocks = blocks_of(lm.model)
    assert PME().edit_batch(lm, blocks, [REQUEST], [torch.eye(128)] * 2) == edited
    ((block, how),) = asked
    assert block is blocks[-2]
    assert (how.steps, how.patience, how.hope) == (500, 100, 0.01)
    assert (how.rate, how.kl, how.decay, how.clamp) == (0.5, 0.0625, 0.5, 0.75)
    assert how.enough is pme._enough


def test_the_search_of_memit_is_the_published_one(four_builds: dict[str, LM], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Search] = []

    def watched(lm: LM, block: Block, requests: list[Request], how: Search) -> Found:
        asked.append(how)
        rows = torch.ones(len(requests), lm.width)
        return Found(rows, rows, [0.0] * len(requests), [1] * len(requests))

    monkeypatch.setattr(memit, "search", watched)
    lm = four_builds["GPT-2"].copy()
    points = MEMIT().edits(lm, blocks_of(lm.model), [REQUEST], [torch.eye(128)] * 2, cast("Lab", StubLab()))
    assert [point.edited for point in points] == [1] * 5  # though no dummy came within reach
    (how,) = asked
    assert (how.steps, how.patience) == (25, 0)
    assert (how.rate, how.kl, how.decay, how.clamp) == (0.5, 0.0625, 0.5, 0.75)
    assert how.enough is memit._enough
    assert 1 + len(MEMIT().openings(lm)) == 6


def test_dummies_are_the_published_ones() -> None:
    said = PME()._dummies(cast("Lab", None))
    assert said["email"].text == " mail@domain.com"
    assert said["phone"].text == " phone_number"
