"""Measure systems side by side: warm-up, interleaved repetitions, medians, and the machine's own ceiling."""

import itertools
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.cpu.fused import FusedLinear, can_fuse
from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from models.families import Shape
from pipeline.benchmark.workload import Workload
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.rows import TokenRows

CEILING_TOKENS = {"cpu": (512, 1024, 2048), "cuda": (8192, 16384, 32768)}
CEILING_PASSES = 5


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

    def speedup_over(self, other: "Timing") -> float:
        """Median over the rounds of the other's seconds over these: what slows a machine for minutes slows both of a round."""
        return statistics.median(theirs / own for theirs, own in zip(other.seconds, self.seconds, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """What is measured, on which rows."""

    run: Callable[[Workload], object]
    work: Workload


def measure(
    systems: Mapping[str, System], repetitions: int, synchronize: Callable[[], None], say: Callable[[str], None]
) -> dict[str, Timing]:
    """Time every system on its workload, `repetitions` times, in turns: what slows the machine slows them all.

    A first round, on the same work, is the warm-up and not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for repetition in range(repetitions + 1):
        for name, system in systems.items():
            synchronize()
            started = time.perf_counter()
            system.run(system.work)
            synchronize()
            took = time.perf_counter() - started
            if repetition:
                seconds[name].append(took)
            say(f"round {repetition}/{repetitions}  {name}: {len(system.work.rows) / took:,.1f} rows/s")
    return {name: Timing(seconds=values) for name, values in seconds.items()}


def time_criteria(
    model: str, criteria: Sequence[Criterion], rows: TokenRows, dtype: str, device: str, repetitions: int = 3
) -> list[Timing]:
    """Measure the engine with each criterion on all rows, in turns."""
    work = Workload(rows=rows, exit_plan=np.zeros(len(rows), np.int64))
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    # All engines share the weights in memory: copies of them differ in speed by some percent, by where they happen to lie.
    with LoadedModel(EarlyExitModel.from_pretrained(model), EngineConfig(dtype=dtype), device) as loaded:
        engines = [Engine(loaded, EngineConfig(criterion=criterion, dtype=dtype)) for criterion in criteria]
        systems = {str(n): System(run=partial(_run_engine, engine), work=work) for n, engine in enumerate(engines)}
        return list(measure(systems, repetitions, synchronize, lambda _line: None).values())


def hardware(device: str) -> str:
    """Name what the engine runs on here."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else []
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def _run_engine(engine: Engine, work: Workload) -> object:
    return engine.run(work.rows)


def matmul_ceiling(shape: Shape, device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs a second that the device reaches on this model's matrix products alone, one layer's weights after the other's.

    The highest of several ways (tokens at once; all threads in one product or each in its own; weights packed or not), and
    the fastest pass of each: neighbours on a shared machine slow passes down and never speed them up.
    """
    hidden, inner = shape.hidden, shape.intermediate
    sizes = [(hidden, 3 * hidden), (hidden, hidden), (hidden, inner), (inner, hidden)]
    weights = [torch.randn(out, into, device=device, dtype=dtype) * 0.02 for into, out in sizes * shape.layers]
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    products: list[Sequence[Callable[[Tensor], Tensor]]] = [[partial(F.linear, weight=weight) for weight in weights]]
    if can_fuse(device, dtype):
        products.append([FusedLinear(weight, None, 1024) for weight in weights])
    best = 0.0
    for tokens, ways, runners in itertools.product(CEILING_TOKENS[device.type], products, {1, threads}):
        inputs = {width: torch.randn(tokens, width, device=device, dtype=dtype) for width in (hidden, inner)}
        one_pass = partial(_pass, ways, [inputs[weight.shape[1]] for weight in weights], threads // runners, device)
        with ThreadPoolExecutor(runners) as pool:
            for _ in range(CEILING_PASSES):
                started = time.perf_counter()
                list(pool.map(lambda _lane: one_pass(), range(runners)))  # noqa: B023 - it is run at once
                flops = 2.0 * tokens * runners * sum(weight.numel() for weight in weights)
                best = max(best, flops / (time.perf_counter() - started))
    if device.type == "cpu":
        torch.set_num_threads(threads)
    return best


def _pass(
    products: Sequence[Callable[[Tensor], Tensor]], inputs: Sequence[Tensor], threads: int, device: torch.device
) -> None:
    if device.type == "cpu":
        torch.set_num_threads(threads)
    with torch.inference_mode():
        for product, x in zip(products, inputs, strict=True):
            product(x)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
