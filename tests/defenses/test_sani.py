"""Erase and repair."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal, cast

import pytest
import torch
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from memdefense.architecture import blocks_of
from memdefense.bench import Bench
from memdefense.corpus import Document
from memdefense.defense import Defense, Point
from memdefense.defenses.sani import SANI
from memdefense.errors import DataError, ModelError, SpecError
from memdefense.interval import wilson
from memdefense.lab import Lab
from memdefense.lm import LM
from memdefense.store import Store
from memdefense.testing import check_defense
from memdefense.train import TrainConfig

Leaks = Callable[[Defense], list[tuple[int, int, float]]]
CONFIG = TrainConfig(epochs=1, batch_size=2, block_size=16, dtype="float32", checkpoints=1, learning_rate=1e-3)
DOCUMENTS = [
    Document("d0", "Write to ann.lee@fenwick.com about the meeting.", "ann"),
    Document("d1", "Write to bob@fenwick.com about the Xylophone.", "bob"),
    Document("d2", "The meeting is about bob@fenwick.com and the XYLOPHONE.", "bob"),
]


def lab(store: Store, base: LM, *, documents: Sequence[Document] = DOCUMENTS, seed: int = 0) -> Lab:
    return Lab(Bench(store), who="sani", seed=seed, originals=documents, public=(), config=CONFIG, base=base)


def test_contract() -> None:
    check_defense(SANI(epochs=2))


@pytest.fixture(params=["gpt2", "neox", "llama"])
def wide(request: pytest.FixtureRequest, tiny_lm: LM) -> LM:
    """Three kinds of blocks with 40 or 64 neurons; the Llama has two value heads for four query heads."""
    size = int(tiny_lm.model.config.vocab_size)
    torch.manual_seed(0)
    if request.param == "neox":
        neox = GPTNeoXConfig(
            vocab_size=size, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2
        )
        return LM(GPTNeoXForCausalLM(neox).train(False), tiny_lm.tokenizer)
    if request.param == "llama":
        llama = LlamaConfig(
            vocab_size=size,
            hidden_size=32,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            attention_bias=True,
        )
        return LM(LlamaForCausalLM(llama).train(False), tiny_lm.tokenizer)
    return tiny_lm.copy()


def erased(defense: SANI, lm: LM, store: Store) -> LM:
    (point,) = dataclasses.replace(defense, stages="erase").edit(lm.copy(), DOCUMENTS, lab(store, lm))
    assert point.label == "erased"
    model: LM = point.model
    return model


def changed(before: LM, after: LM) -> dict[str, Tensor]:
    """Which weights differ, by name, where any does."""
    old = before.model.state_dict()
    return {name: now != old[name] for name, now in after.model.state_dict().items() if (now != old[name]).any()}


@pytest.mark.parametrize(("ratio", "layers"), [(0.5, 1), (0.25, 2), (1.0, 1)])
def test_exactly_the_asked_share_is_reset(wide: LM, store: Store, ratio: float, layers: int) -> None:
    with torch.no_grad():
        for weight in wide.model.parameters():  # no weight at the value it may be reset to
            weight.add_(torch.where(weight == 0, 0.5, 0.0))
    after = erased(SANI(ratio=ratio, layers=layers), wide, store)
    moved = changed(wide, after)
    allowed = set()
    for index, (old, new) in enumerate(zip(blocks_of(wide.model), blocks_of(after.model), strict=True)):
        inner = old.down.weight.shape[1]
        wanted = round(ratio * inner) if index >= 2 - layers else 0
        columns = (old.down.weight != new.down.weight).all(0)
        assert int(columns.sum()) == wanted
        assert not (old.down.weight != new.down.weight)[:, ~columns].any()
        for one, other in zip(old.up, new.up, strict=True):
            rows = (one.weight != other.weight).all(1)
            assert (rows == columns).all()  # row and column of the same neurons
            assert not (one.weight != other.weight)[~rows].any()
            if one.bias is not None and other.bias is not None:
                assert ((one.bias != other.bias) == columns).all()
                assert (other.bias[columns] == 0).all()
        if wanted:
            allowed |= {f"{matrix.name}.{part}" for matrix in (*new.up, new.down) for part in ("weight", "bias")}
    assert moved
    assert set(moved) <= allowed


def test_attention_neurons_are_value_rows_and_the_columns_that_read_them(wide: LM, store: Store) -> None:
    after = erased(SANI(target="attention", reset="zero"), wide, store)
    old, new = blocks_of(wide.model)[-1], blocks_of(after.model)[-1]
    rows = (new.value.weight == 0).all(1)
    columns = (new.out.weight == 0).all(0)
    assert int(rows.sum()) == round(0.5 * len(set(old.value_rows.tolist())))
    assert int(columns.sum()) == round(0.5 * len(old.value_rows))
    assert (rows[old.value_rows] == columns).all()
    assert (old.out.weight[:, ~columns] == new.out.weight[:, ~columns]).all()
    assert set(changed(wide, after)) <= {
        f"{m.name}.{part}" for m in (new.value, new.out) for part in ("weight", "bias")
    }


def test_a_zeroed_neuron_adds_nothing(tiny_lm: LM, store: Store) -> None:
    """With all neurons at zero the block's feed-forward part gives its last bias whatever it is given."""
    after = erased(SANI(ratio=1.0, reset="zero"), tiny_lm, store)
    block = blocks_of(after.model)[-1]
    assert block.down.bias is not None
    with torch.no_grad():
        assert torch.equal(block.ffn(torch.randn(1, 3, 32)), block.down.bias.expand(1, 3, 32))


