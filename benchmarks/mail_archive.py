"""Mail as it lies on disk: a stream of raw messages from a tarball, a folder or a CSV.

A stream yields ``(path, load)`` and reads the bytes of a message only when ``load()`` is called, so that a sampler can
pass over most of a large archive. The path is the one inside the mail folder (``user/folder/7.``) whatever holds it:
the tarball, the unpacked folder and the CSV of the same mail give the same paths.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import gzip
import lzma
import os
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from memdefense.errors import DataError, hint

Stream = Iterator[tuple[str, Callable[[], bytes]]]


def stream(path: Path) -> Stream:
    """The messages of a tarball, of an unpacked mail folder, or of a CSV with the columns ``file`` and ``message``.

    Raises:
        DataError: the file is neither, or it breaks off.
    """
    if path.is_dir():
        return _folder(path)
    if path.name.lower().endswith((".csv", ".csv.gz")):
        return _csv(path)
    if tarfile.is_tarfile(path):
        return _tarball(path)
    raise DataError(
        f"{path} is neither a tar archive, nor a mail folder, nor a CSV with the columns file,message; "
        "give the CMU .tar.gz as it was published, its unpacked folder, or the CSV (its name must end in .csv)"
    )


def _inside(path: str) -> str:
    """The path below the mail folder, with forward slashes."""
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
    if "maildir" in parts:
        parts = parts[parts.index("maildir") + 1 :]
    return "/".join(parts)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what goes wrong in reading a file into the user's error."""
    try:
        yield
    except (tarfile.TarError, csv.Error, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path} cannot be read to its end: {error}; check the file, or download it again") from error


def _tarball(path: Path) -> Stream:
    # Random access, though we only go forward: tarfile's own stream mode takes a cut-off file for a complete one.
    with _reading(path), tarfile.open(path, "r:*") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # the archive would otherwise remember every member it has passed
            source = archive.extractfile(member) if member.isfile() else None
            if source is not None:
                yield _inside(member.name), _reading(path)(source.read)


def _folder(path: Path) -> Stream:
    for folder, _, names in os.walk(path):
        for name in names:
            file = Path(folder, name)
            if file.is_file() and not file.is_symlink():
                yield _inside(str(file.relative_to(path))), _reading(path)(file.read_bytes)


def _csv(path: Path) -> Stream:
    limit = csv.field_size_limit(sys.maxsize)
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        # Bytes that are no UTF-8 pass through as surrogates and come out as the bytes they were.
        with _reading(path), opened(path, "rt", newline="", encoding="utf-8", errors="surrogateescape") as lines:
            rows = csv.DictReader(lines)
            for column in ("file", "message"):
                if column not in (rows.fieldnames or ()):
                    raise DataError(
                        f"{path} has no column '{column}'{hint(column, rows.fieldnames or ())}; "
                        "the mail CSV has the columns file,message"
                    )
            for row in rows:
                raw = (row["message"] or "").encode("utf-8", "surrogateescape")
                yield _inside(row["file"] or ""), functools.partial(bytes, raw)
    finally:
        csv.field_size_limit(limit)
