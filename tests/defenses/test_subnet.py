from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from memdefense.architecture import blocks_of
from memdefense.bench import Bench
from memdefense.corpus import Document
from memdefense.defense import Defense
from memdefense.defenses.subnet import Subnet, _losses, _other, kept
from memdefense.errors import DataError, SpecError
from memdefense.interval import wilson
from memdefense.lab import Lab
from memdefense.lm import LM
from memdefense.mentions import Mention, known, mentions
from memdefense.store import Store
from memdefense.testing import check_defense
from memdefense.train import TrainConfig

TEXTS = [f"Please write to person{place}@example{place}.com before noon." for place in range(6)]


def documents(texts: list[str] = TEXTS) -> list[Document]:
    return [Document(f"d{place}", text) for place, text in enumerate(texts)]


def lab_of(folder: Path, base: LM, public: list[str] | None = None) -> Lab:
    bench = Bench(Store(folder / "store"))
    given = documents(public or [])
    return Lab(bench, who="subnet", seed=0, originals=(), public=given, config=TrainConfig(), base=base)


def test_contract() -> None:
    check_defense(Subnet())
    assert Subnet().ratio == (0.001, 0.005, 0.01, 0.02, 0.03)


def test_the_gradient_goes_straight_through_by_hand() -> None:
    """y = (W * mask) x with two of four weights kept; dL/dscore = dL/d(masked weight) * weight * sign(score)."""
    weight = torch.tensor([[2.0, -3.0], [0.5, 4.0]])
    scores = torch.tensor([[0.1, -0.9], [-0.2, 0.7]], requires_grad=True)
    x = torch.tensor([1.0, 10.0])
    mask = kept(scores, 0.5)
    assert mask.tolist() == [[0.0, 1.0], [0.0, 1.0]]
    y = (weight * mask) @ x
    assert y.tolist() == [-30.0, 40.0]
    torch.autograd.backward((y * torch.tensor([1.0, 5.0])).sum())
    # dL/d(masked weight) = [1, 5] outer [1, 10] = [[1, 10], [5, 50]]
    assert scores.grad is not None
    assert scores.grad.tolist() == [[2.0, 30.0], [-2.5, 200.0]]


def test_two_steps_on_the_scores_by_hand(tmp_path: Path, tiny_lm: LM) -> None:
    """SGD at 0.1 with momentum 0.9 and decay 0.0005, of the sum of -0.95 NLL(value) and 0.05 NLL(other) over all."""
    public = ["The boxes are in the depot.", "The room is large."]
    lab = lab_of(tmp_path, tiny_lm, public)
    seen: list[list[Tensor]] = []

    def look(optimizer: torch.optim.Optimizer, *_: object) -> None:
        seen.append([score.detach().clone() for score in optimizer.param_groups[0]["params"]])

    handles = [register_optimizer_step_pre_hook(look), register_optimizer_step_post_hook(look)]
    try:
        list(Subnet(ratio=(0.2,), epochs=2).edit(tiny_lm.copy(), documents(), lab))
    finally:
        for handle in handles:
            handle.remove()
    start, once, again, twice = seen

    matrices = [matrix for block in blocks_of(tiny_lm.model) for matrix in (*block.up, block.down)]
    values = mentions(tiny_lm, documents(), lab, context=64)
    other = [Mention(tuple(tiny_lm.encode(text)), 1) for text in public]

    def gradients(scores: list[Tensor]) -> list[Tensor]:
        leaves = [score.clone().requires_grad_() for score in scores]
        weights = {
            f"{matrix.name}.weight": matrix.parameter.detach() * kept(leaf, 0.2)
            for matrix, leaf in zip(matrices, leaves, strict=True)
        }
        total = torch.zeros(())
        for sign, texts in ((-0.95, values), (0.05, other)):
            for text in texts:
                counted = torch.tensor([[place >= text.start for place in range(len(text.ids))]])
                total = total + sign * _losses(tiny_lm, weights, torch.tensor([text.ids]), counted).sum()
        return list(torch.autograd.grad(total, leaves))

    velocity = [slope + 5e-4 * score for slope, score in zip(gradients(start), start, strict=True)]
    first = [score - 0.1 * speed for score, speed in zip(start, velocity, strict=True)]
    pulled = [slope + 5e-4 * score for slope, score in zip(gradients(once), first, strict=True)]
    velocity = [0.9 * speed + pull for speed, pull in zip(velocity, pulled, strict=True)]
    second = [score - 0.1 * speed for score, speed in zip(first, velocity, strict=True)]
    for place, matrix in enumerate(matrices):
        bound = matrix.weight.shape[1] ** -0.5
        assert 0.95 * bound < float(start[place].abs().max()) <= bound
        torch.testing.assert_close(once[place], first[place], rtol=0, atol=1e-7)
        assert torch.equal(again[place], once[place])
        torch.testing.assert_close(twice[place], second[place], rtol=0, atol=1e-7)