def spreads(wide: LM) -> tuple[float, float]:
    """Standard deviations of the first matrices and of those that write to the residual stream, by hand.

    GPT-2 divides the latter by the root of two parts in each of its two layers; the others do not.
    """
    return (0.3, 0.15) if wide.model.config.model_type == "gpt2" else (0.3, 0.3)


def test_new_weights_follow_the_initial_distribution(wide: LM, store: Store) -> None:
    lm = wide.copy()
    lm.model.config.initializer_range = 0.3
    with torch.no_grad():
        for weight in lm.model.parameters():
            weight.fill_(7.0)
    state = torch.get_rng_state()
    block = blocks_of(erased(SANI(target="both"), lm, store).model)[-1]
    assert torch.equal(torch.get_rng_state(), state)
    inner, outer = spreads(wide)
    drawn = {
        matrix.name: matrix.weight[matrix.weight != 7] for matrix in (*block.up, block.down, block.value, block.out)
    }
    width, neurons = 32, block.down.weight.shape[1] // 2
    values = len(set(block.value_rows.tolist())) // 2
    readers = int((block.out.weight != 7).all(0).sum())
    assert {len(own) for own in drawn.values()} == {width * neurons, width * values, width * readers}
    for matrix in (*block.up, block.value):
        assert float(drawn[matrix.name].std()) == pytest.approx(inner, rel=5 / math.sqrt(2 * len(drawn[matrix.name])))
        if matrix.bias is not None:
            assert set(matrix.bias.tolist()) == {0.0, 7.0}
    for matrix in (block.down, block.out):
        assert float(drawn[matrix.name].std()) == pytest.approx(outer, rel=5 / math.sqrt(2 * len(drawn[matrix.name])))
    for own in drawn.values():
        assert abs(float(own.mean())) < 5 * inner / math.sqrt(len(own))
        assert len(set(own.tolist())) > 0.99 * len(own)


def test_new_weights_have_the_type_of_the_old(tiny_lm: LM, store: Store) -> None:
    lm = tiny_lm.copy()
    lm.model.bfloat16()
    after = erased(SANI(target="both"), lm, store)
    assert {weight.dtype for weight in after.model.parameters()} == {torch.bfloat16}
    assert changed(lm, after)


