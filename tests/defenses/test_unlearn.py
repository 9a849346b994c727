"""Unlearning."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal, cast

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from memdefense.architecture import blocks_of
from memdefense.bench import Bench
from memdefense.corpus import Document
from memdefense.defense import Defense
from memdefense.defenses import unlearning
from memdefense.defenses.forgetting import Texts, nll, padded
from memdefense.defenses.unlearn import Unlearn
from memdefense.errors import DataError, ModelError, SpecError
from memdefense.interval import wilson
from memdefense.lab import Lab
from memdefense.lm import LM
from memdefense.small_model import untrained
from memdefense.store import Store
from memdefense.testing import check_defense
from memdefense.train import TrainConfig

Leaks = Callable[[Defense], list[tuple[int, int, float]]]
Method = Literal["ga", "graddiff", "npo", "simnpo", "rmu", "task-vector"]
METHODS: tuple[Method, ...] = ("ga", "graddiff", "npo", "simnpo", "rmu", "task-vector")
CONFIG = TrainConfig(block_size=24, dtype="float32", learning_rate=1e-2)
PRIVATE = [
    Document("d0", "We meet at noon in the large room. Write to ann.lee@fenwick.com about the report, please."),
    Document("d1", "The boxes are here since Tuesday, as the invoice says. Call 415-555-0134 before noon today."),
    Document("d2", "The report is with the team on the second floor, and the old one is kept for reference."),
]
PUBLIC = [Document("p0", "The meeting on Tuesday is moved to the second floor."), Document("p1", "Send the boxes.")]


def lab(store: Store, base: LM, *, public: Sequence[Document] = PUBLIC, config: TrainConfig = CONFIG) -> Lab:
    return Lab(Bench(store), who="unlearn", seed=0, originals=PRIVATE, public=public, config=config, base=base)


@pytest.mark.parametrize("method", METHODS)
def test_contract(method: Method) -> None:
    check_defense(Unlearn(method=method, epochs=2))


def loss_of(lm: LM, texts: Sequence[str]) -> float:
    with torch.no_grad():
        total, count = nll(lm.model, *padded([lm.encode(text)[:24] for text in texts], lm.device))
    return float(total.sum() / count.sum())


@pytest.mark.parametrize("method", METHODS)
def test_windows_become_less_likely_and_a_point_follows_each_epoch(tiny_lm: LM, store: Store, method: Method) -> None:
    values = ["Write to ann.lee@fenwick.com about", "Call 415-555-0134 before"]
    lending = lab(store, tiny_lm)
    losses = [loss_of(tiny_lm, values)]
    labels = []
    # To SimNPO whatever is as unlikely as under random weights is forgotten already, short of a delta above that.
    delta = 6.0 if method == "simnpo" else 0.0
    for point in Unlearn(method=method, window=4, delta=delta).edit(tiny_lm.copy(), PRIVATE, lending):
        assert point.at == 1.0
        labels.append(point.label)
        losses.append(loss_of(point.model, values))
        assert all(weight.grad is None for weight in point.model.model.parameters())
    assert labels == [f"{'part' if method == 'task-vector' else 'epoch'}-{place}" for place in range(1, 6)]
    assert losses[-1] > losses[0] + 1e-3
    assert lending.notes["values"] == 2
    assert lending.notes["windows"] == 2 + 1 * (lending.notes["forget_tokens"] > 48)


def test_one_step_of_graddiff_equals_adamw_by_hand(tiny_lm: LM, store: Store) -> None:
    """One batch of one epoch, at the full rate: the first step of AdamW moves each weight by about the rate."""
    private = [Document("d", "ann.lee@fenwick.com and then some more")]
    ids = tiny_lm.encode(private[0].text)
    size = len(tiny_lm.encode("ann.lee@fenwick.com"))
    forget, retain = torch.tensor([ids[:size]]), torch.tensor([ids[size:]])
    expected = tiny_lm.copy()
    optimizer = torch.optim.AdamW(expected.model.parameters(), lr=0.5 * 1e-2, weight_decay=0.0)
    gains = expected.model(input_ids=forget, labels=forget).loss, expected.model(input_ids=retain, labels=retain).loss
    (-2.0 * gains[0] + 0.25 * gains[1]).backward()
    torch.nn.utils.clip_grad_norm_(expected.model.parameters(), 1.0)
    optimizer.step()
    defense = Unlearn(method="graddiff", window=0, epochs=1, rate=0.5, gamma=2.0, alpha=0.25)
    config = dataclasses.replace(CONFIG, block_size=64)
    (point,) = defense.edit(tiny_lm.copy(), private, lab(store, tiny_lm, public=(), config=config))
    for one, other in zip(expected.model.parameters(), point.model.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=2e-5)


def test_the_rate_rises_over_the_first_epoch_and_falls_to_the_end(tiny_lm: LM, store: Store) -> None:
    """Four windows one at a time, so four steps an epoch."""
    texts = ["Write to ann.lee@fenwick.com soon", "Call 415-555-0134 first", "Or bob@fenwick.com", "Not eve@poe.com"]
    private = [Document(str(place), text) for place, text in enumerate(texts)]
    rates: list[float] = []
    handle = register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    try:
        defense = Unlearn(window=2, epochs=3, batch_size=1, rate=0.5)
        points = list(defense.edit(tiny_lm.copy(), private, lab(store, tiny_lm)))
    finally:
        handle.remove()
    assert len(points) == 3
    eighths = [2, 4, 6, 8, 8, 7, 6, 5, 4, 3, 2, 1]
    assert rates == pytest.approx([0.5 * 1e-2 * eighth / 8 for eighth in eighths])


def test_npo_refers_to_the_model_before_unlearning(tiny_lm: LM, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first step the ratio is one for every window, so the loss is 2 / beta log 2."""
    from memdefense.defenses import forgetting

    seen: list[tuple[torch.Tensor, torch.Tensor, float]] = []
    true = forgetting.npo

    def watched(total: torch.Tensor, reference: torch.Tensor, beta: float) -> torch.Tensor:
        seen.append((total.detach(), reference, beta))
        loss: torch.Tensor = true(total, reference, beta)
        return loss

    monkeypatch.setattr(unlearning, "npo", watched)
    list(Unlearn(window=4, epochs=2).edit(tiny_lm.copy(), PRIVATE, lab(store, tiny_lm)))
    (first, reference, beta), (later, again, _) = seen
    assert torch.allclose(first, reference, rtol=1e-4)
    assert beta == 0.1
    assert torch.equal(reference.sort().values, again.sort().values)
    assert (later.sum() > again.sum()).item()


