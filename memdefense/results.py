"""Rows with provenance, in a folder fit to be published: no value of a secret is ever in it."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import importlib.metadata
import json
import math
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from memdefense.errors import DataError, MemdefenseError
from memdefense.score import Score, Scores

SCHEMA = 1
Row = dict[str, Any]
# What a run writes, whole or half, which another process of it may be doing right now; and what a system hides.
_OWN = ("results.jsonl", "outcomes", "config.json", ".")


@dataclasses.dataclass(frozen=True)
class Results:
    """What a run found.

    Attributes:
        points: one row per operating point, attack and seed.
        entries: one row per defense and attack.
        folder: where they were written, if anywhere.
    """

    points: Sequence[Row]
    entries: Sequence[Row]
    folder: Path | None = None

    @property
    def failed(self) -> list[Row]:
        """The rows of pairs that failed."""
        return [row for row in self.points if row["status"] == "error"]


class Writer:
    """An append-only ``results.jsonl``; a row whose key is there already is not written again.

    Args:
        folder: made if missing; the last line of an interrupted run, if it is cut off, is removed.

    Raises:
        DataError: it cannot be written, or holds other files and no results.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "results.jsonl"
        there = folder.iterdir() if folder.is_dir() and not self._path.exists() else ()
        if strange := sorted(path.name for path in there if not path.name.startswith(_OWN)):
            raise DataError(
                f"{folder} holds no results but other files ({strange[0]}); choose a folder of its own with -o"
            )
        self._made = [each for each in (folder / "outcomes", folder, *folder.parents) if not each.exists()]
        with self._writing():
            (folder / "outcomes").mkdir(parents=True, exist_ok=True)
            if self._path.exists():
                whole = self._path.read_bytes()
                if whole and not whole.endswith(b"\n"):
                    os.truncate(self._path, whole.rfind(b"\n") + 1)
            self._path.touch()
        self._seen = {row.get("key") for row in read_rows(folder)}

    def row(self, row: Row) -> None:
        """Appends one row, whole or not at all."""
        if row["key"] in self._seen:
            return
        self._seen.add(row["key"])
        line = (json.dumps(plain(row)) + "\n").encode()
        with self._writing():
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                if os.write(descriptor, line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(descriptor)

    def forget(self) -> None:
        """Takes the folders made here away again, where they are empty: what they were for cannot even begin."""
        if not self._seen and not self._path.stat().st_size:
            self._path.unlink()
            for folder in self._made:
                with contextlib.suppress(OSError):  # something of the user's is in it
                    folder.rmdir()

    def text(self, name: str, content: str) -> None:
        """Writes a file beside the rows, by one rename."""
        self.file(name, lambda path: path.write_text(content))

    def file(self, name: str, make: Callable[[Path], object]) -> None:
        """Has a file beside the rows made under another name, and gives it its own."""
        aside = self.folder / f"{name}.{os.getpid()}"
        try:
            with self._writing():
                make(aside)
                aside.replace(self.folder / name)
        finally:
            aside.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"cannot write results to {self.folder}: {error.strerror}; what was measured is in the store. Choose "
                "another -o/--output, or free some space, and run the same command again"
            ) from error


def read_rows(folder: Path) -> Iterator[Row]:
    """The rows of a results folder or of one ``.jsonl`` file.

    Raises:
        DataError: there are none, or a line is broken.
    """
    path = folder / "results.jsonl" if folder.is_dir() else folder
    if not path.is_file():
        raise DataError(f"no results at {folder}: give a folder that memdefense run wrote, or a .jsonl file")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number}, is not JSON: {error}") from error
            if not isinstance(row, dict) or "row" not in row:
                raise DataError(f"{path}, line {number}, is no result row")
            yield row


def check_new(folder: Path) -> None:
    """Raises unless a folder is not there yet, or empty.

    Raises:
        DataError: it holds something, or is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is there already; choose a new folder with -o, nothing is overwritten")


def latest(rows: Iterable[Row]) -> list[Row]:
    """Rows of points without those that a later row of the same point, attack and seed replaces, in their order."""
    found = list(rows)
    last = {place_of(row): number for number, row in enumerate(found)}
    return [row for number, row in enumerate(found) if last[place_of(row)] == number]


def place_of(row: Row) -> tuple[object, ...]:
    """Which row of its benchmark and model a point's row is."""
    arm = row["defense_label"], row["defense_spec"], row["attack_spec"], row["seed"], row["point"]
    return *arm, *detector_of(row)


def detector_of(row: Row) -> tuple[str, float]:
    """The defender's detector, by its spec and its recall; rows of older versions may not name them."""
    return row.get("detector_spec") or "patterns", row.get("detector_recall") or 1.0


def outcomes_path(folder: Path, row: Row) -> Path:
    """Where a results folder keeps the outcomes of a point's row."""
    return folder / outcomes_name(row["recipe"])


def outcomes_name(recipe: str) -> str:
    """The file of a recipe's outcomes in a results folder."""
    return f"outcomes/{recipe[:32]}.jsonl"


def score_rows(scores: Scores, headline: str) -> dict[str, dict[str, object]]:
    """Scores as a row writes them, the headline under its own name."""
    named: dict[str, Score] = {headline: scores.headline, **scores.beside}
    return {
        name: {
            "value": score.value,
            "low": score.low,
            "high": score.high,
            "n": score.n,
            "events": score.events,
            "higher_is_better": score.higher_is_better,
        }
        for name, score in named.items()
    }


def model_free_line(area: Mapping[str, Any]) -> str:
    """What the AUC of a classifier that sees texts and no model says of every membership number beside it.

    Args:
        area: its score as `score_rows` gives it.
    """
    sides = [area.get(side) for side in ("value", "low", "high")]
    if any(side is None or math.isnan(side) for side in sides):
        return "model-free baseline: not known, since it takes members and non-members"
    value, low, high = (float(side or 0) for side in sides)
    verdict = "not told from chance"
    if low > 0.5:
        verdict = "the split gives members away: no membership number here can be trusted"
    elif high < 0.5:  # what it learned of some texts misleads it about others
        verdict = "worse than chance: the texts are of groups that differ, and membership numbers may come of that"
    return f"model-free baseline: AUC {value:.2f} [{low:.2f}, {high:.2f}], {verdict}"


def plain(value: object) -> object:
    """JSON values only: a number that is not finite becomes null, a tuple a list."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    return value


def provenance(device: str, threads: int, dtype: str, model: str) -> dict[str, Any]:
    """Where and with what a number was made; none of it identifies the number.

    Args:
        device: ``cpu`` or ``cuda``.
        threads: of torch.
        dtype: what products are in; of ``auto``, what it comes to on this machine.
        model: a name.
    """
    packages = ("memdefense", "torch", "transformers", "datasets", "peft", "accelerate", "tokenizers", "numpy", "scipy")
    return {
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "commit": _commit(),
        "device": device,
        "threads": threads,
        "dtype": dtype,
        "model": model,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def made_with(made: Row, versions: Mapping[str, str]) -> Row:
    """A provenance with the versions of further distributions, those of plugins."""
    return {**made, "versions": {**made["versions"], **versions}}


def _commit() -> str:
    """The commit of the checkout this package runs from; "" for an installed one."""
    home = Path(__file__).resolve().parent.parent
    if not (home / ".git").exists():
        return ""
    try:
        done = subprocess.run(["git", "-C", str(home), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def say(error: BaseException) -> str:
    """An error as a row and the terminal show it."""
    return str(error) if isinstance(error, MemdefenseError) else f"{type(error).__name__}: {error}"