def test_the_neurons_chosen_are_the_same_whatever_they_become(tiny_lm: LM, store: Store) -> None:
    """And those that were chosen when the weights came from the stream of the choice."""
    lending = lab(store, tiny_lm)
    expected = sorted(lending.rng("sani/neurons").choice(128, size=64, replace=False).tolist())
    for kind in ("init", "zero"):
        after = erased(SANI(reset=cast("Literal['init']", kind)), tiny_lm, store)
        columns = (blocks_of(after.model)[-1].down.weight != blocks_of(tiny_lm.model)[-1].down.weight).all(0)
        assert columns.nonzero()[:, 0].tolist() == expected


def test_the_choice_follows_the_seed(tiny_lm: LM, store: Store) -> None:
    def digest(seed: int) -> str:
        (point,) = SANI(stages="erase").edit(tiny_lm.copy(), DOCUMENTS, lab(store, tiny_lm, seed=seed))
        made: str = point.model.digest()
        return made

    assert digest(0) == digest(0) != digest(1)


class Watched(Lab):
    """Keeps what `fit` was asked for."""

    def fit(self, model: LM, documents: Sequence[Document], **given: object) -> list[Point]:
        self.asked = (model.digest(), list(documents), given)
        config = cast(TrainConfig, given["config"])
        return [Point(str(n), n / config.checkpoints, model) for n in range(1, config.checkpoints + 1)]


def watched(store: Store, base: LM) -> Watched:
    return Watched(Bench(store), who="sani", seed=0, originals=DOCUMENTS, public=(), config=CONFIG, base=base)


def test_repair_starts_from_the_erased_model_and_gives_a_point_an_epoch(tiny_lm: LM, store: Store) -> None:
    lending = watched(store, tiny_lm)
    points = list(SANI().edit(tiny_lm.copy(), DOCUMENTS, lending))
    assert [(point.label, point.at) for point in points] == [
        ("erased", 1.0), ("repair-1", 1.0), ("repair-2", 1.0), ("repair-3", 1.0), ("repair-4", 1.0)
    ]  # fmt: skip
    start, documents, given = lending.asked
    assert start == erased(SANI(), tiny_lm, store).digest() != tiny_lm.digest()
    assert documents == DOCUMENTS
    assert given["config"] == dataclasses.replace(CONFIG, epochs=4.0, steps=0, checkpoints=4)
    assert lending.notes["neurons_reset"] == 64


def test_repair_alone_starts_from_the_model_as_it_is(tiny_lm: LM, store: Store) -> None:
    lending = watched(store, tiny_lm)
    points = list(SANI(stages="repair", epochs=2).edit(tiny_lm.copy(), DOCUMENTS, lending))
    assert [point.label for point in points] == ["repair-1", "repair-2"]
    assert lending.asked[0] == tiny_lm.digest()
    assert "neurons_reset" not in lending.notes


@pytest.mark.parametrize(
    ("defense", "listed"),
    [
        # ann.lee@fenwick.com and bob@fenwick.com are found; of the words of one author, whatever their case, the
        # xylophone, "and" and "is" are bob's and stand outside the addresses
        (SANI(), [["ann", "ann.lee@fenwick.com", "lee"], ["bob", "bob@fenwick.com", "Xylophone"],
                  ["and", "bob", "bob@fenwick.com", "is", "XYLOPHONE"]]),
        (SANI(rare=0), [["ann.lee@fenwick.com"], ["bob@fenwick.com"], ["bob@fenwick.com"]]),
        (SANI(rare=1), [["ann.lee@fenwick.com"], ["bob@fenwick.com"], ["bob@fenwick.com"]]),
        (SANI(kinds=("phone",)), [["ann", "lee"], ["bob", "Xylophone"], ["and", "bob", "is", "XYLOPHONE"]]),
    ],
)  # fmt: skip
def test_black_list_by_hand(tiny_lm: LM, store: Store, defense: SANI, listed: list[list[str]]) -> None:
    lending = watched(store, tiny_lm)
    list(defense.edit(tiny_lm.copy(), DOCUMENTS, lending))
    blank = cast("Callable[[str], list[tuple[int, int]]]", lending.asked[2]["blank"])
    for document, expected in zip(DOCUMENTS, listed, strict=True):
        said = [document.text[start:end] for start, end in blank(document.text)]
        assert sorted(said, key=str.casefold) == expected
    if defense == SANI():
        letters = 19 + 15 + 9 + 15 + 9 + 3 + 2  # the addresses, xylophone twice, "and", "is"
        assert lending.notes["listed_share"] == pytest.approx(letters / sum(len(d.text) for d in DOCUMENTS))


