from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from memdefense.bench import Bench
from memdefense.errors import MemdefenseError, StoreError
from memdefense.lease import Lease
from memdefense.store import Artifact, DamagedError, Store
from memdefense.work import retried


@pytest.fixture
def box(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


class Maker:
    """Writes one file and counts how often it was asked."""

    def __init__(self, text: str = "content") -> None:
        self.text, self.calls = text, 0

    def __call__(self, folder: Path) -> Mapping[str, object]:
        self.calls += 1
        (folder / "inner").mkdir(exist_ok=True)
        (folder / "inner" / "file.txt").write_text(self.text)
        return {"calls": self.calls}


def test_second_call_reuses_what_the_first_made(box: Store) -> None:
    maker = Maker()
    first = box.make("kind", {"a": 1}, maker)
    again = box.make("kind", {"a": 1}, maker)
    assert maker.calls == 1
    assert again == first
    assert again.file("inner/file.txt").read_text() == "content"
    assert again.facts == {"calls": 1}
    assert [event["what"] for event in box.events] == ["made", "reused"]


@pytest.mark.parametrize(
    ("kind", "parts"),
    [("other", {"a": 1, "b": [1, 2]}), ("kind", {"a": 2, "b": [1, 2]}), ("kind", {"a": 1, "b": [2, 1]}), ("kind", {})],
)
def test_any_other_part_is_another_key(box: Store, kind: str, parts: Mapping[str, object]) -> None:
    maker = Maker()
    one = box.make("kind", {"a": 1, "b": [1, 2]}, maker)
    other = box.make(kind, parts, maker)
    assert maker.calls == 2
    assert one.key != other.key


def test_order_of_the_parts_is_no_part_of_the_key(box: Store) -> None:
    maker = Maker()
    assert box.make("kind", {"a": 1, "b": 2}, maker) == box.make("kind", {"b": 2, "a": 1}, maker)
    assert maker.calls == 1


def test_failed_maker_leaves_no_artifact_but_its_work(box: Store) -> None:
    def fails(folder: Path) -> NoReturn:
        (folder / "half").write_text("done so far")
        raise ValueError("midway")

    with pytest.raises(ValueError, match="midway"):
        box.make("kind", {"a": 1}, fails)
    assert list(box.manifests()) == []

    def resumes(folder: Path) -> Mapping[str, object]:
        return {"found": (folder / "half").read_text()}

    made = box.make("kind", {"a": 1}, resumes)
    assert made.facts == {"found": "done so far"}
    assert list((box.folder / "work").iterdir()) == []
    assert list((box.folder / "leases").iterdir()) == []


def test_damaged_file_is_noticed_dropped_and_made_again(box: Store) -> None:
    maker = Maker()
    made = box.make("kind", {"a": 1}, maker)
    (made.folder / "inner" / "file.txt").write_text("cOntent")  # same length, other content
    with pytest.raises(DamagedError, match=r"inner/file\.txt"):
        made.file("inner")
    text = retried(Bench(box), lambda: box.make("kind", {"a": 1}, maker).file("inner/file.txt").read_text())
    assert text == "content"
    assert maker.calls == 2


def test_damage_that_never_ends_becomes_an_error_for_the_user(box: Store) -> None:
    def task() -> NoReturn:
        raise DamagedError("0" * 64, "weights")

    with pytest.raises(MemdefenseError, match="weights"):
        retried(Bench(box), task)


def test_missing_file_is_made_again(box: Store) -> None:
    maker = Maker()
    made = box.make("kind", {"a": 1}, maker)
    (made.folder / "inner" / "file.txt").unlink()
    with pytest.raises(DamagedError):
        made.file("inner/file.txt")
    assert box.make("kind", {"a": 1}, maker).file("inner/file.txt").read_text() == "content"
    assert maker.calls == 2


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"files": 3}', '{"files": {}}', "\x00\xff"])
def test_corrupt_manifest_is_made_again(box: Store, content: str) -> None:
    maker = Maker()
    made = box.make("kind", {"a": 1}, maker)
    (made.folder / "artifact.json").write_bytes(content.encode("latin-1"))
    assert box.make("kind", {"a": 1}, maker).facts == {"calls": 2}


def _two(script: str, folder: Path) -> list[subprocess.Popen[str]]:
    command = [sys.executable, "-c", script, str(folder)]
    return [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]


