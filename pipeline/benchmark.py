"""Measure systems side by side: warm-up, interleaved repetitions, medians, and the machine's own ceiling."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from models.families import Shape
from pipeline.workload import Workload

CEILING_SECONDS = 1.0
"""For each matrix shape; long enough that clocks settle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds that one system took for the workload, by repetition."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Largest over smallest."""
        return max(self.seconds) / min(self.seconds)


def measure(
    systems: Mapping[str, Callable[[Workload], object]],
    work: Mapping[str, Workload],
    repetitions: int,
    synchronise: Callable[[], None],
    say: Callable[[str], None],
) -> dict[str, Timing]:
    """Time every system on its workload, `repetitions` times, in turns: what slows the machine slows them all.

    A first round, on the same work, is the warm-up and not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for repetition in range(repetitions + 1):
        for name, run in systems.items():
            synchronise()
            started = time.perf_counter()
            run(work[name])
            synchronise()
            took = time.perf_counter() - started
            if repetition:
                seconds[name].append(took)
            say(f"round {repetition}/{repetitions}  {name}: {len(work[name].rows) / took:,.1f} rows/s")
    return {name: Timing(seconds=values) for name, values in seconds.items()}


def matmul_ceiling(shape: Shape, tokens: int, device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs a second that the device reaches on this model's matrix products alone, at this many tokens: their limit.

    Of the fastest call, not the median one: neighbours on a shared machine slow calls down and never speed them up.
    """
    hidden, inner = shape.hidden, shape.intermediate
    products = [(hidden, 3 * hidden), (hidden, hidden), (hidden, inner), (inner, hidden)]
    flops = seconds = 0.0
    with torch.inference_mode():
        for width_in, width_out in products:
            x = torch.randn(tokens, width_in, device=device, dtype=dtype)
            weight = torch.randn(width_out, width_in, device=device, dtype=dtype)
            bias = torch.randn(width_out, device=device, dtype=dtype)
            for _ in range(3):
                F.linear(x, weight, bias)
            times: list[float] = []
            until = time.perf_counter() + CEILING_SECONDS
            while time.perf_counter() < until or len(times) < 5:
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                started = time.perf_counter()
                F.linear(x, weight, bias)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times.append(time.perf_counter() - started)
            flops += 2.0 * tokens * width_in * width_out
            seconds += min(times)
    return flops / seconds
