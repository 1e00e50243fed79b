"""Whether int8 is worth it on this CPU for a model, by measurement.

That a CPU has instructions for int8 does not say that oneDNN has a kernel that uses them. Where it has none it computes by a
reference loop, 120 to 450 times slower than bf16, and says nothing.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.backbone import FeedForward
from models.cpu.fused import FusedFeedForward, can_fuse
from models.cpu.int8 import Int8FeedForward, Ranges
from models.early_exit import EarlyExitModel

LEAST_SPEEDUP = 0.9
"""Speed of int8 over that of the plain block below which it is refused. A third of a layer and all of attention stay as they
are, so a whole model is at least 0.93 times as fast; where int8 helps at all, it is far above (docs/results/speed/README.md),
so that noise decides nothing."""
HOPELESS_SPEEDUP = 0.1
"""The same for the first, tiny block, where calls cost more than products: 0.3 for kernels, under 0.01 for the reference."""
TINY = (64, 256, 16)
"""Hidden and inner width and tokens of that block: 20 ms by the slowest reference that was measured."""
TOKENS = 256
"""Tokens of the model's own block: 18 ms in fp32 and 6 in int8 for BERT-base on one core without bf16, 2 and less with AMX."""
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


def time_int8(model: EarlyExitModel) -> Timing:
    """Time the feed-forward block of the model's first layer, or a tiny one if int8 is hopeless already there."""
    hidden, inner, tokens = TINY
    ffn = model.backbone.layer(1).ffn
    dtype = ffn.expand.weight.dtype
    tiny = FeedForward(replace(model.shape, hidden=hidden, intermediate=inner)).to(dtype).eval()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the engine's workers run it
    try:
        timing = _time(tiny, tokens)
        return _time(ffn, TOKENS) if timing.speedup > HOPELESS_SPEEDUP else timing
    finally:
        torch.set_num_threads(threads)


def is_worth_it(timing: Timing) -> bool:
    """Return whether int8 is as fast as what it replaces, or nearly."""
    return timing.speedup >= LEAST_SPEEDUP


@torch.inference_mode()
def _time(ffn: FeedForward, tokens: int) -> Timing:
    """Time a block in both ways, on random hidden states; which values occur makes no difference."""
    weight = ffn.expand.weight
    inner, hidden = weight.shape
    x_TH = torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    ranges = Ranges(inputs=torch.full((hidden,), 4.0), inner=torch.full((inner,), 4.0))
    plain = FusedFeedForward(ffn, tokens) if can_fuse(weight.device, weight.dtype) else ffn
    blocks: tuple[Callable[[Tensor], Tensor], ...] = (Int8FeedForward(ffn, ranges, tokens), plain)
    fastest = [float("inf")] * len(blocks)
    for _ in range(ROUNDS):
        for number, block in enumerate(blocks):
            started = time.perf_counter()
            block(x_TH)
            fastest[number] = min(fastest[number], time.perf_counter() - started)
    return Timing(*fastest)