def test_two_processes_make_one_key_once(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from memdefense.store import Store
store = Store(Path(sys.argv[1]) / "store")
def maker(folder):
    with (Path(sys.argv[1]) / "calls").open("a") as calls:
        calls.write("x")
    time.sleep(1.0)
    (folder / "file").write_text("content")
    return {}
for number in range(3):
    print(store.make("kind", {"a": number}, maker).file("file").read_text())
"""
    done = [process.communicate(timeout=60) for process in _two(script, tmp_path)]
    assert [out for out, _ in done] == ["content\n" * 3] * 2, done
    assert (tmp_path / "calls").read_text() == "xxx"


def test_killed_maker_is_resumed_in_its_work_folder(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from memdefense.store import Store
def maker(folder):
    (folder / "step-1").write_text("first half")
    print("half", flush=True)
    time.sleep(60)
Store(Path(sys.argv[1])).make("kind", {"a": 1}, maker)
"""
    folder = tmp_path / "store"
    process = subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    store = Store(folder)
    assert list(store.manifests()) == []
    started = time.monotonic()
    made = store.make("kind", {"a": 1}, lambda work: {"found": (work / "step-1").read_text()})
    assert made.facts == {"found": "first half"}
    assert time.monotonic() - started < 5  # a dead process is known at once, not by its silence


def test_clear_work_spares_what_a_living_process_makes(box: Store) -> None:
    for name in ("dead", "alive"):
        (box.folder / "work" / name).mkdir()
        (box.folder / "work" / name / "file").write_text("12345")
    with Lease(box.folder / "leases" / "alive.json"):
        gone = {"pid": os.getpid(), "born": "long ago", "host": socket.gethostname(), "token": "theirs"}
        (box.folder / "leases" / "claim-of-the-dead.json").write_text(json.dumps(gone))
        assert box.clear_work() == 5
        assert [path.name for path in (box.folder / "work").iterdir()] == ["alive"]
        assert [path.name for path in (box.folder / "leases").iterdir()] == ["alive.json"]


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOENT, errno.ELOOP])
def test_unwritable_store_names_the_way_out(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, *_: object, **__: object) -> NoReturn:
        raise OSError(code, os.strerror(code), str(self))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(StoreError, match=rf"(?s)store.*{os.strerror(code)}.*--store"):
        Store(tmp_path / "store")


def test_store_in_place_of_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="--store"):
        Store(tmp_path / "file")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "work").write_text("")
    with pytest.raises(StoreError, match="--store"):
        Store(tmp_path / "folder")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 17123776 vs 17123664"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_full_disk_is_told_as_such_however_it_is_wrapped(box: Store, error: Exception) -> None:
    def maker(folder: Path) -> NoReturn:
        raise error

    with pytest.raises(StoreError, match=r"cannot write to the store.*(space|quota).*--store"):
        box.make("kind", {"a": 1}, maker)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_torch_on_a_full_disk_is_told_as_such(box: Store) -> None:
    def maker(folder: Path) -> dict[str, object]:
        torch.save({"weights": torch.zeros(1_000_000)}, "/dev/full")
        return {}

    with pytest.raises(StoreError, match=r"cannot write to the store.*--store"):
        box.make("kind", {"a": 1}, maker)


def test_full_disk_while_the_manifest_is_written(box: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = Path.write_text

    def full(self: Path, data: str, *args: str | None) -> int:
        if self.name == "artifact.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return genuine(self, data, *args)

    maker = Maker()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with pytest.raises(StoreError, match="memdefense cache prune"):
            box.make("kind", {"a": 1}, maker)
    assert box.make("kind", {"a": 1}, maker).facts == {"calls": 2}


def test_other_errors_of_a_maker_are_its_own(box: Store) -> None:
    def maker(folder: Path) -> NoReturn:
        raise FileNotFoundError(errno.ENOENT, "no such file")

    with pytest.raises(FileNotFoundError):
        box.make("kind", {"a": 1}, maker)


def test_folder_is_readable_by_its_owner_alone(box: Store) -> None:
    made = box.make("kind", {"a": 1}, Maker())
    assert box.folder.stat().st_mode & 0o777 == 0o700
    assert made.folder.stat().st_mode & 0o777 == 0o700


def test_manifest_says_what_it_was_made_from(box: Store) -> None:
    made: Artifact = box.make("kind", {"a": 1}, Maker())
    (manifest,) = box.manifests()
    assert manifest["parts"] == {"a": 1}
    assert manifest["key"] == made.key
    assert int(str(manifest["bytes"])) > len("content")
    assert json.loads((made.folder / "artifact.json").read_text())["kind"] == "kind"
