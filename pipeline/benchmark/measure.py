"""Time systems side by side: a warm-up, then rounds in which all systems take turns, and medians over the rounds.

timings = measure({"ours": System(run=ours, work=work), "theirs": System(run=theirs, work=work)}, repetitions=3, ...)
timings["ours"].speedup_over(timings["theirs"])  # 3.1
"""

import contextlib
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.benchmark.workload import Workload
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.rows import TokenRows

Log = Callable[[str], None]
"""Takes a line on how a measurement goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The seconds that one system took for its workload, round by round."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """The median over the rounds, in seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """The slowest round over the fastest."""
        return max(self.seconds) / min(self.seconds)

    def speedup_over(self, other: "Timing") -> float:
        """Return how many times faster this system is: the median of the ratios of the rounds.

        What slows a machine down for minutes slows both systems of a round.
        """
        return statistics.median(theirs / own for theirs, own in zip(other.seconds, self.seconds, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """Something to be timed, and the rows to time it on."""

    run: Callable[[Workload], object]
    """Classify all rows of a workload and return when that is done."""
    work: Workload


def measure(
    systems: Mapping[str, System], repetitions: int, synchronize: Callable[[], None], log: Log
) -> dict[str, Timing]:
    """Time every system on its workload, `repetitions` times, in turns, so that what slows the machine slows them all.

    A round before the others, on the same work, is the warm-up and not counted. `synchronize` waits for the device; `log` gets
    a line for each run.
    """
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for repetition in range(repetitions + 1):
        for name, system in systems.items():
            took = seconds_of(system.run, system.work, synchronize)
            if repetition:
                seconds[name].append(took)
            log(f"round {repetition}/{repetitions}  {name}: {len(system.work.rows) / took:,.1f} rows/s")
    return {name: Timing(seconds=values) for name, values in seconds.items()}


def seconds_of(run: Callable[[Workload], object], work: Workload, synchronize: Callable[[], None]) -> float:
    """Return the seconds from the start of a run until the device has done all of it."""
    synchronize()
    started = time.perf_counter()
    run(work)
    synchronize()
    return time.perf_counter() - started


def fastest(
    runners: Mapping[int, Callable[[Workload], object]], work: Workload, synchronize: Callable[[], None], log: Log
) -> int:
    """Return the batch size, of those that `runners` are for, that is fastest: after a warm-up, in one round of turns.

    Sizes that do not fit into the device's memory are no choice; raises torch.OutOfMemoryError if none fits.
    """
    seconds: dict[int, float] = {}
    for _round in range(2):
        for batch_rows, run in runners.items():
            with contextlib.suppress(torch.OutOfMemoryError):
                seconds[batch_rows] = seconds_of(run, work, synchronize)
    if not seconds:
        raise torch.OutOfMemoryError("no batch size fits into the device's memory")
    for batch_rows, took in seconds.items():
        log(f"batches of {batch_rows:,}: {len(work.rows) / took:,.1f} rows/s")
    return min(seconds, key=seconds.__getitem__)


def time_criteria(
    model: str, criteria: Sequence[Criterion], rows: TokenRows, dtype: str, device: str, repetitions: int = 3
) -> list[Timing]:
    """Time the engine with each criterion on all rows, in turns."""
    work = Workload(rows=rows, exit_plan=np.zeros(len(rows), np.int64))
    # All engines share the same weights in memory: copies differ in speed by some percent, depending on their addresses.
    with LoadedModel(EarlyExitModel.from_pretrained(model), EngineConfig(dtype=dtype), device) as loaded:
        engines = [Engine(loaded, EngineConfig(criterion=criterion, dtype=dtype)) for criterion in criteria]
        systems = {str(n): System(run=partial(_run_engine, engine), work=work) for n, engine in enumerate(engines)}
        return list(measure(systems, repetitions, synchronizer(device), lambda _line: None).values())


def _run_engine(engine: Engine, work: Workload) -> object:
    """Classify all rows of a workload with the engine's own criterion."""
    return engine.run(work.rows)


def synchronizer(device: str) -> Callable[[], None]:
    """Return a function that waits until the device has done all its work."""
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def hardware(device: str) -> str:
    """Name the processor with its threads, or the GPU, that the engine runs on here."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else []
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"
