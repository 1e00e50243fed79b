"""Calibration: what thresholds cost and change on a sample, kept in the model directory; and thresholds for what is asked.

The sample needs no labels, since an early answer is compared with that of the same model at full depth. It is split once, by
its seed: a quarter finds a path of thresholds (pipeline.thresholds), the rest counts the answers that differ along it, so that
what is promised does not rest on rows that chose. A small sample is not split, as it tests a path fixed beforehand, unless
the quarter has chosen temperatures.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self, TypedDict

import numpy as np
import numpy.typing as npt

from models.exits.criterion import Criterion
from pipeline.calibration.drift import Reference
from pipeline.calibration.guarantees import fixed_sequence, rows_needed
from pipeline.errors import UserError
from pipeline.storage.locate import write_text

FILE = "calibration.json"
VERSION = 1
STEP = 0.01
"""Two neighbouring points of a path differ by about so much, as a share of the FLOPs of full depth."""
JUMP = 3 * STEP
"""Between two points, that is more than a step."""
SPLIT_ROWS = 4000
"""From here on a part of the rows finds thresholds for every exit, and the rest tests them (docs/results/guarantees.md)."""
FIND_SHARE = 0.25


class Scaling(TypedDict):
    """What was done to an exit: its temperature, and the expected calibration error without and with it."""

    layer: int
    temperature: float
    error_before: float
    error_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A criterion for what was asked, and what the calibration lets one expect of it."""

    criterion: Criterion
    flops_speedup: float
    exits: list[float]
    """Calibration rows by exit layer, 1 to L."""
    differing: int | None = None
    """Of the rows that tested a promise; None if none was asked for."""

    def __post_init__(self) -> None:
        if isinstance(self.criterion, dict):  # from JSON
            object.__setattr__(self, "criterion", Criterion(**self.criterion))


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A path of thresholds with what was seen along it: P points, E exits below the last, L layers."""

    criterion: str
    tolerance: float
    layers: list[int]
    """[E]."""
    depth: int
    speeds: list[list[float]]
    """[P, E], from full depth on; along the path no threshold falls."""
    shares: list[float]
    """[P]: FLOPs spent over those of full depth, on all rows."""
    exits: list[list[int]]
    """[P, E + 1]: all rows by exit."""
    differing: list[int]
    """[P]: rows among the tested ones whose answer is another than at full depth."""
    tested: int

    def at_speedup(self, speedup: float) -> Choice:
        """Return the thresholds that save so many FLOPs on rows like these; raise ValueError if none do.

        Between two points thresholds are interpolated; they are so close that the FLOPs between them go in a straight line.
        Where they are not, many rows are equally certain and leave together: then it is the faster point.
        """
        if speedup < 1:
            raise ValueError(f"a speed-up is at least 1, not {speedup:g}")
        wanted = 1 / speedup
        after = next((place for place, share in enumerate(self.shares) if share <= wanted + 1e-9), None)
        if after is None:
            raise ValueError(f"{speedup:g} cannot be reached; the fastest on these rows is {1 / min(self.shares):.2f}")
        if after == 0:
            return self._choice(0, 0, 0.0)
        before, step = after - 1, self.shares[after - 1] - self.shares[after]
        return self._choice(before, after, (self.shares[before] - wanted) / step if step < JUMP else 1.0)

    def within(self, limit: float, confidence: float) -> Choice:
        """Return the fastest thresholds that may be promised to change at most a share `limit` of the answers.

        With probability `confidence` over the calibration rows the promise holds for all rows like them. Full depth if nothing
        else can be promised (`shortage` says why).
        """
        tested = self.differing[1:]  # the first point is full depth, where no answer differs
        passed = fixed_sequence(tested, self.tested, limit, confidence)
        best = min(range(passed + 1), key=lambda place: self.shares[place])
        return self._choice(best, best, 0.0, self.differing[best])

    def shortage(self, limit: float, confidence: float) -> str:
        """Say why nothing but full depth is promised, and how many rows are missing if more would help."""
        if fixed_sequence(self.differing[1:], self.tested, limit, confidence):
            return "what can be promised costs more than it saves: few rows are sure enough to leave"
        first = self.differing[1] if len(self.differing) > 1 else 0
        needed = rows_needed(limit, confidence, first / max(self.tested, 1))
        seen = f"{first:,} of {self.tested:,} rows differ at the safest thresholds"
        if needed is None:
            return f"{seen}, more than {limit:.3%}: no number of rows would do"
        split = math.ceil(needed / (1 - FIND_SHARE))
        rows = split if split >= SPLIT_ROWS or self.tested < sum(self.exits[0]) else needed
        return f"{seen}: calibrate on about {rows:,} rows or more"

    def _choice(self, before: int, after: int, part: float, differing: int | None = None) -> Choice:
        """Interpolate between two points."""

        def between(values: Sequence[Any]) -> npt.NDArray[np.float64]:
            low, high = np.asarray(values[before], np.float64), np.asarray(values[after], np.float64)
            return low + part * (high - low)

        exits = np.zeros(self.depth)
        exits[np.array([*self.layers, self.depth]) - 1] = between(self.exits)
        speeds = tuple(zip(self.layers, between(self.speeds).tolist(), strict=True))
        return Choice(
            criterion=Criterion(name=self.criterion, speeds=speeds, tolerance=self.tolerance),
            flops_speedup=1 / float(between(self.shares)),
            exits=exits.tolist(),
            differing=differing,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WallClock:
    """Wall-clock time of the engine on some rows of the sample, on one machine."""

    hardware: str
    flops_speedups: list[float]
    """Ascending, from full depth on."""
    time_speedups: list[float]

    def time_of(self, flops_speedup: float) -> float:
        """Return the speed-up in time that goes with one in FLOPs."""
        return float(np.interp(flops_speedup, self.flops_speedups, self.time_speedups))

    def flops_of(self, time_speedup: float) -> float:
        """Return the speed-up in FLOPs that it takes; raise ValueError if none was as fast."""
        times = np.maximum.accumulate(self.time_speedups)
        if time_speedup > times[-1]:
            raise ValueError(
                f"{time_speedup:g} cannot be reached in time on this machine; the fastest was {times[-1]:.2f}"
            )
        return float(np.interp(time_speedup, times, self.flops_speedups))


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What jobs/calibrate.py leaves in a model directory, and jobs/classify.py asks."""

    model: str
    """Digest of the weights that it is about."""
    precision: str
    max_tokens: int
    data: dict[str, Any]
    """Rows, rejected rows, tokens, a digest of them, the seed of the draw and the split."""
    curve: Curve
    reference: Reference
    timing: WallClock | None = None
    scalings: list[Scaling] = field(default_factory=list)
    choices: dict[str, Choice] = field(default_factory=dict)
    """Thresholds by target, for those who read the file; any other target follows from the curve."""

    def save(self, directory: str | Path) -> Path:
        """Write calibration.json into a model directory."""
        path = Path(directory) / FILE
        write_text(path, json.dumps({"version": VERSION} | asdict(self), indent=1) + "\n")
        return path

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Read it from a model directory; raise UserError if there is none."""
        path = Path(directory) / FILE
        if not path.is_file():
            raise UserError(
                f"{directory}: not calibrated, so nothing is known of speed and disagreement; calibrate "
                "it on a random sample of the texts to come (jobs/calibrate.py)"
            )
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("version") != VERSION:
            raise UserError(f"{path}: of another version of offramp; run jobs/calibrate.py again")
        values["curve"] = Curve(**values["curve"])
        values["reference"] = Reference(**values["reference"])
        values["choices"] = {name: Choice(**choice) for name, choice in values["choices"].items()}
        values["timing"] = values["timing"] and WallClock(**values["timing"])
        return cls(**values)

    def check(self, digest: str, precision: str, max_tokens: int) -> None:
        """Raise UserError unless it is about this model, run in this way."""
        for name, then, now in (
            ("weights", self.model, digest),
            ("precision", self.precision, precision),
            ("max-tokens", self.max_tokens, max_tokens),
        ):
            if then != now:
                raise UserError(
                    f"the model was calibrated with {name} {then}, now it is {now}; run jobs/calibrate.py again"
                )


SPEEDUPS = (1.5, 2.0, 3.0, 4.0)
LIMITS = (0.005, 0.01, 0.02)


def choices(curve: Curve, confidence: float, limits: Sequence[float] = LIMITS) -> dict[str, Choice]:
    """Return thresholds for usual targets by name, as far as they can be reached."""
    reached = {f"{speedup:g}x": curve.at_speedup(speedup) for speedup in SPEEDUPS if speedup <= 1 / min(curve.shares)}
    return reached | {f"at most {limit:g}": curve.within(limit, confidence) for limit in limits}
