"""Time and memory that a process has used."""

import re
import resource
import time
from pathlib import Path


class Clock:
    """Counts seconds from the moment it is made."""

    def __init__(self) -> None:
        self._started, self._cpu_started = time.perf_counter(), time.process_time()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    @property
    def cpu_seconds(self) -> float:
        """CPU time of all threads of this process since then."""
        return time.process_time() - self._cpu_started


def peak_memory_mb() -> float:
    """Return the largest memory that this process has had of its own, MB.

    Pages of Ray's object store, which every process maps as it touches them, are left out: they are counted by Ray, bounded by
    its own setting, and shared.
    """
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = Path("/proc/self/status")
    if status.exists():
        shared = re.search(r"RssShmem:\s+(\d+) kB", status.read_text())
        used -= int(shared[1]) if shared else 0
    return used / 1024
