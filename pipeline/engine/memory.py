"""Memory: kept from call to call where arrays are made and freed all the time; work is split where there is too little."""

import contextlib
import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.engine.packing import Lengths, cut_by_tokens

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Numbers of glibc's mallopt(3)."""
TOO_LITTLE = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Phrases in torch's errors where it has no exception for it: CUDA outside its allocator, main memory, cuBLAS."""


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory for the next array in place of giving it back: a sixth less time a training step.

    Every step makes the same arrays again, and fresh pages cost a fault each. Does nothing with another C library.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


class Workspace:
    """Matrices by name, in the same memory from call to call, since fresh memory costs page faults."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, tokens: int, width: int) -> Tensor:
        """Return a matrix [tokens, width] whose values are of earlier calls, or zeros; never NaN out of nowhere."""
        held = self._held.get(name)
        if held is None or len(held) < tokens:
            # The old memory goes first, or both would be held at once; an eighth more, or it would grow at every call.
            self._held.pop(name, None)
            del held
            held = torch.zeros(tokens + tokens // 8, width, dtype=self.dtype, device=self.device)
            self._held[name] = held
        return held[:tokens]

    def free(self) -> None:
        """Give all of it back."""
        self._held.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


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
        # All that is left is cut anew: groups of a size that did not fit once would not fit again.
        rest = cut_by_tokens(lengths_B[group.start :], max(tokens // 2, 1))
        waiting = [slice(group.start + part.start, group.start + part.stop) for part in reversed(rest)]
    return total


def _run_if_it_fits(run: Callable[[slice], int], group: slice) -> int | None:
    """Run a group; return None when out of memory. The exception ends here, since its traceback holds on to tensors."""
    try:
        return run(group)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or any(phrase in str(error) for phrase in TOO_LITTLE):
            return None
        raise
