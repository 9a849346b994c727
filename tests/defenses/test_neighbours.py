from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from memdefense.corpus import Document
from memdefense.defenses.neighbours import Datastore, Items
from memdefense.laws import Caught
from memdefense.lm import LM

TEXTS = [
    "Please call Anna at noon, and keep the report.",
    "Please call Anna at noon, and send the boxes.",
    "The meeting on Tuesday is moved.",
    "The meeting on Tuesday is moved.",
    "a",
    "Could you send the report to the team, and keep the old one for reference? " * 4,  # longer than the context
]
DOCUMENTS = [Document(f"d{place}", text) for place, text in enumerate(TEXTS)]


@pytest.fixture(params=["tiny_lm", "tiny_llama"])
def model(request: pytest.FixtureRequest) -> LM:
    """A copy with weights large enough to think differently of different texts."""
    found: LM = request.getfixturevalue(request.param).copy()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for weight in found.model.parameters():
            if weight.dim() > 1:
                weight.copy_(torch.randn_like(weight) * 0.3)
    return found


@torch.inference_mode()
def read(lm: LM, ids: list[int]) -> Tensor:
    """The states that enter the output embedding, in a pass of its own."""
    caught = Caught(lm.model)
    lm.model(input_ids=torch.tensor([ids]))
    caught.remove()
    return caught.hidden[0]


def every_item(lm: LM) -> tuple[list[Tensor], list[int], list[tuple[int, ...]]]:
    """State, token and context of every item that has a context, by brute force; window by window."""
    states, tokens, contexts = [], [], []
    for text in TEXTS:
        ids = lm.encode(text) + lm.separator()
        begin = 0
        for at in range(1, len(ids)):
            if at - begin >= lm.context:
                begin += lm.context // 2
            seen = ids[begin:at]
            states.append(read(lm, seen)[-1])
            tokens.append(ids[at])
            contexts.append(tuple(seen))
    return states, tokens, contexts


def by_hand(
    query: Tensor,
    states: Sequence[Tensor],
    tokens: Sequence[int],
    contexts: Sequence[tuple[int, ...]],
    k: int,
    temperature: float,
    without: int = -1,
) -> dict[int, float]:
    """p_kNN over all items but one: the k nearest different contexts, and everything that stands at them."""
    squares = {}
    for place, context in enumerate(contexts):
        if place != without:
            squares[context] = math.dist(query.tolist(), states[place].tolist()) ** 2
    near = dict(sorted(squares.items(), key=lambda item: item[1])[:k])
    said: dict[int, float] = {}
    for place, context in enumerate(contexts):
        if place != without and context in near:
            said[tokens[place]] = said.get(tokens[place], 0.0) + math.exp(-near[context] / temperature)
    total = sum(said.values())
    return {token: share / total for token, share in said.items()}


def test_every_token_is_an_item_and_its_state_is_that_of_its_context(model: LM) -> None:
    items = Items.of(model, [*DOCUMENTS, DOCUMENTS[0]])  # one id is one document
    states, tokens, contexts = every_item(model)
    known = items.context >= 0
    assert items.lengths == [len(model.encode(text)) + 1 for text in TEXTS]
    assert int((~known).sum()) == len(TEXTS)
    assert items.token[known].tolist() == tokens
    assert len(items.places) == len(set(contexts)) < len(contexts)
    assert len(set(zip(items.context[known].tolist(), contexts, strict=True))) == len(set(contexts))
    assert max(len(model.encode(text)) for text in TEXTS) > model.context
    found = items.states(model)
    for state, number in zip(states, items.context[known].tolist(), strict=True):
        torch.testing.assert_close(found[number], state, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(items.states(model, 3), found[::3], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("k", [1, 3, 1000])
@pytest.mark.parametrize("temperature", [2.0, 20.0])
def test_the_distribution_of_neighbours_is_that_of_brute_force(model: LM, k: int, temperature: float) -> None:
    items = Items.of(model, DOCUMENTS)
    store = Datastore.of(items.states(model), items)
    queries = read(model, model.encode("Please call the team about the old report"))
    found = store.probabilities(queries, k, temperature, model.model.config.vocab_size)
    known = every_item(model)
    for query, row in zip(queries, found, strict=True):
        expected = torch.zeros(len(row))
        for token, share in by_hand(query, *known, k, temperature).items():
            expected[token] = share
        torch.testing.assert_close(row, expected, atol=1e-4, rtol=1e-3)


def test_a_neighbour_counts_by_its_squared_distance() -> None:
    """At distances 1, 2 and 5 from 0 with a temperature of 3; each has a token of its own, the second twice."""
    states = torch.tensor([[1.0, 0.0], [0.0, -2.0], [3.0, 4.0]])
    items = Items([], torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 1, 2]), [], [])
    store, query = Datastore.of(states, items), torch.zeros(1, 2)
    squares, number = store.nearest(query, 3)
    assert squares.tolist() == [[1.0, 4.0, 25.0]]
    assert number.tolist() == [[0, 1, 2]]
    weights = [math.exp(-1 / 3), 2 * math.exp(-4 / 3), math.exp(-25 / 3)]
    expected = torch.tensor([weights]) / sum(weights)  # 0.5760, 0.4238, 0.0002
    torch.testing.assert_close(store.probabilities(query, 3, 3.0, 3), expected)
    # Of the second's two tokens one is left out: at distance 0 stands its copy, at the root of 5 the first.
    agreed, other = 1.0, math.exp(-5 / 3)
    last = math.exp(-45 / 3)  # at the root of 9 + 36
    found = store.left_out(items, states, 3, 3.0)
    assert float(found[1]) == pytest.approx(agreed / (agreed + other + last), rel=1e-6)