def test_rmu_trains_the_last_matrices_up_to_the_middle_block_alone(tiny_lm: LM, store: Store) -> None:
    *_, last = Unlearn(method="rmu", window=4).edit(tiny_lm.copy(), PRIVATE, lab(store, tiny_lm))
    before, after = tiny_lm.model.state_dict(), last.model.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"{blocks_of(tiny_lm.model)[0].down.name}.weight"}


@pytest.mark.parametrize(("layers", "steered"), [(1, [0]), (2, [0]), (4, [0, 1]), (6, [0, 1, 2]), (9, [2, 3, 4])])
def test_rmu_steers_the_middle_block_and_trains_it_and_the_two_before(
    store: Store, layers: int, steered: list[int]
) -> None:
    """Of an even number the lower of the two in the middle; what stands above it gets no gradient."""
    lm = untrained(PUBLIC, vocabulary=280, layers=layers, width=16, heads=2, context=64, seed=0)
    rows = [lm.encode(document.text)[:24] for document in PRIVATE]
    objective = unlearning._Objective(Unlearn(method="rmu"), lm, Texts(rows, rows), lab(store, lm))
    blocks = blocks_of(lm.model)
    assert [weight is blocks[place].down.parameter for place, weight in zip(steered, objective.weights(), strict=True)]
    with torch.no_grad():
        hidden = lm.model(torch.tensor([rows[0]]), output_hidden_states=True).hidden_states
    caught = objective._hidden(lm, torch.tensor([rows[0]])).detach()
    if steered[-1] + 2 < len(hidden):  # what a last block gives is there behind the last norm alone
        torch.testing.assert_close(caught, hidden[steered[-1] + 1])
    else:
        torch.testing.assert_close(lm.model.base_model.ln_f(caught), hidden[-1])  # type: ignore[operator]
    objective.gradients([0, 1], [2, 0])
    reached = [place for place, block in enumerate(blocks) if block.down.parameter.grad is not None]
    assert reached == list(range(steered[-1] + 1))