@pytest.mark.parametrize("ratio", [0.0001, 0.01, 0.29, 0.5])
def test_exactly_the_lowest_share_is_left_out(ratio: float) -> None:
    scores = torch.randn(40, 50, generator=torch.Generator().manual_seed(3))
    left_out = kept(scores, ratio) == 0
    assert int(left_out.sum()) == round(ratio * 2000)
    if left_out.any():
        assert scores.abs()[left_out].max() < scores.abs()[~left_out].min()


@pytest.mark.parametrize("build", ["GPT-2", "GPT-Neo", "GPT-NeoX", "Llama"])
def test_weights_of_every_build_are_zeroed(four_builds: dict[str, LM], tmp_path: Path, build: str) -> None:
    start = four_builds[build]
    before = {name: tensor.clone() for name, tensor in start.model.state_dict().items()}
    lab = lab_of(tmp_path, start, ["The boxes are in the depot."])
    (point,) = Subnet(ratio=(0.05,), epochs=1).edit(start.copy(), documents(TEXTS[:2]), lab)
    names = {f"{matrix.name}.weight" for block in blocks_of(start.model) for matrix in (*block.up, block.down)}
    assert len(names) == (9 if build == "Llama" else 6)
    for name, tensor in point.model.model.state_dict().items():
        assert bool(tensor.isfinite().all())
        changed = tensor != before[name]
        assert int(changed.sum()) == (round(0.05 * tensor.numel()) if name in names else 0)
        assert not tensor[changed].any()


