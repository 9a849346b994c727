from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from memdefense.corpus import (
    Canary,
    Corpus,
    Document,
    Occurrence,
    Redrawn,
    Secret,
    digest_documents,
    read_documents,
    write_documents,
)
from memdefense.errors import DataError
from memdefense.testing import TinyBenchmark

ODD = [
    Document("a", "plain text", "ann"),
    Document("b", "two\nlines\r\nand \u2028 a separator \u00e9\u4e2d\U0001f600", ""),
    Document("c", "", "bob"),
    Document("d", '"quotes" and \\ backslash \x00 nul', "bob"),
]


def test_documents_come_back_from_jsonl_as_they_were(tmp_path: Path) -> None:
    write_documents(tmp_path / "d.jsonl", ODD)
    assert list(read_documents(tmp_path / "d.jsonl")) == ODD


def test_author_may_be_missing_and_ids_may_be_numbers(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"id": 7, "text": "x"}\n')
    assert list(read_documents(tmp_path / "d.jsonl")) == [Document("7", "x")]


@pytest.mark.parametrize("line", ['{"id": "a"}', "[1, 2]", "{", '"text"'])
def test_file_of_something_else_is_an_error(tmp_path: Path, line: str) -> None:
    (tmp_path / "d.jsonl").write_text('{"id": "a", "text": "x"}\n' + line + "\n")
    with pytest.raises(DataError, match=r"d\.jsonl is not a documents file"):
        list(read_documents(tmp_path / "d.jsonl"))


@pytest.mark.parametrize(
    "other",
    [
        ODD[::-1],
        ODD[:3],
        [*ODD[:3], dataclasses.replace(ODD[3], author="ann")],
        [*ODD[:3], dataclasses.replace(ODD[3], id="e")],
        [*ODD[:3], dataclasses.replace(ODD[3], text="x")],
    ],
)
def test_digest_sees_every_change_and_the_order(other: list[Document]) -> None:
    assert digest_documents(other) != digest_documents(ODD)


def test_digest_keeps_the_parts_of_a_document_apart() -> None:
    assert digest_documents([Document("ab", "c", "d")]) != digest_documents([Document("a", "bc", "d")])
    assert digest_documents([Document("a", "b", "cd")]) != digest_documents([Document("a", "bc", "d")])


def test_corpus_digest_sees_every_part() -> None:
    secret = Secret("s", "email", "a@example.com", True, "p", (Occurrence("a", 0, 3),))
    corpus = Corpus([], ODD, [], secrets=[secret], canaries=[Canary("c", ("c",), "p", "v", 1, True)])
    changed = [
        dataclasses.replace(corpus, public=ODD[:1]),
        dataclasses.replace(corpus, held_out=ODD[:1]),
        dataclasses.replace(corpus, general=ODD[:1]),
        dataclasses.replace(corpus, secrets=[dataclasses.replace(secret, twin="b@example.com")]),
        dataclasses.replace(corpus, canaries=()),
    ]
    assert len({corpus.digest(), *(other.digest() for other in changed)}) == 6
    assert dataclasses.replace(corpus, counts={"read": 3}).digest() == corpus.digest()


def test_copy_is_equal_and_apart() -> None:
    corpus = TinyBenchmark().corpus()
    copy = corpus.copy()
    assert copy == corpus
    object.__setattr__(copy.train[0], "text", "changed")
    object.__setattr__(copy.secrets[0], "value", "changed")
    assert corpus.digest() == TinyBenchmark().corpus().digest() != copy.digest()


def test_corpus_without_training_text_is_an_error() -> None:
    with pytest.raises(DataError, match="no training documents"):
        Corpus([], [], ODD)


def test_chance_is_exact_only_with_a_twin_for_every_member() -> None:
    secret = Secret("s", "email", "a@example.com", True, "p", (Occurrence("a", 0, 3),), twin="b@example.com")
    other = dataclasses.replace(secret, id="t", twin="")
    assert Corpus([], ODD, [], secrets=[secret]).exchangeable
    assert Corpus([], ODD, [], secrets=[secret, dataclasses.replace(other, member=False)]).exchangeable
    assert not Corpus([], ODD, [], secrets=[secret, other]).exchangeable
    assert not Corpus([], ODD, []).exchangeable


def test_redrawn_is_epoch_0_as_a_sequence() -> None:
    drawn = Redrawn(ODD[:2], lambda epoch: [Document(str(epoch), "x")])
    assert list(drawn) == ODD[:2]
    assert drawn[1] == ODD[1]
    assert drawn[:1] == tuple(ODD[:1])
    assert drawn.epoch(0) == tuple(ODD[:2])
    assert drawn.epoch(3) == [Document("3", "x")]


def test_planted_documents_are_those_that_hold_a_member_canary() -> None:
    canaries = [Canary("c", ("a", "b"), "p", "v", 2, True), Canary("d", (), "p", "w", 1, False)]
    assert Corpus([], ODD, [], canaries=canaries).planted == {"a", "b"}
    assert Corpus([], ODD, []).planted == frozenset()