def test_rmu_keeps_the_states_of_the_model_before_unlearning(tiny_lm: LM, store: Store) -> None:
    """Loss and gradient by hand on a model that has moved away from the one it started from."""
    words = tiny_lm.encode("The boxes are here since Tuesday, as the invoice says, and the old report is kept.")
    forget, retain = [words[:9], words[3:8]], [words[10:22], words[8:14]]
    lm = tiny_lm.copy()
    defense = Unlearn(method="rmu", alpha=3.0, gamma=2.0)
    objective = unlearning._Objective(defense, lm, Texts(forget, retain), lab(store, tiny_lm))
    down = blocks_of(lm.model)[0].down
    with torch.no_grad():
        down.weight.add_(0.3 * torch.randn(down.weight.shape, generator=torch.Generator().manual_seed(4)))

    def states(model: LM, row: list[int]) -> torch.Tensor:
        hidden: torch.Tensor = model.model(torch.tensor([row]), output_hidden_states=True).hidden_states[1][0]
        return hidden

    lost = 2.0 * torch.stack([((states(lm, row) - objective._goal) ** 2).mean() for row in forget]).mean()
    moved = [((states(lm, row) - states(tiny_lm, row).detach()) ** 2).mean() for row in retain]
    held = 3.0 * torch.stack(moved).mean()
    assert held.item() > 1e-2
    (expected,) = torch.autograd.grad(lost + held, down.parameter)

    made = objective._losses([0, 1], [0, 1])
    assert made[1] is not None
    assert made[0].item() == pytest.approx(lost.item(), rel=1e-4)
    assert made[1].item() == pytest.approx(held.item(), rel=1e-4)
    objective.gradients([0, 1], [0, 1])
    assert down.parameter.grad is not None
    torch.testing.assert_close(down.parameter.grad, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("build", ["GPT-2", "GPT-Neo", "GPT-NeoX", "Llama"])
def test_rmu_moves_the_last_matrices_below_the_middle_of_every_build(
    four_builds: dict[str, LM], store: Store, build: str
) -> None:
    start = four_builds[build]
    points = [
        (point.label, {name: weight.clone() for name, weight in point.model.model.state_dict().items()})
        for point in Unlearn(method="rmu", window=4, epochs=2).edit(start.copy(), PRIVATE, lab(store, start))
    ]
    assert [label for label, _ in points] == ["epoch-1", "epoch-2"]
    blocks = blocks_of(start.model)
    steered = {f"{block.down.name}.weight" for block in blocks[:2]}  # of three blocks the middle one is the second
    before = start.model.state_dict()
    for _, after in points:
        assert {name for name in before if not torch.equal(before[name], after[name])} == steered
        assert all(bool(weight.isfinite().all()) for weight in after.values())


def test_task_vector_subtracts_equal_parts_of_what_a_copy_learned(tiny_lm: LM, store: Store) -> None:
    """theta - lambda (theta_forget - theta), and theta_forget finds the windows more likely."""
    defense = Unlearn(method="task-vector", window=4, epochs=4, scale=2.0)
    points = [point.model.copy() for point in defense.edit(tiny_lm.copy(), PRIVATE, lab(store, tiny_lm))]
    assert len(points) == 4
    learned = tiny_lm.copy()
    with torch.no_grad():
        for start, weight, *parts in zip(
            tiny_lm.model.parameters(), learned.model.parameters(), *(p.model.parameters() for p in points), strict=True
        ):
            weight.copy_(start - (parts[-1] - start) / 2.0)
            for place, part in enumerate(parts, start=1):
                assert torch.allclose(part - start, (parts[-1] - start) * place / 4, atol=1e-6)
    values = ["Write to ann.lee@fenwick.com about", "Call 415-555-0134 before"]
    assert loss_of(learned, values) < loss_of(tiny_lm, values) - 0.05


def test_defaults_are_the_methods_own() -> None:
    assert (Unlearn().weight, Unlearn().slope) == (1.0, 0.1)
    assert (Unlearn(method="simnpo").weight, Unlearn(method="simnpo").slope) == (0.125, 4.5)
    assert (Unlearn(gamma=3.0).weight, Unlearn(beta=2.0).slope) == (3.0, 2.0)


def test_no_pii_leaves_the_model_as_it_is(tiny_lm: LM, store: Store) -> None:
    lending = lab(store, tiny_lm)
    (point,) = Unlearn().edit(tiny_lm.copy(), PRIVATE[2:], lending)
    assert point.model.digest() == tiny_lm.digest()
    assert lending.notes["values"] == lending.notes["windows"] == 0
    (point,) = Unlearn(kinds=("url",)).edit(tiny_lm.copy(), PRIVATE, lending)
    assert point.model.digest() == tiny_lm.digest()


def test_nothing_to_retain_is_an_error_where_it_is_needed(tiny_lm: LM, store: Store) -> None:
    lending = lab(store, tiny_lm, public=())
    with pytest.raises(DataError, match="leave nothing to retain"):
        list(Unlearn(window=200).edit(tiny_lm.copy(), PRIVATE[:2], lending))
    assert len(list(Unlearn(method="ga", window=200).edit(tiny_lm.copy(), PRIVATE[:2], lending))) == 5


def test_divergence_is_an_error_that_says_what_to_do(tiny_lm: LM, store: Store) -> None:
    broken = tiny_lm.copy()
    with torch.no_grad():
        blocks_of(broken.model)[0].down.weight.fill_(math.nan)
    with pytest.raises(ModelError, match="diverged in epoch 1"):
        list(Unlearn(method="ga").edit(broken, PRIVATE, lab(store, tiny_lm)))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Unlearn(method=cast("Method", "nop")), "did you mean 'npo'"),
        (lambda: Unlearn(kinds=("emial",)), "did you mean 'email'"),
        (lambda: Unlearn(epochs=0), "epochs is 0"),
        (lambda: Unlearn(batch_size=0), "batch_size is 0"),
        (lambda: Unlearn(rate=0.0), "rate is 0.0"),
        (lambda: Unlearn(scale=math.inf), "scale is inf"),
        (lambda: Unlearn(coefficient=-1.0), "coefficient is -1.0"),
        (lambda: Unlearn(window=-1), "window is -1"),
        (lambda: Unlearn(alpha=math.nan), "alpha is nan"),
        (lambda: Unlearn(beta=-0.1), "beta is -0.1"),
    ],
)
def test_fields_out_of_range_are_refused(make: Callable[[], Unlearn], complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint):
        make()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("defense", "point", "cost"),
    [
        (Unlearn(method="graddiff"), 3, 1.05),
        (Unlearn(method="npo"), 3, 1.05),
        (Unlearn(method="simnpo"), 3, 1.05),
        (Unlearn(method="ga"), 3, 1.1),  # nothing holds the rest in place
        # At their defaults these two hardly act on so small a model.
        (Unlearn(method="rmu", rate=5.0), 5, 1.05),
        (Unlearn(method="task-vector", scale=5.0), 4, 1.05),
    ],
    ids=lambda value: value.method if isinstance(value, Unlearn) else "",
)
def test_planted_addresses_stop_coming_back(leaks: Leaks, defense: Unlearn, point: int, cost: float) -> None:
    """After so many epochs or parts, held-out letters at most so many times as perplexing."""
    ((hits, count, perplexity),) = leaks(Defense())
    left, of, after = leaks(defense)[point - 1]
    assert wilson(left, of)[1] < wilson(hits, count)[0] - 0.3
    assert after < cost * perplexity


