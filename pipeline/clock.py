"""Time and memory of the present process."""

import re
import resource
import time
from pathlib import Path


class Clock:
    """A stopwatch that starts when it is made."""

    def __init__(self) -> None:
        self._started, self._cpu_started = time.perf_counter(), time.process_time()

    @property
    def seconds(self) -> float:
        """Wall-clock time since the start."""
        return time.perf_counter() - self._started

    @property
    def cpu_seconds(self) -> float:
        """CPU time of all threads of this process since the start."""
        return time.process_time() - self._cpu_started


def peak_memory_mb() -> float:
    """Return the largest resident memory that this process has had, in MB, without pages of Ray's object store.

    Every process maps those as it touches them: they are shared, counted by Ray and bounded by its own setting.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = Path("/proc/self/status")
    if status.exists():
        shared = re.search(r"RssShmem:\s+(\d+) kB", status.read_text())
        peak -= int(shared[1]) if shared else 0
    return peak / 1024