@pytest.mark.parametrize("k", [1, 4])
def test_an_item_never_retrieves_itself(model: LM, k: int) -> None:
    items = Items.of(model, DOCUMENTS)
    states = items.states(model)
    found = Datastore.of(states, items).left_out(items, states, k, 2.0)
    known = items.context >= 0
    assert found[~known].isnan().all()
    brute, tokens, contexts = every_item(model)
    expected = [
        by_hand(state, brute, tokens, contexts, k, 2.0, without=place).get(tokens[place], 0.0)
        for place, state in enumerate(brute)
    ]
    torch.testing.assert_close(found[known], torch.tensor(expected), atol=1e-4, rtol=1e-3)


def test_a_copy_is_a_neighbour_and_the_item_itself_is_none() -> None:
    """Three contexts far apart: the first stands three times, the second once, and the third is the second's twin."""
    states = torch.tensor([[0.0, 0.0], [100.0, 0.0], [100.0, 1.0]])
    items = Items([], torch.tensor([0, 0, 0, 1, 2, -1]), torch.tensor([7, 7, 8, 5, 6, 7]), [], [])
    found = Datastore.of(states, items).left_out(items, states, 1, 1.0)
    assert found[:5].tolist() == [0.5, 0.5, 0.0, 0.0, 0.0]
    assert found[5].isnan()
    same = Items([], items.context, torch.tensor([7, 7, 8, 5, 5, 7]), [], [])
    assert Datastore.of(states, same).left_out(same, states, 1, 1.0)[3:5].tolist() == [1.0, 1.0]
    # Without copies the first context's only neighbour is the second, whose token is another.
    alone = Datastore.of(states, items).left_out(items, states, 1, 1.0, copies=False)
    assert alone[:5].tolist() == [0.0, 0.0, 0.0, 0.0, 0.0]
    agreed = Items([], items.context, torch.tensor([5, 7, 8, 5, 5, 7]), [], [])
    alone = Datastore.of(states, agreed).left_out(agreed, states, 1, 1.0, copies=False)
    assert alone[:5].tolist() == [1.0, 0.0, 0.0, 1.0, 1.0]


def test_an_item_alone_has_no_neighbours() -> None:
    items = Items([2], torch.tensor([-1, 0]), torch.tensor([3, 4]), [], [])
    states = torch.zeros(1, 2)
    assert Datastore.of(states, items).left_out(items, states, 16, 1.0).isnan().all()


def test_of_a_thinned_store_only_what_is_stored_is_left_out() -> None:
    states = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
    items = Items([], torch.tensor([0, 1, 2, 3]), torch.tensor([1, 1, 2, 2]), [], [])
    store = Datastore.of(states[::2], items, 2)
    assert store.token.tolist() == [1, 2]
    assert store.left_out(items, states, 1, 1.0, stride=2).tolist() == [0.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize("contexts", [5, 64, 1000, 1024, 4099, 5003])
def test_the_nearest_are_those_of_brute_force(contexts: int) -> None:
    """Fewer keys than a group, whole blocks of them, and some left over; more queries than one block has."""
    drawn = torch.Generator().manual_seed(contexts)
    keys, queries = torch.randn(contexts, 6, generator=drawn), torch.randn(600, 6, generator=drawn)
    keys[:, 0] += torch.arange(contexts) / contexts  # so that the nearest of some queries are neighbours in number too
    queries[:3] = keys[[0, contexts // 2, contexts - 1]]
    store = Datastore(keys, torch.arange(contexts + 1), torch.zeros(contexts), torch.ones(contexts))
    apart = torch.cdist(queries.double(), keys.double()).square()
    for k in (1, 5, 17):
        squares, number = store.nearest(queries, k)
        expected = apart.sort(1).values[:, : min(k, contexts)]
        torch.testing.assert_close(squares.double(), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(apart.gather(1, number), expected, atol=1e-5, rtol=1e-5)
        assert all(len(set(row)) == len(row) for row in number.tolist())