@pytest.mark.parametrize("method", METHODS)
def test_how_a_step_is_cut_into_passes_changes_no_gradient(
    tiny_lm: LM, store: Store, monkeypatch: pytest.MonkeyPatch, method: Method
) -> None:
    """Windows of very different lengths, sorted by length: a pass of short ones counts by its tokens."""
    words = tiny_lm.encode("The boxes are here since Tuesday, as the invoice says, and the old report is kept.")
    rows = [words[:3], words[:4], words[2:6], words[1:20], words[:24], words[3:24]]
    retained = [row[1:] for row in reversed(rows)]  # of the same rows what is lost and what is held would cancel out
    defense = Unlearn(method=method)

    def gradients(together: int) -> list[torch.Tensor]:
        monkeypatch.setattr(unlearning, "_TOGETHER", together)
        lm = tiny_lm.copy()
        objective = unlearning._Objective(defense, lm, Texts(rows, retained), lab(store, tiny_lm))
        retain = [] if method in ("ga", "task-vector") else list(range(6))
        objective.gradients(list(range(6)), retain)
        return [torch.zeros(1) if weight.grad is None else weight.grad for weight in objective.weights()]

    for whole, parts in zip(gradients(6), gradients(2), strict=True):
        assert torch.allclose(whole, parts, atol=1e-5, rtol=1e-4)


def test_what_is_not_trained_on_is_not_counted(tiny_lm: LM, store: Store) -> None:
    def tokens(method: Method) -> float:
        lending = lab(store, tiny_lm)
        list(Unlearn(method=method, window=4, epochs=2).edit(tiny_lm.copy(), PRIVATE, lending))
        assert lending.cost["tokens"] > 0
        return lending.cost["tokens"] - 2 * lending.notes["forget_tokens"]

    assert tokens("ga") == tokens("task-vector") == 0
    assert tokens("graddiff") > 0