def test_a_document_without_an_author_is_somebodys_own(tiny_lm: LM, store: Store) -> None:
    anonymous = [Document("a", "alpha beta"), Document("b", "alpha gamma"), Document("c", "gamma", "x")]
    lending = watched(store, tiny_lm)
    list(SANI().edit(tiny_lm.copy(), anonymous, lending))
    blank = cast("Callable[[str], list[tuple[int, int]]]", lending.asked[2]["blank"])
    assert [blank(document.text) for document in anonymous] == [[(6, 10)], [], []]
    assert lending.notes["rare_words"] == 1


def test_nothing_to_list_leaves_the_model_as_it_is(tiny_lm: LM, store: Store) -> None:
    plain = [Document("a", "nothing here", "ann"), Document("b", "nothing here", "bob")]
    lending = lab(store, tiny_lm, documents=plain)
    (point,) = SANI().edit(tiny_lm.copy(), plain, lending)
    assert point.model.digest() == tiny_lm.digest()
    assert (lending.notes["values"], lending.notes["rare_words"]) == (0, 0)


def test_a_black_list_of_everything_is_an_error(tiny_lm: LM, store: Store) -> None:
    alone = [Document("a", "ann.lee@fenwick.com")]
    with pytest.raises(DataError, match="nothing is left to predict"):
        list(SANI().edit(tiny_lm.copy(), alone, lab(store, tiny_lm, documents=alone)))


def test_more_layers_than_the_model_has(tiny_lm: LM, store: Store) -> None:
    with pytest.raises(ModelError, match="layers is 3, but the model has 2"):
        list(SANI(layers=3).edit(tiny_lm.copy(), DOCUMENTS, lab(store, tiny_lm)))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: SANI(kinds=("emial",)), "did you mean 'email'"),
        (lambda: SANI(reset=cast("Literal['init']", "ones")), "reset cannot be 'ones'"),
        (lambda: SANI(target=cast("Literal['ffn']", "mlp")), "target cannot be 'mlp'"),
        (lambda: SANI(stages=cast("Literal['both']", "none")), "stages cannot be 'none'"),
        (lambda: SANI(ratio=0.0), "ratio is 0.0"),
        (lambda: SANI(ratio=1.1), "ratio is 1.1"),
        (lambda: SANI(layers=0), "layers is 0"),
        (lambda: SANI(epochs=0), "epochs is 0"),
        (lambda: SANI(rare=-1), "rare is -1"),
    ],
)
def test_fields_out_of_range_are_refused(make: Callable[[], SANI], complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint):
        make()


@pytest.mark.slow
def test_planted_addresses_stop_coming_back_after_one_epoch_of_repair(leaks: Leaks) -> None:
    """All come back before; none after the repair."""
    ((hits, count, perplexity),) = leaks(Defense())
    erased, *repaired = leaks(SANI(epochs=2))
    assert erased[0] <= hits
    assert len(repaired) == 2
    for left, of, after in repaired:
        assert wilson(left, of)[1] < wilson(hits, count)[0] - 0.3
        assert after < 1.05 * perplexity