@pytest.mark.parametrize("kind", ["tiny_lm", "tiny_llama"])
def test_every_feed_forward_matrix_loses_its_share_and_nothing_else_moves(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    lm: LM = request.getfixturevalue(kind)
    lab = lab_of(tmp_path, lm, ["The boxes are in the depot.", "Ask k.lee@acme.com, then write before noon."])
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    names = {f"{matrix.name}.weight" for block in blocks_of(lm.model) for matrix in (*block.up, block.down)}
    assert len(names) == (4 if kind == "tiny_lm" else 6)
    ratios = (0.01, 0.1)
    points = list(Subnet(ratio=ratios, epochs=2).edit(lm, documents(), lab))
    assert [point.label for point in points] == ["ratio-0.01", "ratio-0.1"]
    for ratio, point in zip(ratios, points, strict=True):
        for name, tensor in point.model.model.state_dict().items():
            if name in names:
                zeroed = tensor == 0
                assert int(zeroed.sum()) == round(ratio * tensor.numel())
                assert torch.equal(tensor[~zeroed], before[name][~zeroed])
            else:
                assert torch.equal(tensor, before[name])
    assert (lab.notes["values"], lab.notes["memorized"]) == (6, 6)


def test_losses_are_those_of_the_masked_model(tiny_lm: LM) -> None:
    given = Mention((5, 9, 30, 31, 7), 2)
    name = "transformer.h.1.mlp.c_fc.weight"
    masked = tiny_lm.copy()
    weights: Tensor = masked.model.get_parameter(name).detach()
    weights[:, ::2] = 0
    value = torch.tensor([[False, False, True, True, True]])
    made = _losses(tiny_lm, {name: weights}, torch.tensor([given.ids]), value).detach()
    assert float(made) == pytest.approx(-known(masked, [given])[0], abs=1e-5)
    assert float(made) != pytest.approx(-known(tiny_lm, [given])[0], abs=1e-5)


def test_other_text_holds_no_detected_pii(tmp_path: Path, tiny_lm: LM) -> None:
    lab = lab_of(tmp_path, tiny_lm)
    windows = _other(tiny_lm, documents(), lab, number=8, length=16)
    texts = [tiny_lm.decode(window.ids) for window in windows]
    assert len(texts) == 8
    assert all(text in ("Please write to ", " before noon.") for text in texts)


def test_scores_learn_to_forget_the_value_and_not_the_rest(tmp_path: Path, tiny_lm: LM) -> None:
    """Against what masks drawn at random do: the values' loss rises more than it does with untrained scores."""
    lm = tiny_lm.copy()
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    lab = lab_of(tmp_path, lm, ["The boxes are in the depot."] * 3)
    values = mentions(lm, documents(), lab, context=64)
    (learned,) = Subnet(ratio=(0.1,), epochs=20, weight=0.0).edit(lm, documents(), lab)
    (opposite,) = Subnet(ratio=(0.1,), epochs=20, weight=1.0).edit(lm, documents(), lab)
    before, forgotten, other = (sum(known(model, values)) for model in (lm, learned.model, opposite.model))
    assert forgotten < before - 1
    assert forgotten < other - 1


def test_tokens_trained_on_are_counted(tmp_path: Path, tiny_lm: LM) -> None:
    """Every value and every window once an epoch, in batches of three of which the last is short, for each point."""
    public = ["The boxes are in the depot.", "The room is large."]
    lab = lab_of(tmp_path, tiny_lm, public)
    values = mentions(tiny_lm, documents(), lab, context=64)
    list(Subnet(ratio=(0.01, 0.1), epochs=3, batch=3).edit(tiny_lm, documents(), lab))
    assert len(values) + len(public) == 8
    read = sum(len(value.ids) for value in values) + sum(len(tiny_lm.encode(text)) for text in public)
    assert lab.cost["tokens"] == 2 * 3 * read


def test_without_pii_the_model_stays(tmp_path: Path, tiny_lm: LM) -> None:
    lab = lab_of(tmp_path, tiny_lm)
    before = tiny_lm.digest()
    points = list(Subnet().edit(tiny_lm, documents(["nothing here", ""]), lab))
    assert len(points) == 5
    assert {point.model.digest() for point in points} == {before}
    assert lab.notes == {"values": 0, "memorized": 0, "other": 0}
    assert lab.cost["tokens"] == 0


def test_no_other_text_is_an_error_where_it_weighs(tmp_path: Path, tiny_lm: LM) -> None:
    bare = documents(["!ann.lee@fenwick.com", "!bob@fenwick.com"])
    lab = lab_of(tmp_path, tiny_lm)
    with pytest.raises(DataError, match=r"subnet: no window of private text is free of detected PII.*or weight=0"):
        list(Subnet(epochs=1).edit(tiny_lm, bare, lab))
    lab = lab_of(tmp_path, tiny_lm, ["ann.lee@fenwick.com"])
    with pytest.raises(DataError, match="no window of public text"):
        list(Subnet(epochs=1).edit(tiny_lm, documents(), lab))
    assert len(list(Subnet(epochs=1, weight=0.0).edit(tiny_lm, documents(), lab))) == 5


def test_bad_fields_are_refused() -> None:
    for ratio in ((), (0.0,), (0.5, 0.1), (0.5, 1.0)):
        with pytest.raises(SpecError, match="growing shares"):
            Subnet(ratio=ratio)
    with pytest.raises(SpecError, match="weight"):
        Subnet(weight=1.5)
    with pytest.raises(SpecError, match="epochs"):
        Subnet(epochs=0)
    with pytest.raises(SpecError, match="batch"):
        Subnet(batch=1)


@pytest.mark.slow
def test_a_tenth_of_the_weights_forgets_the_addresses(
    leaks: Callable[[Defense], list[tuple[int, int, float]]],
) -> None:
    """The intervals lie apart, and letters without addresses read at most a tenth worse."""
    (undefended,), (edited,) = leaks(Defense()), leaks(Subnet(ratio=(0.1,)))
    assert wilson(*edited[:2])[1] < wilson(*undefended[:2])[0]
    assert edited[2] < 1.1 * undefended[2]
