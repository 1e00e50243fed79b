"""Memory of a process: kept at hand where arrays are made and freed all the time, split where there is too little."""

import contextlib
import ctypes
from collections.abc import Callable

import torch

from pipeline.engine.packing import Lengths, cut_by_tokens

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Numbers of glibc's mallopt(3)."""
TOO_LITTLE = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What torch says of it where it has no exception of its own: of CUDA outside its allocator, of main memory, of cuBLAS."""


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory for the next array in place of giving it back: a sixth less time a training step.

    Every step makes the same arrays again, and fresh pages cost a fault each. Does nothing with another C library.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def run_within_memory(
    run: Callable[[slice], int], free: Callable[[], None], lengths_B: Lengths, limit_tokens: int
) -> int:
    """Run neighbouring rows in groups of at most `limit_tokens`, and in smaller ones where memory runs out; return the sum.

    Raises MemoryError if a row does not fit even alone.
    """
    total, waiting = 0, cut_by_tokens(lengths_B, limit_tokens)[::-1]
    while waiting:
        group = waiting.pop()
        done = _run_if_it_fits(run, group)
        if done is not None:
            total += done
            continue
        free()
        tokens = int(lengths_B[group].sum())
        if group.stop - group.start == 1:
            raise MemoryError(f"a row of {tokens:,} tokens does not fit into memory")
        # All that is left is cut anew: what has not fitted once would not fit again.
        rest = cut_by_tokens(lengths_B[group.start :], max(tokens // 2, 1))
        waiting = [slice(group.start + part.start, group.start + part.stop) for part in reversed(rest)]
    return total


def _run_if_it_fits(run: Callable[[slice], int], group: slice) -> int | None:
    """Return None when out of memory. The exception ends here, since it holds on to the memory that was too much."""
    try:
        return run(group)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or any(phrase in str(error) for phrase in TOO_LITTLE):
            return None
        raise
