"""What all labs of a run share, and operating points as the store keeps them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from memdefense import pii
from memdefense.defense import Point
from memdefense.detector import Detector
from memdefense.lm import LM
from memdefense.recipe import code_of, versions
from memdefense.settings import nameplate
from memdefense.store import Artifact, Store

Progress = Callable[[str, int, int], None]
"""``progress(what, done, total)``."""


@dataclasses.dataclass(frozen=True)
class StoredPoint:
    """An operating point in the store: known by its digest, loaded only where it is used.

    Attributes:
        brought: loads a model that is in no artifact.
    """

    label: str
    at: float
    digest: str
    artifact: Artifact
    folder: str
    brought: Callable[[str], LM] | None = None

    def load(self, device: str) -> LM:
        """The model, its files checked."""
        if self.brought:
            return self.brought(device)
        return LM.load(self.artifact.file(self.folder), device=device)


@dataclasses.dataclass
class Bench:
    """What all labs of a run share. Results do not depend on ``batch_size``, ``micro_batch`` and ``progress``.

    Dropout is the exception: its masks are drawn for each training pass, so that they depend on ``micro_batch``.
    """

    store: Store
    device: str = "cpu"
    batch_size: int = 0
    micro_batch: int = 0
    detector_recall: float = 1.0
    progress: Progress | None = None
    detector: Detector = dataclasses.field(default_factory=Detector)
    found: dict[str, list[pii.Pii]] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def detector_name(self) -> str:
        """The detector's spec, without the folders of this machine."""
        return nameplate(self.detector.spec, *self.detector.fields.values())

    @functools.cached_property
    def detector_identity(self) -> list[str]:
        """What tells one detector from another: its spec, its code, and what its fields only name."""
        return [self.detector_name, code_of(self.detector), self.detector.outside()]

    def surroundings(self) -> dict[str, object]:
        """What numbers depend on beside recipe and inputs."""
        kind = torch.cuda.get_device_name() if self.device.startswith("cuda") else self.device
        return {"versions": versions(), "device": kind}


def add_cost(cost: dict[str, float], more: Mapping[str, float]) -> None:
    """Adds seconds and tokens; of memory, which steps need one after another, the most counts."""
    for name, value in more.items():
        known = cost.get(name, 0.0)
        cost[name] = max(known, value) if name.endswith("_bytes") else known + value


def save_point(folder: Path, place: int, point: Point) -> dict[str, object]:
    """Writes one point into an artifact and returns what its manifest says of it."""
    point.model.save(folder / f"point-{place}")
    return {"label": point.label, "at": point.at, "digest": point.model.digest(), "folder": f"point-{place}"}


def stored_points(artifact: Artifact) -> list[StoredPoint]:
    """The points of an artifact, in order."""
    listed: list[dict[str, object]] = artifact.facts["points"]  # type: ignore[assignment]
    return [
        StoredPoint(str(p["label"]), float(str(p["at"])), str(p["digest"]), artifact, str(p["folder"])) for p in listed
    ]
