from __future__ import annotations

import sys

import pytest
import torch

from memdefense.memory import peak, reset_peak

SIZE = 200 << 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux forgets a peak")
def test_a_peak_is_of_what_came_after_the_reset() -> None:
    reset_peak("cpu")
    before = peak("cpu")
    taken = torch.ones(SIZE // 4)
    during = peak("cpu")
    del taken
    assert during - before > 0.9 * SIZE
    assert peak("cpu") > 0.98 * during  # the kernel counts in batches
    reset_peak("cpu")
    assert peak("cpu") < during - 0.5 * SIZE
