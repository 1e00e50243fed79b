"""What a run keeps a GPU busy with: the time in which kernels are at work, and how many of them are launched."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.profiler import ProfilerActivity

Times = npt.NDArray[np.float64]
COPIES = ("Memcpy", "Memset")
"""Beginnings of the names of what is no kernel: it moves or fills memory while the arithmetic may wait for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUse:
    """The kernels of one run."""

    kernels: int
    """Number of kernels that were launched."""
    seconds: float
    """Time in which at least one of them was at work."""

    def busy(self, wall_seconds: float) -> float:
        """Return the fraction of a run's wall-clock time in which a kernel was at work."""
        return min(self.seconds / wall_seconds, 1.0)


def device_use(run: Callable[[], object]) -> DeviceUse:
    """Run once under torch's profiler. That slows the host down but not the kernels: take the wall-clock time elsewhere."""
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    kernels = [
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type.name == "CUDA" and not event.is_user_annotation and not event.name.startswith(COPIES)
    ]
    starts, ends = np.array(kernels, np.float64).reshape(-1, 2).T
    return DeviceUse(kernels=len(kernels), seconds=covered(starts, ends) / 1e6)


def covered(starts: Times, ends: Times) -> float:
    """Return the length of what intervals cover together: `covered([0, 1, 5], [2, 3, 6])` is 4."""
    if not len(starts):
        return 0.0
    order = np.argsort(starts)
    starts, ends = starts[order], ends[order]
    before = np.concatenate([starts[:1], np.maximum.accumulate(ends)[:-1]])
    return float(np.maximum(ends - np.maximum(starts, before), 0).sum())
