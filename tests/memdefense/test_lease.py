from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from memdefense import lease as module
from memdefense.errors import StoreError
from memdefense.lease import Lease


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lease.json"


def _write(path: Path, *, host: str, pid: int, born: str, silent: float = 0.0) -> None:
    path.write_text(json.dumps({"pid": pid, "born": born, "host": host, "token": "theirs"}))
    os.utime(path, (time.time() - silent,) * 2)


def _dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_file_says_who_is_at_work_and_goes_with_him(path: Path) -> None:
    with Lease(path) as lease:
        assert json.loads(path.read_text())["pid"] == os.getpid()
        assert Lease(path).held()
        lease.check()
    assert list(path.parent.iterdir()) == []
    assert not Lease(path).held()


def test_dead_process_is_taken_over_at_once(path: Path) -> None:
    _write(path, host=socket.gethostname(), pid=_dead_process(), born="1")
    assert not Lease(path).held()
    started = time.monotonic()
    with Lease(path) as lease:
        lease.check()
    assert time.monotonic() - started < 2


def test_process_number_used_again_is_not_the_holder(path: Path) -> None:
    _write(path, host=socket.gethostname(), pid=os.getpid(), born="long ago")
    assert not Lease(path).held()
    with Lease(path):
        pass


def test_holder_on_another_host_is_dead_after_its_silence(path: Path) -> None:
    _write(path, host="elsewhere.example", pid=1, born="1", silent=module._EXPIRES / 2)
    assert Lease(path).held()
    _write(path, host="elsewhere.example", pid=1, born="1", silent=module._EXPIRES + 5)
    assert not Lease(path).held()
    with Lease(path) as lease:
        lease.check()


def test_lease_left_empty_by_a_crash_expires(path: Path) -> None:
    path.write_text("")
    assert Lease(path).held()
    os.utime(path, (time.time() - module._EXPIRES - 5,) * 2)
    assert not Lease(path).held()
    with Lease(path) as lease:
        lease.check()


def test_living_holder_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POLL", 0.02)
    order: list[str] = []

    def second() -> None:
        with Lease(path):
            order.append("second")

    with Lease(path):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join(timeout=10)
    assert order == ["first", "second"]


def test_heartbeat_keeps_the_lease_fresh(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BEAT", 0.05)
    with Lease(path):
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert time.time() - path.stat().st_mtime < 10


def test_lost_lease_is_noticed_and_the_other_one_is_left_alone(path: Path) -> None:
    with Lease(path) as lease:
        path.unlink()
        _write(path, host="elsewhere.example", pid=1, born="1")
        with pytest.raises(StoreError, match="another run took over"):
            lease.check()
    assert json.loads(path.read_text())["token"] == "theirs"
