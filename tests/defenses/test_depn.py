from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import pytest
import torch
from torch import Tensor

from memdefense.architecture import blocks_of
from memdefense.bench import Bench
from memdefense.corpus import Document
from memdefense.defense import Defense, Point
from memdefense.defenses.depn import DEPN, attributions
from memdefense.errors import ModelError, SpecError
from memdefense.interval import wilson
from memdefense.lab import Lab
from memdefense.lm import LM
from memdefense.mentions import Mention, mentions
from memdefense.store import Store
from memdefense.testing import check_defense
from memdefense.train import TrainConfig

TEXTS = [f"Please write to person{place}@example{place}.com before noon." for place in range(6)]


def lab_of(folder: Path, base: LM) -> Lab:
    bench = Bench(Store(folder / "store"))
    return Lab(bench, who="depn", seed=0, originals=(), public=(), config=TrainConfig(), base=base)


def documents(texts: list[str] = TEXTS) -> list[Document]:
    return [Document(f"d{place}", text) for place, text in enumerate(texts)]


def points(defense: DEPN, model: LM, lab: Lab, texts: list[str] = TEXTS) -> list[tuple[Point, set[tuple[int, int]]]]:
    """The operating points, and which neurons (block, place) have an output column of zeros at each."""
    found = []
    for point in defense.edit(model, documents(texts), lab):
        silent = [torch.nonzero((block.down.weight == 0).all(0)).flatten() for block in blocks_of(point.model.model)]
        found.append((point, {(layer, int(neuron)) for layer, own in enumerate(silent) for neuron in own}))
    return found


def sharpened(lm: LM) -> LM:
    """A copy whose feed-forward parts matter: fresh weights are so small that nothing depends on them."""
    copied = lm.copy()
    with torch.no_grad():
        for parameter in copied.model.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    return copied


def probability(lm: LM, mention: Mention, layer: int, activations: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The summed probability of the value's tokens with one block's activations there replaced; and those there."""
    places = range(mention.start - 1, len(mention.ids) - 1)
    seen = []

    def replace(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        own = inputs[0].clone()
        seen.append(own[0, places.start : places.stop].detach().clone())
        if activations is not None:
            own[0, places.start : places.stop] = activations
        return (own,)

    handle = blocks_of(lm.model)[layer].down.module.register_forward_pre_hook(replace)
    logits = lm.model(input_ids=torch.tensor([mention.ids])).logits[0]
    handle.remove()
    chances = torch.softmax(logits, -1)
    return torch.stack([chances[place, mention.ids[place + 1]] for place in places]).sum(), seen[0]


def test_contract() -> None:
    check_defense(DEPN())


@pytest.mark.parametrize("kind", ["tiny_lm", "tiny_llama"])
def test_attributions_by_brute_force_and_complete(kind: str, request: pytest.FixtureRequest) -> None:
    """Each step on its own by numerical differences for some neurons; each block's sum is P(actual) - P(zero)."""
    lm = sharpened(request.getfixturevalue(kind))
    mention = Mention((5, 40, 77, 12, 30, 9), 3)
    made = attributions(lm, mention, steps=20)
    lm.model.double()
    for layer in range(2):
        with torch.no_grad():
            actual, activations = probability(lm, mention, layer)
            zero, _ = probability(lm, mention, layer, torch.zeros_like(activations))
        assert abs(actual - zero) > 1e-4
        whole = attributions(lm, mention, steps=200)[layer].sum()
        assert float(whole) == pytest.approx(float(actual - zero), rel=1e-3, abs=1e-7)
        for neuron in (0, 7, 31):
            total = 0.0
            for step in range(20):
                scaled = activations * (step + 0.5) / 20
                for place in range(len(activations)):
                    shift = torch.zeros_like(activations)
                    shift[place, neuron] = 1e-4
                    with torch.no_grad():
                        above, _ = probability(lm, mention, layer, scaled + shift)
                        below, _ = probability(lm, mention, layer, scaled - shift)
                    total += float((above - below) / 2e-4 * activations[place, neuron]) / 20
            assert float(made[layer, neuron]) == pytest.approx(total, rel=1e-2, abs=2e-7)


def test_the_most_frequent_candidates_lose_their_columns(tmp_path: Path, tiny_lm: LM) -> None:
    lm, lab = sharpened(tiny_lm), lab_of(tmp_path, tiny_lm)
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    shares = [attributions(lm, one, steps=5) for one in mentions(lm, documents(), lab, context=64)]
    assert len(shares) == 6
    counts = torch.stack([share >= 0.1 * share.max() for share in shares]).sum(0)
    sums = torch.stack([torch.where(share >= 0.1 * share.max(), share, 0) for share in shares]).sum(0)
    rank = sorted(
        ((layer, n) for layer in range(2) for n in range(128) if counts[layer, n]),
        key=lambda place: (-int(counts[place]), -float(sums[place])),
    )
    defense = DEPN(top=(3, 9), steps=5)
    erased = [silent for _, silent in points(defense, lm, lab)]
    assert erased == [set(rank[:3]), set(rank[:9])]
    after = lm.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed <= {f"transformer.h.{layer}.mlp.c_proj.weight" for layer in range(2)}
    assert lab.notes == {"values": 6, "attributed": 6, "candidates": len(rank), "erased": 9}


def test_what_is_really_erased_is_noted_where_candidates_are_few(tmp_path: Path, tiny_lm: LM) -> None:
    """One value, and neurons with at least half of its largest share: all of them are gone from the second point on."""
    lm, lab = sharpened(tiny_lm), lab_of(tmp_path, tiny_lm)
    found = points(DEPN(top=(1, 200, 250), steps=5, share=0.5), lm, lab, TEXTS[:1])
    assert [point.label for point, _ in found] == ["top-1", "top-200", "top-250"]
    candidates = int(lab.notes["candidates"])
    assert 1 < candidates < 200
    assert [len(silent) for _, silent in found] == [1, candidates, candidates]
    assert lab.notes["erased"] == candidates


@pytest.mark.parametrize("build", ["GPT-2", "GPT-Neo", "GPT-NeoX", "Llama"])
def test_neurons_of_every_build_are_silenced(four_builds: dict[str, LM], tmp_path: Path, build: str) -> None:
    """Their columns alone are zero at each point, and what stays is as it was."""
    start = four_builds[build]
    before = start.model.state_dict()
    lm, lab = start.copy(), lab_of(tmp_path, start)
    for number, (_, silent) in zip((3, 9), points(DEPN(top=(3, 9), steps=5), lm, lab, TEXTS[:2]), strict=True):
        assert 0 < len(silent) <= number
    assert len(silent) == lab.notes["erased"] == 9
    with torch.no_grad():
        for layer, block in enumerate(blocks_of(lm.model)):
            kept = [n for n in range(block.down.weight.shape[1]) if (layer, n) not in silent]
            old = blocks_of(start.model)[layer].down.weight
            assert torch.equal(block.down.weight[:, kept], old[:, kept])
            assert bool(block.down.weight.isfinite().all())
    downs = {f"{block.down.name}.weight" for block in blocks_of(lm.model)}
    after = lm.model.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} <= downs


