"""Whether int8 is worth it on this CPU for a model, by measurement.

That a CPU has instructions for int8 does not say that oneDNN has a kernel that uses them. Where it has none it computes by a
reference loop, over a thousand times slower than fp32, and says nothing.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.backbone import FeedForward
from models.cpu.fused import FusedFeedForward, can_fuse
from models.cpu.int8 import Int8FeedForward, Ranges
from models.families.shape import Shape

LEAST_SPEEDUP = 0.9
"""Speed of int8 over that of the plain block below which it is refused. A third of a layer and all of attention stay as they
are, so a whole model is at least 0.93 times as fast. Where int8 helps, it is 1.1 to 3.5 (docs/results/speed/README.md), so that
noise decides nothing."""
HOPELESS_SPEEDUP = 0.1
"""Speed below which a first, tiny block ends the measurement: 0.3 for kernels, as calls cost most there, 0.01 for loops."""
TINY = (64, 256, 16)
"""Hidden and inner width and tokens of that block: 20 ms by the slowest reference that was measured."""
TOKENS = 256
"""Tokens of the model's own block: 18 ms in fp32 and 6 in int8 for BERT-base on one core with VNNI alone."""
ROUNDS = 5
"""Rounds in which the blocks take turns; the fastest of each counts, since what disturbs only adds."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds that the same feed-forward block takes on one core: in int8, and as it would be without."""

    int8: float
    plain: float

    @property
    def speedup(self) -> float:
        return self.plain / self.int8


def time_int8(shape: Shape, dtype: torch.dtype) -> Timing:
    """Time a feed-forward block of a model of this shape, or a tiny one if int8 is hopeless already there.

    `dtype` is that of the hidden states. The activation has to be one of `models.cpu.fused.POST_OPS`.
    """
    hidden, inner, tokens = TINY
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the engine's workers run it
    try:
        timing = _time(replace(shape, hidden=hidden, intermediate=inner), dtype, tokens)
        return _time(shape, dtype, TOKENS) if timing.speedup > HOPELESS_SPEEDUP else timing
    finally:
        torch.set_num_threads(threads)


def is_worth_it(timing: Timing) -> bool:
    """Return whether int8 is as fast as what it replaces, or nearly."""
    return timing.speedup >= LEAST_SPEEDUP


@torch.inference_mode()
def _time(shape: Shape, dtype: torch.dtype, tokens: int) -> Timing:
    """Time a block in both ways, with random weights and hidden states; which values occur makes no difference."""
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
        torch.manual_seed(0)
        ffn = FeedForward(shape).to(dtype).eval()
        x_TH = torch.randn(tokens, shape.hidden).to(dtype)
    ranges = Ranges(inputs=torch.full((shape.hidden,), 4.0), inner=torch.full((shape.intermediate,), 4.0))
    plain = FusedFeedForward(ffn, tokens) if can_fuse(x_TH.device, dtype) else ffn
    blocks: tuple[Callable[[Tensor], Tensor], ...] = (Int8FeedForward(ffn, ranges, tokens), plain)
    fastest = [float("inf")] * len(blocks)
    for _ in range(ROUNDS):
        for number, block in enumerate(blocks):
            started = time.perf_counter()
            block(x_TH)
            fastest[number] = min(fastest[number], time.perf_counter() - started)
    return Timing(*fastest)
