from __future__ import annotations

import copy
import dataclasses
import hashlib
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from tokenizers import processors

from memdefense.corpus import Document, Redrawn
from memdefense.errors import DataError
from memdefense.lm import LM
from memdefense.packing import Rows, by_epoch, count_epochs, count_steps, ordered, rows, step_at
from memdefense.train import TrainConfig

WORDS = ["meeting", "report", "invoice", "boxes", "Anna", "noon", "room", "floor", "team", "mail"]


def documents(n: int = 7) -> list[Document]:
    rng = np.random.default_rng(0)
    return [
        Document(f"d{place}", " ".join(rng.choice(WORDS, int(rng.integers(3, 20)))), f"author{place % 3}")
        for place in range(n)
    ]


def config(**changes: object) -> TrainConfig:
    made: TrainConfig = dataclasses.replace(TrainConfig(epochs=1, block_size=16, batch_size=4), **changes)  # type: ignore[arg-type]
    return made


def stream(made: Rows) -> list[tuple[int, int, int]]:
    """(id, document, offset) of every token that is not padding, in order."""
    columns = [made.columns[name].ravel() for name in ("ids", "document", "offset")]
    return [
        (int(token), int(document), int(offset))
        for token, document, offset in zip(*columns, strict=True)
        if document >= 0
    ]


def told(lm: LM, docs: list[Document], document: Document) -> list[tuple[int, int, int]]:
    ids = [*lm.encode(document.text), 0]
    return [(token, docs.index(document), offset) for offset, token in enumerate(ids)]


def test_the_order_is_a_hash_so_that_a_removed_document_moves_no_other() -> None:
    docs = documents(30)
    whole = ordered(docs, seed=3, epoch=1)
    by_hand = sorted(docs, key=lambda d: hashlib.blake2b(f"3/1/{d.id}".encode(), digest_size=16).digest())
    assert whole == by_hand != docs
    assert ordered(docs[::-1], seed=3, epoch=1) == whole
    assert ordered([d for d in docs if d.id != "d5"], seed=3, epoch=1) == [d for d in whole if d.id != "d5"]
    assert ordered(docs, seed=3, epoch=2) != whole != ordered(docs, seed=4, epoch=1)


