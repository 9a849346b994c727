from __future__ import annotations

import platform
import resource
import sys

import pytest
import torch

from memdefense.memory import keep_freed, peak, reset_peak

SIZE = 200 << 20
REUSED = 32 << 20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_what_was_freed_is_taken_up_again_and_is_no_part_of_the_next_peak() -> None:
    keep_freed()
    fresh = []
    for _ in range(6):  # what other tests left decides how soon there is room that fits
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        held = [torch.ones(REUSED // 4) for _ in range(6)]
        fresh.append((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize())
        del held
    assert fresh[-1] < REUSED
    during = peak("cpu")
    reset_peak("cpu")
    assert peak("cpu") < during - 4 * REUSED


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
