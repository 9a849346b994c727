from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import datasets
import pytest

from memdefense.benchmarks.jsonl import JSONL
from memdefense.errors import DataError, SpecError
from memdefense.similar import near_duplicates


def rows(number: int = 100) -> list[dict[str, str]]:
    return [
        {
            "body": f"Note {n}: " + " ".join(f"w{n * step % 997}" for step in range(3, 30)) + f"\nask u{n}@corp.com",
            "who": f"author {n % 12}",
        }
        for n in range(number)
    ]


def write_jsonl(path: Path, records: Sequence[object]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_every_format_gives_the_same_corpus(tmp_path: Path) -> None:
    first = JSONL(data=write_jsonl(tmp_path / "a.jsonl", rows()), text_field="body", author_field="who").corpus()
    assert len(first.train) + len(first.held_out) == 100
    assert 10 <= len(first.held_out) <= 30
    assert not {d.author for d in first.train} & {d.author for d in first.held_out}
    assert first.kinds == ("email",)
    assert sum(secret.member for secret in first.secrets) == len(first.train)
    (tmp_path / "a.json").write_text(json.dumps(rows()))
    with (tmp_path / "a.csv").open("w", newline="") as lines:
        table = csv.DictWriter(lines, ["who", "body"])
        table.writeheader()
        table.writerows(rows())
    datasets.Dataset.from_list(rows()).to_parquet(str(tmp_path / "a.parquet"))
    for name in ("a.json", "a.csv", "a.parquet"):
        again = JSONL(data=str(tmp_path / name), text_field="body", author_field="who").corpus()
        assert again.digest() == first.digest(), name


def test_text_files_and_paragraphs(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    for n, row in enumerate(rows(40)):
        (tmp_path / "notes" / f"{n:03}.txt").write_bytes(row["body"].replace("\n", "\r\n").encode())
    folder = JSONL(data=str(tmp_path / "notes")).corpus()
    (tmp_path / "all.txt").write_text("\n\n".join(row["body"] for row in rows(40)))
    file = JSONL(data=str(tmp_path / "all.txt")).corpus()
    for made in (folder, file):
        texts = sorted(document.text.strip() for document in (*made.train, *made.held_out))
        assert texts == sorted(row["body"] for row in rows(40))


def test_near_duplicates_share_a_side_without_authors(tmp_path: Path) -> None:
    records = [{"text": row["body"]} for row in rows(60)]
    copies = [{"text": f"{row['body']} again"} for row in rows(30)]
    made = JSONL(data=write_jsonl(tmp_path / "a.jsonl", [*records, *copies])).corpus()
    labels = near_duplicates([d.text for d in (*made.train, *made.held_out)])
    assert len(set(labels)) == 60
    assert not set(labels[: len(made.train)]) & set(labels[len(made.train) :])
    assert made.counts["near_duplicates"] == 0
    assert len(made.train) + len(made.held_out) == 90
    assert len({d.author for d in made.train}) == len(made.train)


def test_documents_seed_and_canaries(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", rows())
    made = JSONL(data=data, text_field="body", documents=40).corpus()
    assert (len(made.train), len(made.held_out)) == (40, 10)
    assert JSONL(data=data, text_field="body", documents=40).corpus().digest() == made.digest()
    assert JSONL(data=data, text_field="body", documents=40, seed=1).corpus().digest() != made.digest()
    planted = JSONL(data=data, text_field="body", documents=40, canaries=10).corpus()
    assert len(planted.canaries) == 10
    assert len(planted.train) == 40 + sum(canary.copies for canary in planted.canaries if canary.member)
    with pytest.raises(DataError, match=r"400 training documents were asked for, but the data has 100 usable") as told:
        JSONL(data=data, text_field="body", documents=400).corpus()
    fits = int(str(told.value).partition("pass documents=")[2].split()[0])
    made = JSONL(data=data, text_field="body", documents=fits).corpus()
    assert fits == len(made.train)
    assert len(made.held_out) >= fits / 8
    with pytest.raises(SpecError, match="neither can be negative"):
        JSONL(data=data, documents=-1).corpus()


def test_data_without_pii_has_no_secrets(tmp_path: Path) -> None:
    texts = [{"text": row["body"].rpartition("\n")[0]} for row in rows(30)]
    made = JSONL(data=write_jsonl(tmp_path / "a.jsonl", texts)).corpus()
    assert (made.secrets, made.kinds) == ((), ())


def test_rows_without_text_are_skipped_and_counted(tmp_path: Path) -> None:
    odd = [{"body": None, "who": "x"}, {"body": " \n", "who": None}, {"who": "y"}]
    made = JSONL(
        data=write_jsonl(tmp_path / "a.jsonl", [*rows(), *odd]), text_field="body", author_field="who"
    ).corpus()
    assert made.counts["empty"] == 3
    assert len(made.train) + len(made.held_out) == 100


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", rows())
    for broken, told in {
        JSONL(): "pass a file or folder with --data PATH",
        JSONL(data="nowhere.jsonl"): "no file or folder 'nowhere.jsonl'",
        JSONL(data=data, text_field="bodi"): "no field 'bodi'; did you mean 'body'.*--text-field",
        JSONL(data=data, text_field="body", author_field="wo"): "no field 'wo'; did you mean 'who'.*--author-field",
        JSONL(data=write_jsonl(tmp_path / "n.jsonl", [{"text": 3}])): "holds int64, not text",
        JSONL(data=write_jsonl(tmp_path / "mixed.jsonl", [{"text": "a"}, {"text": 3}])): "something else in others",
        JSONL(data=write_jsonl(tmp_path / "none.jsonl", [{"text": None}])): "no document with text in 'text'",
        JSONL(data=write_jsonl(tmp_path / "one.jsonl", [{"text": "alone"}])): "two authors at least",
        JSONL(data=write_jsonl(tmp_path / "empty.jsonl", [])): r"empty\.jsonl is empty",
        JSONL(data=write_jsonl(tmp_path / "data.xml", [])): "unknown ending '.xml'",
    }.items():
        with pytest.raises(DataError, match=told):
            broken.corpus()
    (tmp_path / "broken.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    with pytest.raises(DataError, match=r"line 2 of .*broken\.jsonl cannot be read as json"):
        JSONL(data=str(tmp_path / "broken.jsonl")).corpus()
    for name in ("latin.jsonl", "latin.csv", "latin.txt"):
        (tmp_path / name).write_bytes(b'{"text": "fine"}\n{"text": "caf\xe9"}\n')
        with pytest.raises(DataError, match=rf"line 2 of .*{name} is not UTF-8; convert the file"):
            JSONL(data=str(tmp_path / name)).corpus()
    (tmp_path / "mixed").mkdir()
    with pytest.raises(DataError, match="no file that ends in"):
        JSONL(data=str(tmp_path / "mixed")).corpus()
    (tmp_path / "mixed" / "a.txt").write_text("x")
    (tmp_path / "mixed" / "a.csv").write_text("x")
    with pytest.raises(DataError, match="files of several kinds"):
        JSONL(data=str(tmp_path / "mixed")).corpus()


def test_nothing_is_left_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    JSONL(data=write_jsonl(tmp_path / "a.jsonl", rows(30)), text_field="body").corpus()
    assert not list((tmp_path / "tmp").iterdir())
