"""One maker per artifact: a lease with a heartbeat, taken over when its holder is dead."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path

from memdefense.errors import StoreError

logger = logging.getLogger(__name__)

_BEAT = 5.0  # seconds between heartbeats
_EXPIRES = 60.0  # a holder silent for this long is dead: a machine lost, a process stopped
_POLL = 0.2


class Lease:
    """A file that says who is at work. Entering waits for the holder, or takes over from a dead one; once only.

    On the same host a dead holder is known by its process; elsewhere by its silence.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Lease:
        told = False
        while not self.take():
            holder = self._read()
            if holder is not None and not told:
                where = (holder.get("pid"), holder.get("host"))
                logger.warning("waiting for process %s on %s, which makes the same", *where)
                told = True
            time.sleep(_POLL)
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def take(self) -> bool:
        """Takes it now, from a dead holder too; False where a living one has it."""
        if not self._take():
            holder = self._read()
            if holder is None or not self._dead(holder):
                return False
            logger.warning("taking over the work of process %s, which is gone", holder.get("pid"))
            self._clear(holder.get("token"))
            if not self._take():
                return False
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return True

    def leave(self) -> None:
        """Gives it up."""
        self._stop.set()
        if self._thread:
            self._thread.join()
        self._clear(self._token)

    def check(self) -> None:
        """Raises StoreError where the lease went to another run meanwhile."""
        holder = self._read()
        if holder is None or holder.get("token") != self._token:
            raise StoreError(
                "another run took over this work, since this one stood still for too long; "
                "run again to reuse what it made"
            )

    def held(self) -> bool:
        """Whether a living process holds it."""
        holder = self._read()
        return holder is not None and not self._dead(holder)

    def sweep(self) -> None:
        """Removes it where its holder is dead: nobody may ever come for the work again."""
        holder = self._read()
        if holder is not None and self._dead(holder):
            self._clear(holder.get("token"))

    def _take(self) -> bool:
        # Written aside and linked into place, so that nobody ever reads half a lease.
        mine = self._path.with_suffix(f".{self._token}")
        me = {"pid": os.getpid(), "born": _born(os.getpid()), "host": socket.gethostname(), "token": self._token}
        try:
            mine.write_text(json.dumps(me))
            os.link(mine, self._path)
        except FileExistsError:
            return False
        finally:
            mine.unlink(missing_ok=True)
        return True

    def _read(self) -> dict[str, object] | None:
        try:
            silent = time.time() - self._path.stat().st_mtime
            return {**_content(self._path), "silent": silent}
        except FileNotFoundError:
            return None

    def _dead(self, holder: dict[str, object]) -> bool:
        pid = holder.get("pid")
        if holder.get("host") == socket.gethostname() and isinstance(pid, int):
            return _born(pid) != holder.get("born")
        silent = holder["silent"]
        return isinstance(silent, float) and silent > _EXPIRES

    def _clear(self, token: object) -> None:
        """Removes the lease if it is still the one with this token."""
        aside = self._path.with_suffix(f".{uuid.uuid4().hex}")
        with contextlib.suppress(FileNotFoundError):
            self._path.rename(aside)
            if _content(aside).get("token") != token:
                # Someone else took it between our look and our rename: theirs goes back.
                with contextlib.suppress(FileExistsError):
                    os.link(aside, self._path)
            aside.unlink()

    def _beat(self) -> None:
        while not self._stop.wait(_BEAT):
            with contextlib.suppress(OSError):
                os.utime(self._path)


def _content(path: Path) -> dict[str, object]:
    """What a lease says; nothing where a crash of the machine left it empty or garbled."""
    try:
        content = json.loads(path.read_text())
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _born(pid: int) -> str:
    """When a process started, as the system writes it: a number reused by another process does not match. "" = gone."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else fields[18]
    except (OSError, IndexError):
        pass
    if Path("/proc/self").exists():
        return ""
    try:  # systems without /proc
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        return "alive"
    return "alive"
