"""Memory: how much work it holds, what of it is kept from call to call, and how work is split where there is too little."""

import contextlib
import ctypes
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from models.families.shape import Shape
from pipeline.engine.packing import Lengths, cut_by_tokens

CACHED_VALUES = 1024 * 768
"""Hidden states of a micro-batch on CPUs: 1.5 MB in bf16."""
USED_MEMORY = 0.8
"""Fraction of a GPU's free memory that is planned with; the rest is for what torch's allocator cannot use again."""
MICRO_BATCH_MEMORY = 0.25
"""Fraction of that for what a layer computes on its way; the rest is for hidden states."""
MAX_GPU_BUDGET = 1 << 18
"""Tokens beyond which a larger micro-batch would only take memory: matrices of so many rows have long filled a GPU."""
SCORE_COPIES, USUAL_TOKENS = 7, 512
"""Matrices of scores that disentangled attention has at a time, and the tokens of the rows that they are planned for."""
ROW_SPARE = 9 / 8
"""What Workspace allocates for each token that is asked for."""

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Numbers of glibc's mallopt(3)."""
TOO_LITTLE = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED")
"""Phrases in torch's errors where it has no exception for it: CUDA outside its allocator, main memory, cuBLAS."""
DEVICE_FAILED = ("CUDA error", "Triton Error [CUDA]")
"""Phrases in errors of libraries that find out first that the GPU cannot be used any more."""


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory for the next array in place of giving it back: a sixth less time a training step.

    Every step makes the same arrays again, and fresh pages cost a fault each. Does nothing with another C library.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


class Sizes(NamedTuple):
    """How much is worked on at once."""

    token_budget: int
    """Tokens in a micro-batch."""
    resident_tokens: int
    """Tokens whose hidden states are held at once, by all runners together."""
    first_tokens: int
    """Rows whose first tokens are worked on at once; memory is 2 x hidden x heads values a row."""


def cpu_sizes(hidden: int) -> Sizes:
    """Return the sizes on CPUs: a micro-batch is what one core's cache holds of hidden states.

    It is the fastest of 256..4096 tokens at hidden 384 and 768 (docs/results/speed/README.md). Resident are 1.6 GB at hidden
    768 in bf16.
    """
    return Sizes(min(max(CACHED_VALUES // hidden // 256 * 256, 512), 4096), 1 << 20, 256)


def gpu_sizes(free_bytes: int, shape: Shape, dtype: torch.dtype) -> Sizes:
    """Return the sizes on a GPU that has this much free memory beside the model.

    Example: BERT-base in bf16 with 78 GB free has micro-batches of 262,144 tokens and 16 million tokens resident.
    """
    usable = int(free_bytes * USED_MEMORY)
    # Of each token of a micro-batch: queries, keys and values, what attention mixes, and both sides of the feed-forward block.
    # With a gate, the block's inner side is there three times; turned queries and keys are made in fp32, twice.
    inner = shape.intermediate * (3 if shape.pre_norm else 1)
    turned = 4 * torch.float32.itemsize * shape.hidden if shape.rotary_bases else 0
    layer_bytes = dtype.itemsize * (6 * shape.hidden + inner) + turned
    if shape.disentangled is not None:  # and of each head the scores of all other tokens, by content and by distance
        layer_bytes += dtype.itemsize * SCORE_COPIES * shape.attention_heads * min(shape.max_tokens, USUAL_TOKENS)
    budget = min(MAX_GPU_BUDGET, max(1, int(usable * MICRO_BATCH_MEMORY) // layer_bytes))
    # Of each resident token: its hidden states twice, before and after a layer; its id, and its index while rows move.
    resident_bytes = int(2 * ROW_SPARE * dtype.itemsize * shape.hidden) + 16
    resident = max(1, (usable - budget * layer_bytes) // resident_bytes)
    first_bytes = dtype.itemsize * 2 * shape.hidden * shape.attention_heads
    return Sizes(budget, resident, max(1, budget * layer_bytes // first_bytes))


def sizes_on(device: torch.device, shape: Shape, dtype: torch.dtype) -> Sizes:
    """Return the sizes for a model that is on its device already."""
    if device.type == "cuda":
        return gpu_sizes(torch.cuda.mem_get_info(device)[0], shape, dtype)
    return cpu_sizes(shape.hidden)


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


def is_too_little(error: RuntimeError) -> bool:
    """Return whether an error says that memory has run out."""
    return isinstance(error, torch.OutOfMemoryError) or any(phrase in str(error) for phrase in TOO_LITTLE)


def has_lost_device(error: RuntimeError) -> bool:
    """Return whether an error says that this process cannot use its GPU any more: CUDA's errors stay."""
    failed = isinstance(error, torch.AcceleratorError) or any(phrase in str(error) for phrase in DEVICE_FAILED)
    return failed and not is_too_little(error)


def _run_if_it_fits(run: Callable[[slice], int], group: slice) -> int | None:
    """Run a group; return None when out of memory. The exception ends here, since its traceback holds on to tensors."""
    try:
        return run(group)
    except RuntimeError as error:
        if is_too_little(error):
            return None
        raise
