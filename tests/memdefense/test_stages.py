from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest
import torch

from memdefense import train
from memdefense.corpus import Documents
from memdefense.defense import Defense, Point
from memdefense.pipeline import defend
from memdefense.runner import Settings, prepare
from memdefense.testing import TinyBenchmark
from memdefense.train import precision

if TYPE_CHECKING:
    from memdefense.lab import Lab
    from memdefense.lm import LM


@dataclasses.dataclass(frozen=True)
class Half(Defense):
    """Makes a weight of the precision it would train in, in one of the hooks."""

    name: ClassVar[str] = "half"
    summary: ClassVar[str] = "Shows what it would train in."

    hook: str = "train"

    def train(self, model: LM, documents: Documents, lab: Lab) -> Iterable[Point]:
        return [self._shown(model.copy(), lab) if self.hook == "train" else Point("1.0", 1.0, model.copy())]

    def edit(self, model: LM, documents: Documents, lab: Lab) -> Iterable[Point]:
        return [self._shown(model, lab) if self.hook == "edit" else Point("1.0", 1.0, model)]

    def _shown(self, model: LM, lab: Lab) -> Point:
        half = precision(lab.config.dtype, lab.device, width=model.width) == "bfloat16"
        next(model.model.parameters()).data.fill_(float(half))
        return Point("1.0", 1.0, model)


@pytest.mark.parametrize("hook", ["train", "edit"])
def test_what_auto_comes_to_is_part_of_a_hooks_key(hook: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_WIDE", 32)
    settings = Settings(store=str(tmp_path), device="cpu", training={"dtype": "auto"})
    for has in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has)
        point = defend(prepare(TinyBenchmark(), settings), Half(hook), 0).points[-1]
        assert float(next(point.load("cpu").model.parameters()).data.mean()) == has