def test_packing_tokens_lays_documents_end_to_end_over_epochs(tiny_lm: LM) -> None:
    docs = documents()
    made = rows(config(epochs=2), docs, tiny_lm, seed=5)
    expected = [
        token for epoch in (0, 1) for document in ordered(docs, 5, epoch) for token in told(tiny_lm, docs, document)
    ]
    assert stream(made) == expected
    assert made.tokens == len(expected)
    assert len(made) == -(-len(expected) // 16)
    assert (made.columns["document"][:-1] >= 0).all()  # padding in the last row alone
    columns = made.columns
    assert {name: column.dtype for name, column in columns.items()} == dict.fromkeys(columns, np.dtype(np.int32))
    padding = columns["document"] < 0
    assert padding.any()
    assert (columns["labels"][padding] == -100).all()
    assert (columns["labels"] == columns["ids"])[~padding].all()


def test_packing_documents_keeps_one_in_a_row_and_cuts_it(tiny_lm: LM) -> None:
    docs = documents()
    made = rows(config(pack="document"), docs, tiny_lm, seed=1)
    assert len(made) == len(docs)
    for row, document in enumerate(ordered(docs, 1, 0)):
        one = Rows(*(made.columns[name][row : row + 1] for name in ("ids", "labels", "document", "offset")))
        assert stream(one) == told(tiny_lm, docs, document)[:16]


def test_packing_authors_keeps_one_in_a_row(tiny_lm: LM) -> None:
    docs = [*documents(), Document("alone", "meeting report")]
    made = rows(config(pack="author", block_size=64), docs, tiny_lm, seed=1)
    assert len(made) == 4
    order = ordered(docs, 1, 0)
    authors = list(dict.fromkeys(document.author for document in order))
    for row, author in enumerate(authors):
        expected = [token for d in order if d.author == author for token in told(tiny_lm, docs, d)][:64]
        one = Rows(*(made.columns[name][row : row + 1] for name in ("ids", "labels", "document", "offset")))
        assert stream(one) == expected


@pytest.mark.parametrize(("epochs", "seen"), [(0.25, 3), (0.5, 5), (1.0, 10), (2.1, 21), (0.01, 1)])
def test_fractional_epochs(tiny_lm: LM, epochs: float, seen: int) -> None:
    docs = documents(10)
    made = rows(config(epochs=epochs, pack="document"), docs, tiny_lm, seed=0)
    assert len(made) == seen
    last = ordered(docs, 0, int(epochs))[: seen % 10]
    assert [int(d) for d in made.columns["document"][len(made) - len(last) :, 0]] == [docs.index(d) for d in last]


@pytest.mark.parametrize("pack", ["tokens", "document", "author"])
def test_steps_fill_whole_batches_however_few_the_documents(tiny_lm: LM, pack: str) -> None:
    docs = documents(3)
    made = rows(config(steps=9, epochs=0, pack=pack), docs, tiny_lm, seed=2)
    assert len(made) == 36
    whole = rows(config(epochs=40, pack=pack), docs, tiny_lm, seed=2)
    assert stream(made) == stream(whole)[: len(stream(made))]


@pytest.mark.parametrize("pack", ["tokens", "document", "author"])
def test_a_fraction_below_a_document_adds_nothing(tiny_lm: LM, pack: str) -> None:
    docs = documents()
    two, more = (rows(config(epochs=epochs, pack=pack), docs, tiny_lm, seed=0) for epochs in (2.0, 2.00000001))
    assert stream(more) == stream(two)
    with pytest.raises(DataError, match="1e-09 epochs of 7 documents: there is nothing to train on"):
        rows(config(epochs=1e-9, pack=pack), docs, tiny_lm, seed=0)


@pytest.mark.parametrize("pack", ["tokens", "document", "author"])
@pytest.mark.parametrize("length", [{"epochs": 2.5}, {"steps": 5}, {"epochs": 0}])
def test_epochs_are_counted_as_they_are_read(tiny_lm: LM, pack: str, length: dict[str, object]) -> None:
    docs, asked = documents(), []

    def draw(epoch: int) -> list[Document]:
        asked.append(epoch)
        return [dataclasses.replace(document, text=document.text * (1 + epoch % 2)) for document in docs]

    settings, given = config(pack=pack, **length), Redrawn(docs, draw)
    made = [token for part in by_epoch(settings, given, tiny_lm, seed=0) for token in stream(part)]
    count = count_epochs(settings, given, tiny_lm)
    assert asked == list(range(1, count)) * (2 if "steps" in length else 1)  # and of epoch 0, what it was given
    assert made == (stream(rows(settings, given, tiny_lm, seed=0)) if count else [])


def test_redrawn_documents_change_by_epoch(tiny_lm: LM) -> None:
    docs = documents(4)

    def draw(epoch: int) -> list[Document]:
        return [dataclasses.replace(document, text=f"epoch {epoch} {document.text}") for document in docs]

    made = rows(config(epochs=3), Redrawn(draw(0), draw), tiny_lm, seed=0)
    expected = [
        (token, docs.index(next(d for d in docs if d.id == document.id)), offset)
        for epoch in range(3)
        for document in ordered(draw(epoch), 0, epoch)
        for offset, token in enumerate([*tiny_lm.encode(document.text), 0])
    ]
    assert stream(made) == expected


def inside(text: str) -> list[tuple[int, int]]:
    """Where two of the words stand, from their second letter on: tokens may reach over the edge of a span."""
    return [(found.start() + 1, found.end()) for found in re.finditer("Anna|invoice", text)]


def left_out(lm: LM, text: str) -> list[bool]:
    """By the letters: a byte-level token of ASCII text spells as many letters as its name is long."""
    places = {place for start, end in inside(text) for place in range(start, end)}
    mask, at = [], 0
    for token in lm.encode(text):
        begins = token == lm.tokenizer.eos_token_id  # stands at the beginning alone
        size = 0 if begins else len(lm.tokenizer.backend_tokenizer.id_to_token(token))
        mask.append(bool(places & set(range(at, at + size))))
        at += size
    return mask


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("pack", ["tokens", "document", "author"])
@pytest.mark.parametrize("redrawn", [False, True])
def test_blank_spans_are_read_and_never_predicted(tiny_lm: LM, pack: str, redrawn: bool, begun: bool) -> None:
    lm = tiny_lm
    if begun:
        tokenizer = copy.deepcopy(tiny_lm.tokenizer)
        end = str(tokenizer.eos_token)
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{end} $A", special_tokens=[(end, 0)]
        )
        lm = LM(tiny_lm.model, tokenizer)
    docs = documents(9)

    def draw(epoch: int) -> list[Document]:
        return [dataclasses.replace(d, text=f"{'Anna ' * epoch}{d.text} {epoch}") for d in docs]

    given = Redrawn(draw(0), draw) if redrawn else draw(0)
    settings = config(epochs=2, pack=pack, block_size=24)
    plain, made = rows(settings, given, lm, seed=4), rows(settings, given, lm, seed=4, blank=inside)
    for name in ("ids", "document", "offset"):
        assert (made.columns[name] == plain.columns[name]).all()
    masks = [[[*left_out(lm, d.text), False] for d in draw(epoch if redrawn else 0)] for epoch in (0, 1)]
    expected = plain.columns["labels"].copy()
    epoch, seen = 0, set[tuple[int, int]]()
    for row, column in np.argwhere(plain.columns["document"] >= 0):
        place = int(plain.columns["document"][row, column]), int(plain.columns["offset"][row, column])
        if pack == "tokens":  # one after the other: what comes again is of the second epoch
            epoch, seen = (1, set[tuple[int, int]]()) if place in seen else (epoch, seen)
            seen.add(place)
        else:
            epoch = int(row >= len(plain) // 2)
        if masks[epoch][place[0]][place[1]]:
            expected[row, column] = -100
    assert (made.columns["labels"] == expected).all()
    assert 20 < (made.columns["labels"] != plain.columns["labels"]).sum() < plain.tokens - 100


def test_blank_spans_that_leave_nothing_are_an_error(tiny_lm: LM) -> None:
    docs = documents(3)
    with pytest.raises(DataError, match="nothing is left to predict"):
        rows(config(), docs, tiny_lm, seed=0, blank=lambda text: [(0, len(text))])
    assert len(rows(config(), docs, tiny_lm, seed=0, blank=lambda text: [(text.index(" ") + 1, len(text))]))
    unblanked = rows(config(), docs, tiny_lm, seed=0, blank=lambda text: [])
    assert (unblanked.columns["labels"] == rows(config(), docs, tiny_lm, seed=0).columns["labels"]).all()


def test_a_tokenizer_without_an_end_of_text_puts_an_empty_line_between(tiny_lm: LM) -> None:
    other = tiny_lm.copy()
    eos = other.tokenizer.eos_token
    other.tokenizer.eos_token = None
    try:
        made = rows(config(), [Document("a", "Anna")], other, seed=0)
    finally:
        other.tokenizer.eos_token = eos
    assert tiny_lm.decode([token for token, _, _ in stream(made)]) == "Anna\n\n"


@pytest.mark.parametrize("changes", [{"epochs": 1.5}, {"epochs": 0.3, "pack": "document"}, {"steps": 4}, {"epochs": 0}])
def test_count_steps_is_what_the_rows_give(tiny_lm: LM, changes: dict[str, object]) -> None:
    for seed in range(5):
        setting = config(**changes)
        steps = count_steps(setting, documents(11), tiny_lm, seed=seed)
        if changes.get("epochs") == 0:
            assert steps == 0
        else:
            assert steps == -(-len(rows(setting, documents(11), tiny_lm, seed=seed)) // 4)


def test_steps_of_fractions_by_exact_arithmetic() -> None:
    for total in range(1, 400):
        for parts in range(1, 13):
            for place in range(1, parts + 1):
                assert step_at(total, place / parts) == max(1, round(Fraction(total * place, parts)))


def test_no_documents_are_an_error(tiny_lm: LM) -> None:
    with pytest.raises(DataError, match="nothing to train on"):
        rows(config(), [], tiny_lm, seed=0)
    with pytest.raises(DataError, match="nothing to train on"):
        rows(config(steps=3), [], tiny_lm, seed=0)
    made = rows(config(), [Document("empty", "")], tiny_lm, seed=0)
    assert stream(made) == [(0, 0, 0)]


def test_rows_come_as_int64_batches(tiny_lm: LM) -> None:
    made = rows(config(), documents(), tiny_lm, seed=0)
    batch = made.__getitems__([2, 0])
    assert {name: column.dtype for name, column in batch.items()} == dict.fromkeys(made.columns, torch.int64)
    assert batch["ids"].tolist() == made.columns["ids"][[2, 0]].tolist()
