"""Wall-clock time of the engine along a calibrated path."""

import numpy as np

from pipeline.benchmark.measure import hardware, time_criteria
from pipeline.calibration.curve import SPEEDUPS, Curve, WallClock
from pipeline.rows import TokenRows

TIMED_ROWS = 4096
"""At most this many rows of the sample are timed."""
TIMED_ROUNDS = 5


def time_curve(model: str, curve: Curve, rows: TokenRows, dtype: str, device: str) -> WallClock:
    """Time the engine at the usual speed-ups in FLOPs, on some of the rows, in turns with full depth."""
    fastest = 1 / min(curve.flops_fractions)
    reached = [speedup for speedup in (1.0, *SPEEDUPS) if speedup <= fastest]
    criteria = [curve.at_speedup(speedup).criterion for speedup in reached]
    rows = rows.take(np.random.default_rng(0).permutation(len(rows))[:TIMED_ROWS])
    timings = time_criteria(model, criteria, rows, dtype, device, TIMED_ROUNDS)
    return WallClock(
        hardware=hardware(device),
        flops_speedups=reached,
        time_speedups=[timing.speedup_over(timings[0]) for timing in timings],
    )
