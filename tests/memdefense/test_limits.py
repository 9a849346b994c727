from __future__ import annotations

import logging
from pathlib import Path

import pytest

import memdefense
from memdefense.attacks.prefix import Prefix
from memdefense.errors import DataError
from memdefense.limits import limited_corpus, with_general_text
from memdefense.testing import TinyBenchmark


def test_a_sample_is_of_what_is_measured_and_not_of_what_is_trained() -> None:
    whole = TinyBenchmark().corpus()
    part = limited_corpus(whole, 3)
    assert part.train == whole.train
    assert len(part.held_out) == 3
    kept = {document.id for document in part.held_out}
    assert sum(secret.member for secret in part.secrets) == 3
    others = [secret for secret in part.secrets if not secret.member]
    assert 0 < len(others) <= 3
    assert all(place.document in kept for secret in others for place in secret.occurrences)
    assert limited_corpus(whole, 3).digest() == part.digest()


def test_a_smaller_sample_is_part_of_a_larger_one_and_a_large_one_is_everything() -> None:
    whole = TinyBenchmark().corpus()
    few, more = limited_corpus(whole, 2), limited_corpus(whole, 6)
    assert {d.id for d in few.held_out} < {d.id for d in more.held_out}
    everything = limited_corpus(whole, 10_000)
    assert everything.digest() == whole.digest()


def test_a_limited_run_warns_and_says_so_in_its_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        few = memdefense.run(
            TinyBenchmark(), "none", [Prefix()], limit=4, baselines="", store=str(tmp_path), device="cpu"
        )
    assert "do not publish" in caplog.text
    full = memdefense.run(TinyBenchmark(), "none", [Prefix()], baselines="", store=str(tmp_path), device="cpu")
    assert few.points[-1]["scores"]["hit_rate"]["n"] == 4
    assert full.points[-1]["scores"]["hit_rate"]["n"] == 12
    assert {row["recipe"] for row in few.points}.isdisjoint(row["recipe"] for row in full.points)


def test_general_text_comes_in_pieces_and_a_missing_or_empty_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "general.txt"
    path.write_bytes(b"One paragraph.\r\n\r\n" + b"word " * 400 + b"\n\xff\n" + b"more " * 400)
    general = with_general_text(TinyBenchmark().corpus(), path).general
    assert len(general) > 1
    assert "".join("".join(d.text.split()) for d in general).startswith("Oneparagraph.wordword")
    path.write_text(" \n")
    with pytest.raises(DataError, match="holds no text"):
        with_general_text(TinyBenchmark().corpus(), path)
    with pytest.raises(DataError, match="cannot read general text"):
        with_general_text(TinyBenchmark().corpus(), tmp_path / "none")
