"""The most memory a step needed: of the GPU where one is used, else of this process."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

_FORGET_PEAK = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def reset_peak(device: str) -> None:
    """Begins a new measurement; where the system cannot forget the old peak (not on Linux), that stays."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        return
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