def test_the_control_erases_as_many_of_each_block(tmp_path: Path, tiny_lm: LM) -> None:
    lm, lab = sharpened(tiny_lm), lab_of(tmp_path, tiny_lm)
    found = points(DEPN(top=(4, 10), steps=5), lm.copy(), lab)
    control = points(DEPN(top=(4, 10), steps=5, control="random"), lm.copy(), lab)
    for (_, chosen), (_, drawn) in zip(found, control, strict=True):
        for layer in range(2):
            assert sum(place[0] == layer for place in drawn) == sum(place[0] == layer for place in chosen)
    assert control[1][1] != found[1][1]


def test_only_the_best_predicted_texts_are_attributed(tmp_path: Path, tiny_lm: LM) -> None:
    lab = lab_of(tmp_path, tiny_lm)
    points(DEPN(top=(1,), steps=2, texts=2), tiny_lm.copy(), lab)
    assert (lab.notes["values"], lab.notes["attributed"]) == (6, 2)


def test_without_pii_the_model_stays(tmp_path: Path, tiny_lm: LM) -> None:
    lab = lab_of(tmp_path, tiny_lm)
    before = tiny_lm.digest()
    for point, silent in points(DEPN(), tiny_lm.copy(), lab, ["nothing here", ""]):
        assert point.model.digest() == before
        assert not silent
    assert lab.notes == {"values": 0, "attributed": 0, "candidates": 0, "erased": 0}


def test_bad_fields_are_refused(tmp_path: Path, tiny_lm: LM) -> None:
    for field in ("texts", "context", "steps"):
        with pytest.raises(SpecError, match=field):
            DEPN(**cast(Any, {field: 0}))
    for top in ((), (0,), (5, 5)):
        with pytest.raises(SpecError, match="growing"):
            DEPN(top=top)
    with pytest.raises(SpecError, match="share"):
        DEPN(share=0)
    with pytest.raises(SpecError, match="did you mean 'random'"):
        DEPN(control=cast("Literal['random']", "randm"))
    with pytest.raises(ModelError, match="256 neurons"):
        next(iter(DEPN(top=(257,)).edit(tiny_lm.copy(), documents(), lab_of(tmp_path, tiny_lm))))


@pytest.mark.slow
def test_it_silences_addresses_that_random_neurons_do_not(
    leaks: Callable[[Defense], list[tuple[int, int, float]]],
) -> None:
    """Fifty of 512 neurons: the intervals lie apart from no defense and from the control, at a perplexity 1.2 times."""
    (undefended,) = leaks(Defense())
    erased, control = (leaks(DEPN(top=(50,), control=kind))[0] for kind in ("none", "random"))
    assert wilson(*erased[:2])[1] < wilson(*control[:2])[0] <= wilson(*undefended[:2])[0]
    assert erased[2] < 1.2 * undefended[2]
