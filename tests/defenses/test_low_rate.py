"""The undefended training at a lower rate."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from memdefense import SpecError
from memdefense.defense import Defense, overrides
from memdefense.defenses.low_rate import LowRate
from memdefense.pipeline import defend
from memdefense.runner import Settings, prepare
from memdefense.testing import TinyBenchmark, check_defense


def test_contract() -> None:
    check_defense(LowRate())


def test_it_is_the_undefended_training_at_that_rate(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    work = prepare(TinyBenchmark(), Settings(store=store, device="cpu"))
    rate = work.config.learning_rate
    third = prepare(
        TinyBenchmark(), Settings(store=store, device="cpu", training={"learning_rate": rate * LowRate().factor})
    )
    slow, plain, expected = defend(work, LowRate(), 0), defend(work, Defense(), 0), defend(third, Defense(), 0)
    assert [point.digest for point in slow.points] == [point.digest for point in expected.points]
    assert slow.points[-1].digest != plain.points[-1].digest
    assert slow.config == dataclasses.replace(plain.config, learning_rate=rate * LowRate().factor)
    same = defend(work, LowRate(factor=1.0), 0)
    assert [point.digest for point in same.points] == [point.digest for point in plain.points]
    assert not any(overrides(LowRate(), hook) for hook in ("curate", "train", "edit", "guard"))


@pytest.mark.parametrize("factor", [0.0, -1.0, float("inf"), float("nan")])
def test_a_factor_out_of_range_is_told(factor: float) -> None:
    with pytest.raises(SpecError, match="low-rate: factor is"):
        LowRate(factor=factor)
