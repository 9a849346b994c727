"""Memory of this process: the most a step needed (of the GPU where one is used), and how freed memory is reused."""

from __future__ import annotations

import ctypes
import functools
import resource
import sys
from pathlib import Path
from typing import Any

import torch

_FORGET_PEAK = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
# Parameters of glibc's mallopt, by their numbers in malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# Blocks of up to 64 MiB come of memory that was freed, of which as much as 512 MiB is kept: enough for a small model's
# training step. Larger blocks would leave gaps of their size: five of 200 MiB, one after the other, held 1 GiB.
_REUSED, _KEPT = 1 << 26, 1 << 29


@functools.cache
def keep_freed() -> None:
    """Lets this process take up again what it freed, in blocks of up to 64 MiB, instead of asking for fresh pages.

    glibc gives large blocks back at once, and the kernel clears each page that comes anew: on two cores up to
    a twentieth of a training step of 4 million weights. No number depends on it. Without glibc nothing is changed.
    """
    glibc = _glibc()
    if glibc is not None:
        glibc.mallopt(_MMAP_THRESHOLD, _REUSED)
        glibc.mallopt(_TRIM_THRESHOLD, _KEPT)


def reset_peak(device: str) -> None:
    """Begins a new measurement; where the system cannot forget the old peak (not on Linux), that stays."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        return
    glibc = _glibc()
    if glibc is not None:
        glibc.malloc_trim(0)  # what earlier steps freed is no part of this one's peak
    try:
        _FORGET_PEAK.write_text("5")
    except OSError:
        return


def peak(device: str) -> int:
    """Bytes in use at the most since `reset_peak`."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated())
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@functools.cache
def _glibc() -> Any:
    library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
