"""The user's own documents, from JSON Lines, JSON, CSV, Parquet or text files."""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from memdefense.corpus import Benchmark, Corpus
from memdefense.errors import DataError, SpecError, hint

if TYPE_CHECKING:
    from memdefense.train import TrainConfig

    from .real import Raw

_READERS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
}


@dataclasses.dataclass(frozen=True)
class JSONL(Benchmark):
    """A file or folder of texts, treated as real mail is: split by author, secrets found by two detectors.

    Without an author field every document is its own author, except that near-duplicates stay together. About a fifth
    is held out. Members and non-members are not exchangeable. Training is that of the RMFT paper unless flags say
    otherwise.

    Attributes:
        data: a ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file, a ``.txt`` file (a document per paragraph), or a
            folder of files of one of these kinds (text files: a document each).
        text_field: the field or column with the text; text files have none.
        author_field: the one with the author; "" is none.
        documents: training documents wanted, a quarter as many held out; 0 uses all.
        canaries: planted notes, about half of them put in.
        seed: of the sample, the split and the canaries; not the run's seed.
    """

    name: ClassVar[str] = "jsonl"
    summary: ClassVar[str] = "your own documents: --data FILE --text-field NAME [--author-field NAME]"
    version: ClassVar[str] = "1"

    data: str = ""
    text_field: str = "text"
    author_field: str = ""
    documents: int = 0
    canaries: int = 0
    seed: int = 0

    def corpus(self) -> Corpus:
        """Reads the documents, splits them and finds their secrets; data without any PII has none.

        Raises:
            DataError: the data is missing, broken, empty, lacks a field, or holds fewer documents than asked for.
        """
        from memdefense.similar import near_duplicates

        from .real import build, sample

        if self.documents < 0 or self.canaries < 0:
            raise SpecError(
                f"jsonl: documents={self.documents}, canaries={self.canaries}: neither can be negative; "
                "documents=0 uses all"
            )
        with tempfile.TemporaryDirectory(prefix="memdefense-") as cache:
            size = 3 * self.documents + 1000 if self.documents else 0
            taken, counts = sample(self.read(cache), size=size, seed=self.seed)
        if not taken:
            raise DataError(
                f"jsonl: {self.data} has no document with text in '{self.text_field}' ({counts['read']:,} were read)"
            )
        units = None
        if not self.author_field:
            units = [str(label) for label in near_duplicates([raw.text for raw in taken], threshold=0.8)]
        return build(
            taken, documents=self.documents, canaries=self.canaries, seed=self.seed, counts=counts, units=units
        )

    @property
    def config(self) -> TrainConfig:
        """The RMFT paper's training."""
        from .real import rmft_training

        return rmft_training()

    def read(self, cache: str) -> Iterator[tuple[str, Callable[[], Raw]]]:
        """Keys and documents; the copy that `datasets` makes goes to ``cache``, not where it would outlive the run."""
        import datasets

        from .real import quiet

        reader, files = _files(self.data)
        if reader != "parquet" and (place := _not_utf8(files)):
            raise DataError(
                f"jsonl: {place} is not UTF-8; convert the file first, such as with iconv -f latin1 -t utf-8"
            )
        options = {}
        if reader == "text":
            options["sample_by"] = "document" if Path(self.data).expanduser().is_dir() else "paragraph"
        try:
            with quiet():
                rows = datasets.load_dataset(reader, data_files=files, split="train", cache_dir=cache, **options)
        except Exception as error:  # the library raises many types, of its own and of what it rests on
            cause = error.__cause__ or error
            place = _broken_line(files) if reader == "json" else ""
            raise DataError(
                f"jsonl: {place or self.data} cannot be read as {reader}: {cause}; mend or remove that part"
            ) from error
        field = "text" if reader == "text" else self.text_field
        for wanted, option in ((field, "--text-field"), (self.author_field, "--author-field")):
            if wanted and wanted not in rows.column_names:
                raise DataError(
                    f"jsonl: {self.data} has no field '{wanted}'{hint(wanted, rows.column_names)}; "
                    f"name it with {option}"
                )
        kind = str(getattr(rows.features[field], "dtype", rows.features[field]))
        if kind not in ("string", "large_string", "null"):
            what = "text in some rows and something else in others" if kind.startswith("Json") else f"{kind}, not text"
            raise DataError(f"jsonl: field '{field}' of {self.data} holds {what}; name another with --text-field")
        columns = [field, self.author_field] if self.author_field else [field]
        for number, row in enumerate(rows.select_columns(columns)):
            author = row[self.author_field] if self.author_field else None
            yield str(number), functools.partial(_usable, str(number), row[field], author)


def _broken_line(files: Sequence[str]) -> str:
    """Where the first line of JSON Lines stands that is no JSON; empty if there is none."""
    for file in files:
        if Path(file).suffix.lower() == ".json":  # may be one value over many lines
            continue
        with Path(file).open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    json.loads(line if line.strip() else "0")
                except ValueError:
                    return f"line {number} of {file}"
    return ""


def _not_utf8(files: Sequence[str]) -> str:
    """Where the first line stands that is no UTF-8; empty if there is none."""
    for file in files:
        with Path(file).open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError:
                    return f"line {number} of {file}"
    return ""


def _usable(key: str, text: str | None, author: object) -> Raw:
    from .real import Raw

    text = (text or "").replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    return Raw(key, text, author="" if author is None else str(author), rejected="" if text.strip() else "empty")


def _files(data: str) -> tuple[str, list[str]]:
    """The reader of `datasets` that the data needs, and its files in order.

    Raises:
        DataError: nothing is there, or nothing of one known kind.
    """
    known = ", ".join(_READERS)
    if not data:
        raise DataError(f"jsonl needs data: pass a file or folder with --data PATH ({known})")
    path = Path(data).expanduser()
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in _READERS)
        kinds = sorted({_READERS[file.suffix.lower()] for file in found})
        if len(kinds) != 1:
            what = f"files of several kinds ({', '.join(kinds)})" if kinds else f"no file that ends in {known}"
            raise DataError(f"jsonl: the folder {path} holds {what}; it must hold files of one kind")
    elif not path.exists():
        raise DataError(f"jsonl: there is no file or folder '{data}'; pass the path of one that exists")
    elif path.suffix.lower() not in _READERS:
        raise DataError(f"jsonl: {path} has an unknown ending '{path.suffix}'; known are {known}")
    else:
        found, kinds = [path], [_READERS[path.suffix.lower()]]
    full = [str(file) for file in found if file.stat().st_size]
    if not full:
        raise DataError(f"jsonl: {path} is empty")
    return kinds[0], full
