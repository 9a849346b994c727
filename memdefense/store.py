"""The content-addressed store: nothing is computed twice, and nothing stale is ever reused.

An artifact is a folder addressed by its key. It is made in a work folder under a lease, and appears under its key by
one rename, complete or not at all. What a killed maker left in its work folder, the next one picks up.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from memdefense.errors import StoreError
from memdefense.lease import Lease
from memdefense.recipe import Parts, digest

logger = logging.getLogger(__name__)

Facts = Mapping[str, object]
"""What a maker reports of its work: JSON values (notes, cost, what the files hold)."""

_MANIFEST = "artifact.json"


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A finished piece of work.

    Attributes:
        key: its address.
        folder: its files; read them through `file`, which notices damage.
        facts: what its maker reported.
    """

    key: str
    folder: Path
    facts: Facts
    files: Mapping[str, str]

    def file(self, name: str) -> Path:
        """The path of one file or folder, its content checked against the digest taken when it was made.

        Raises:
            DamagedError: the content is not what was written.
        """
        for inner, expected in self.files.items():
            if inner == name or inner.startswith(name + "/"):
                try:
                    same = _hash(self.folder / inner) == expected
                except FileNotFoundError:
                    same = False
                if not same:
                    raise DamagedError(self.key, inner)
        return self.folder / name


class DamagedError(StoreError):
    """An artifact whose content changed after it was made; it is removed and made again."""

    def __init__(self, key: str, file: str) -> None:
        super().__init__(f"{file} of artifact {key[:12]} is not what was written")
        self.key = key


class Store:
    """Artifacts by key, under one folder that several runs may share.

    Args:
        folder: made if missing, readable by its owner alone, since it holds private text and generations.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            for part in ("artifacts", "work", "leases"):
                (folder / part).mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o700)
            probe = folder / f".probe-{os.getpid()}"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise StoreError(self._cannot(os.strerror(error.errno or 0))) from error
        self.events: list[dict[str, object]] = []

    def make(self, kind: str, parts: Parts, maker: Callable[[Path], Facts], *, family: str = "") -> Artifact:
        """The artifact of these parts, made by ``maker(folder)`` unless it is there.

        Args:
            kind: what it is.
            parts: what its key is made of.
            maker: writes the files into a folder and reports of its work.
            family: lists it under this name too; see `family`.

        Raises:
            StoreError: the store cannot be written (a full disk, no permission, a lease lost to another run).
        """
        key = digest({"kind": kind, **parts})
        found = self.find(kind, key)
        if found:
            self._tell("reused", kind, key, parts)
            return found
        lease = Lease(self.folder / "leases" / f"{key}.json")
        with self._writing(), lease:
            found = self.find(kind, key)  # another run may have made it while we waited
            if found:
                self._tell("reused", kind, key, parts)
                return found
            self._tell("made", kind, key, parts)
            work = self.folder / "work" / key
            work.mkdir(exist_ok=True, mode=0o700)
            facts = maker(work)
            files = {str(path.relative_to(work)): _hash(path) for path in sorted(work.rglob("*")) if path.is_file()}
            manifest = {"kind": kind, "key": key, "parts": parts, "facts": facts, "files": files, "made": time.time()}
            (work / _MANIFEST).write_text(json.dumps(manifest, default=str))
            lease.check()
            home = self._home(kind, key)
            home.parent.mkdir(parents=True, exist_ok=True)
            if family:  # before it is there: a name without an artifact is passed over, one without a name is lost
                listing = self.folder / "families" / family
                listing.mkdir(parents=True, exist_ok=True, mode=0o700)
                (listing / key).touch()
            shutil.rmtree(home, ignore_errors=True)
            work.rename(home)
        made = self.find(kind, key)
        if made is None:
            raise StoreError(f"the artifact just written to {home} cannot be read back; check the disk under the store")
        return made

    def claim(self, parts: Parts) -> Lease | None:
        """Work that is of several artifacts, for whoever comes first; None where a living process is at it."""
        lease = Lease(self.folder / "leases" / f"claim-{digest(parts)}.json")
        with self._writing():
            return lease if lease.take() else None

    def find(self, kind: str, key: str) -> Artifact | None:
        """The artifact under a key; None where there is none, or one whose files are missing (which is removed)."""
        home = self._home(kind, key)
        try:
            manifest = json.loads((home / _MANIFEST).read_text())
            files: dict[str, str] = manifest["files"]
            if all((home / name).is_file() for name in files):
                return Artifact(key, home, manifest["facts"], files)
            logger.warning("artifact %s lacks files and is made again", key[:12])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            logger.warning("artifact %s has a damaged manifest and is made again", key[:12])
        shutil.rmtree(home, ignore_errors=True)
        return None

    def family(self, kind: str, name: str) -> list[Artifact]:
        """The artifacts of one family that are there, in the order of their keys, without reading all manifests."""
        keys = sorted(path.name for path in (self.folder / "families" / name).glob("*"))
        return [artifact for key in keys if (artifact := self.find(kind, key))]

    def drop(self, key: str) -> None:
        """Removes an artifact of any kind."""
        for home in self.folder.glob(f"artifacts/*/{key[:2]}/{key}"):
            shutil.rmtree(home, ignore_errors=True)

    def manifests(self) -> Iterator[dict[str, object]]:
        """The manifests of all artifacts, with ``bytes`` and ``folder`` added."""
        for path in sorted(self.folder.glob(f"artifacts/*/*/*/{_MANIFEST}")):
            with contextlib.suppress(OSError, ValueError):
                size = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
                yield {**json.loads(path.read_text()), "bytes": size, "folder": str(path.parent)}

    def clear_work(self) -> int:
        """Removes work that no living run holds a lease on, and the leases of the dead; returns the bytes freed."""
        freed = 0
        for work in (self.folder / "work").iterdir():
            lease = Lease(self.folder / "leases" / f"{work.name}.json")
            if not lease.held():
                freed += sum(file.stat().st_size for file in work.rglob("*") if file.is_file())
                shutil.rmtree(work, ignore_errors=True)
        for path in (self.folder / "leases").glob("*.json"):
            Lease(path).sweep()
        return freed

    def _home(self, kind: str, key: str) -> Path:
        return self.folder / "artifacts" / kind / key[:2] / key

    def _tell(self, what: str, kind: str, key: str, parts: Parts) -> None:
        self.events.append({"what": what, "kind": kind, "key": key, "parts": parts})

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (
                errno.ENOSPC,
                errno.EDQUOT,
                errno.EROFS,
                errno.EACCES,
                errno.EPERM,
                errno.ENOTDIR,
                errno.EEXIST,
            ):
                raise StoreError(self._cannot(os.strerror(error.errno))) from error
            raise
        except Exception as error:  # safetensors and torch wrap the operating system's error in their own
            for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                if os.strerror(code) in str(error) or f"os error {code})" in str(error):
                    raise StoreError(self._cannot(os.strerror(code))) from error
            if any(sign in str(error) for sign in _TORCH_WRITER):
                raise StoreError(self._cannot("a file could not be written to its end")) from error
            raise

    def _cannot(self, why: str) -> str:
        return (
            f"cannot write to the store {self.folder}: {why}. Nothing finished is lost; free some space "
            "(memdefense cache prune) or choose another place with --store, and run the same command again"
        )


# What `torch.save` says of a full disk; the operating system's own words are lost in it.
_TORCH_WRITER = (". unexpected pos ", "PytorchStreamWriter failed", "iostream error")


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
