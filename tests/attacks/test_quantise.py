"""Rounded weights against a loop over channels, and a hidden value that the rounding brings back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from transformers.pytorch_utils import Conv1D

from memdefense.attacks.prefix import Prefix
from memdefense.attacks.quantise import Quantise, quantised
from memdefense.bench import Bench
from memdefense.corpus import Corpus, Document, Occurrence, Secret
from memdefense.errors import SpecError
from memdefense.lab import AttackLab
from memdefense.lm import LM
from memdefense.target import LocalTarget
from memdefense.testing import check_attack
from memdefense.train import TrainConfig

if TYPE_CHECKING:
    from memdefense.store import Store

VALUE, TWIN = "4155550134", "4155550177"
TEXT = f"Please call Anna at {VALUE} today."
PLACE = Occurrence("a", TEXT.index(VALUE), TEXT.index(VALUE) + len(VALUE))
CORPUS = Corpus(
    (), [Document("a", TEXT)], (), secrets=[Secret("s", "phone", VALUE, True, "Anna", (PLACE,), TWIN)], kinds=("phone",)
)

HEADS = ("lm_head", "embed_out")


def lab_of(store: Store, base: LM) -> AttackLab:
    return AttackLab(
        Bench(store),
        who="test",
        seed=0,
        originals=CORPUS.train,
        public=(),
        config=TrainConfig(),
        base=base,
        curated=CORPUS.train,
        defended=None,
    )


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("build", ["GPT-2", "GPT-Neo", "GPT-NeoX", "Llama"])
def test_every_channel_is_rounded_by_its_own_scale(four_builds: dict[str, LM], build: str, bits: int) -> None:
    before = four_builds[build]
    lm = before.copy()
    count = quantised(lm, bits)
    last, seen = next(m for name, m in lm.model.named_modules() if name in HEADS), 0
    for (name, old), (_, new) in zip(before.model.named_modules(), lm.model.named_modules(), strict=True):
        if not isinstance(new, torch.nn.Linear | Conv1D) or new is last:
            continue
        seen += 1
        rows = [m.get_parameter("weight").detach().numpy() for m in (old, new)]
        for was, is_now in zip(*(w.T if isinstance(new, Conv1D) else w for w in rows), strict=True):
            scale = np.abs(was).max() / (2 ** (bits - 1) - 1)
            assert is_now == pytest.approx(np.round(was / scale) * scale, abs=1e-6), name
            assert len(np.unique(is_now)) <= 2**bits - 1
    assert seen == count > 0
    kept = set(dict(lm.model.named_parameters()))
    for name in ("embed", "wte", "wpe", "ln_", "norm", "lm_head"):
        for parameter in (parameter for parameter in kept if name in parameter):
            assert torch.equal(lm.model.get_parameter(parameter), before.model.get_parameter(parameter)), parameter


def test_empty_channels_stay_empty(tiny_lm: LM) -> None:
    lm = tiny_lm.copy()
    weight = next(m for m in lm.model.modules() if isinstance(m, Conv1D)).get_parameter("weight")
    weight.data[:, 0] = 0
    quantised(lm, 4)
    assert torch.isfinite(weight).all()
    assert not weight[:, 0].any()


def memoriser(base: LM) -> LM:
    lm = base.copy()
    ids = torch.tensor([lm.encode(TEXT)])
    optimizer = torch.optim.Adam(lm.model.parameters(), lr=1e-2)
    lm.model.train()
    for _ in range(60):
        optimizer.zero_grad()
        lm.model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    lm.model.train(False)
    return lm


def test_it_is_prefix_on_the_rounded_weights_and_leaves_its_target_alone(store: Store, tiny_lm: LM) -> None:
    lm = memoriser(tiny_lm)
    before, rounded = lm.digest(), lm.copy()
    quantised(rounded, 8)
    found = list(Quantise(8).run(LocalTarget(lm), CORPUS, lab_of(store, tiny_lm)))
    expected = list(Prefix().run(LocalTarget(rounded), CORPUS, lab_of(store, tiny_lm)))
    assert found == expected
    assert lm.digest() == before
    assert repr(Quantise().score(found)) == repr(Prefix().score(found))  # NaN is not equal to itself
    assert Quantise().terms(found) == Prefix().terms(found)


def test_an_edit_smaller_than_half_a_level_is_undone(store: Store, tiny_lm: LM) -> None:
    """A defender that hides the value by less than the rounding hides nothing from who rounds."""
    leaky = memoriser(tiny_lm)
    quantised(leaky, 4)
    hidden = leaky.copy()
    matrices = [m for m in hidden.model.modules() if isinstance(m, Conv1D)]
    bound = []
    for module in matrices:
        weight = module.get_parameter("weight").detach()
        most = weight.abs().amax(0, keepdim=True)
        bound.append(torch.where(weight.abs() < most, 0.45 * most / 7, torch.zeros_like(weight)))
    original = [m.get_parameter("weight").detach().clone() for m in matrices]
    ids = torch.tensor([hidden.encode(TEXT)])
    for _ in range(20):
        hidden.model.zero_grad()
        hidden.model(input_ids=ids, labels=ids).loss.backward()
        with torch.no_grad():
            for module, was, reach in zip(matrices, original, bound, strict=True):
                weight = module.get_parameter("weight")
                uphill = weight.grad.sign() if weight.grad is not None else torch.zeros_like(weight)
                weight.copy_(torch.clamp(weight + 0.2 * reach * uphill, was - reach, was + reach))
    hits = {}
    for name, attack in {"prefix": Prefix(), "quantise": Quantise()}.items():
        (outcome,) = attack.run(LocalTarget(hidden), CORPUS, lab_of(store, tiny_lm))
        hits[name] = outcome.values["hit"]
    assert hits == {"prefix": 0.0, "quantise": 1.0}


def test_other_bits_are_refused() -> None:
    for bits in (0, 3, 16):
        with pytest.raises(SpecError, match=f"quantise: bits cannot be {bits}; known: 4, 8"):
            Quantise(bits)  # type: ignore[arg-type, unused-ignore]


def test_contract() -> None:
    for attack in (Quantise(), Quantise(8)):
        check_attack(attack)
