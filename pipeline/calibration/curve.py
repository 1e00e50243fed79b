"""The calibration of a model: what thresholds save and change on a sample, and the thresholds for a given target.

The sample needs no labels, since a prediction at an exit is compared with that of the same model at full depth. It is split
once, by its seed: a quarter fits a path of thresholds (pipeline.calibration.thresholds), and the rest counts the predictions
that differ along it, so that no guarantee rests on rows that chose. A small sample is not split, since it tests a path that was
fixed beforehand, unless the quarter has fitted temperatures. The result is kept as calibration.json in the model's directory.

    calibration = Calibration.load("my-model")
    calibration.curve.at_speedup(2.0)       # thresholds that halve the FLOPs on rows like these
    calibration.curve.within(0.01, 0.95)    # the fastest ones with which at most 1 % of predictions differ, at 95 % confidence
    calibration.curve.within_limits(Limits(max_missed=(("spam", 0.02),)))       # that change at most 2 % of those called spam
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypedDict

import numpy as np
import numpy.typing as npt

from models.directory.files import find_file
from models.errors import UnsupportedModelError
from models.exits.criterion import Criterion
from pipeline.calibration.drift.expected import Risks
from pipeline.calibration.drift.signals import Reference
from pipeline.calibration.limits.conditions import Condition, conditions, passing, shortage
from pipeline.calibration.limits.counts import ClassCounts, QualityCounts
from pipeline.calibration.limits.limits import Limits
from pipeline.errors import UserError, one_line
from pipeline.identity import ModelIdentity, dtype_of, first_difference, is_precision
from pipeline.storage.locate import write_text
from pipeline.windows import LongTexts

FILE = "calibration.json"
VERSION = 4
"""The version of the file's layout."""
OLDER_VERSIONS = (2, 3)
"""Versions that are read as well: 3 has no counts by class, of quality and by cell, so nothing is expected of a night's
disagreement, and 2 knows the weights alone of a model, and the precision by the word that was asked for."""
LONG_TEXTS, TRUNCATED = "long-texts", "truncated"
"""A part of what was calibrated beside the model's identity, and what it is where nothing is stored."""
STEP = 0.01
"""Neighbouring points of a path differ by about this fraction of the FLOPs of full depth."""
JUMP = 3 * STEP
"""Points further apart than this are not interpolated: many rows share one uncertainty, so nothing lies between."""
SPLIT_ROWS = 4000
"""Samples of at least this many rows are split into rows that fit thresholds and rows that test them
(docs/results/guarantees/README.md)."""
FIT_FRACTION = 0.25
"""The fraction of a sample that fits thresholds, or temperatures."""


def sample_for(tested: int, *, fitted: bool = False) -> int:
    """Return how many rows to calibrate on for so many rows that are tested: a quarter may be needed to fit."""
    split = math.ceil(tested / (1 - FIT_FRACTION))
    return split if split >= SPLIT_ROWS or fitted else tested


def tested_of(rows: int) -> int:
    """Return how many of so many rows are tested, if no temperatures are fitted; `fit.fit_rows` draws the others."""
    return rows if rows < SPLIT_ROWS else rows - int(FIT_FRACTION * rows)


class NotCalibratedError(UserError):
    """A model has no calibration."""


class Scaling(TypedDict):
    """The temperature that the logits of an exit were divided by, and its expected calibration error without and with it."""

    layer: int
    temperature: float
    error_before: float
    error_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A criterion that reaches a target, and what the calibration lets one expect of it."""

    criterion: Criterion
    flops_speedup: float
    """FLOPs of full depth over FLOPs spent."""
    exits: list[float]
    """Calibration rows by exit layer, layer 1 first, as [L]; interpolated, so not always whole."""
    differing: int | None = None
    """Test rows whose prediction differs at these thresholds; None without a limit."""
    confidence: float | None = None
    """The confidence with which the limit is kept; None without one, and in files of before it was written."""
    point: float = 0.0
    """Where the thresholds lie on the path: 2.25 is a quarter of the way from its third point to the fourth."""

    def __post_init__(self) -> None:
        if isinstance(self.criterion, dict):  # from JSON
            object.__setattr__(self, "criterion", Criterion(**self.criterion))


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A path of thresholds with what was counted along it: P points, E exits below the last, L layers."""

    criterion: str
    """The name of the criterion whose thresholds these are."""
    tolerance: float
    """With regression, values further apart than this differ."""
    layers: list[int]
    """The layers of the exits below the last, as [E]."""
    depth: int
    """The number of layers, L."""
    speeds: list[list[float]]
    """The threshold of every exit at every point, as [P, E]: full depth first, and no threshold falls along the path."""
    flops_fractions: list[float]
    """FLOPs spent over those of full depth, on all rows of the sample, as [P]."""
    exits: list[list[int]]
    """All rows of the sample by exit, as [P, E + 1]."""
    differing: list[int]
    """Test rows whose prediction is not that of full depth, as [P]."""
    tested: int
    """The number of test rows, which did not choose the path."""
    label_thresholds: list[float] = field(default_factory=list)
    """With label sets, the thresholds of labels, as `Criterion` has them."""
    classes: ClassCounts | None = None
    """Test rows by class, or by label, and those of them that are missed; None for values, and in files of older versions."""
    quality: QualityCounts | None = None
    """Right answers of the test rows that have a label; None without labels."""
    cell_rows: list[list[int]] = field(default_factory=list)
    """Test rows by `drift.cells.count_cells`, those at full depth last: [P, E x BINS + 1]; empty in files of older versions."""
    cell_differing: list[list[int]] = field(default_factory=list)
    """Those of them whose prediction is not that of full depth: [P, E x BINS + 1]."""

    def __post_init__(self) -> None:
        if isinstance(self.classes, dict):  # from JSON
            object.__setattr__(self, "classes", ClassCounts(**self.classes))
        if isinstance(self.quality, dict):
            object.__setattr__(self, "quality", QualityCounts(**self.quality))

    def risks_at(self, point: float) -> Risks | None:
        """Return what was counted by cell at a choice's point of the path; None for a file of an older version."""
        if not self.cell_rows:
            return None
        before, after = math.floor(point), math.ceil(point)
        weights = np.array([1 - (point - before), point - before])
        rows, differing = (
            weights @ np.array([cells[before], cells[after]]) for cells in (self.cell_rows, self.cell_differing)
        )
        return Risks(
            layers=tuple(self.layers), depth=self.depth, rows=tuple(rows.tolist()), differing=tuple(differing.tolist())
        )

    def at_speedup(self, speedup: float) -> Choice:
        """Return the thresholds that save this many FLOPs on rows like these; raise ValueError if none do.

        Between two points thresholds are interpolated; the points are so close that FLOPs are linear between them. Where they
        are not, because many rows are equally certain and exit together, the faster point is taken.
        """
        if speedup < 1:
            raise ValueError(f"a speed-up is at least 1, not {speedup:g}")
        wanted, fractions = 1 / speedup, self.flops_fractions
        after = next((point for point, fraction in enumerate(fractions) if fraction <= wanted + 1e-9), None)
        if after is None:
            raise ValueError(f"{speedup:g} cannot be reached; the fastest on these rows is {1 / min(fractions):.2f}")
        if after == 0:
            return self._choice(0, 0, 0.0)
        before, step = after - 1, fractions[after - 1] - fractions[after]
        return self._choice(before, after, (fractions[before] - wanted) / step if step < JUMP else 1.0)

    def within(self, limit: float, confidence: float) -> Choice:
        """Return the fastest thresholds that are guaranteed to change at most a fraction `limit` of the predictions.

        With probability `confidence` over the calibration rows the guarantee holds for all rows like them. If nothing else can
        be guaranteed the choice is full depth, and `shortage` says why.
        """
        return self.within_limits(Limits(max_disagreement=limit, confidence=confidence))

    def within_limits(self, limits: Limits) -> Choice:
        """Return the fastest thresholds that are guaranteed to keep all of these limits together; see `within`."""
        passed = passing(self.conditions(limits), limits.confidence)
        best = min(range(passed + 1), key=lambda point: self.flops_fractions[point])
        return replace(self._choice(best, best, 0.0), differing=self.differing[best], confidence=limits.confidence)

    def conditions(self, limits: Limits) -> list[Condition]:
        """Return what has to hold of a point, each with its counts; the curve must have counted what is limited."""
        return conditions(limits, self.differing, self.tested, self.classes, self.quality)

    def shortage(self, limits: Limits) -> str:
        """Explain why only full depth can be guaranteed, and how many rows would be enough, if any number would."""
        found, points = self.conditions(limits), len(self.differing)
        saving = next((point for point, fraction in enumerate(self.flops_fractions) if fraction < 1), points)
        # The test may end before the first point that saves anything: exits that few rows take cost more than they save.
        for point in (saving, passing(found, limits.confidence) + 1):
            if max(point, saving) < points:
                unmet = [condition for condition in found if not condition.passes(point, limits.confidence)]
                if unmet:
                    return shortage(unmet, point, limits.confidence, self.sample_of)
        return "what can be guaranteed costs more than it saves: few rows are certain enough to exit"

    def sample_of(self, tested: int) -> int:
        """Return how many rows to calibrate on for so many rows that are tested, if temperatures are fitted as they were."""
        return sample_for(tested, fitted=self.tested < sum(self.exits[0]) < SPLIT_ROWS)

    def _choice(self, before: int, after: int, weight: float) -> Choice:
        """Interpolate between two points; `weight` 0 is the first of them, 1 the second."""

        def between(values: Sequence[Any]) -> npt.NDArray[np.float64]:
            low, high = np.asarray(values[before], np.float64), np.asarray(values[after], np.float64)
            return low + weight * (high - low)

        exits = np.zeros(self.depth)
        exits[np.array([*self.layers, self.depth]) - 1] = between(self.exits)
        speeds = tuple(zip(self.layers, between(self.speeds).tolist(), strict=True))
        return Choice(
            criterion=Criterion(
                name=self.criterion,
                speeds=speeds,
                tolerance=self.tolerance,
                label_thresholds=tuple(self.label_thresholds),
            ),
            flops_speedup=1 / float(between(self.flops_fractions)),
            exits=exits.tolist(),
            point=before + weight * (after - before),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WallClock:
    """Speed-ups of the engine in time on one machine, beside those in FLOPs, on some rows of the sample."""

    hardware: str
    """The name of the processor or GPU."""
    flops_speedups: list[float]
    """Speed-ups in FLOPs, ascending from 1, which is full depth."""
    time_speedups: list[float]
    """The speed-ups in time that were measured with them."""

    def time_speedup_at(self, flops_speedup: float) -> float:
        """Return the speed-up in time that goes with one in FLOPs."""
        return float(np.interp(flops_speedup, self.flops_speedups, self.time_speedups))

    def flops_speedup_for(self, time_speedup: float) -> float:
        """Return the speed-up in FLOPs that a speed-up in time takes; raise ValueError if none measured was as fast."""
        times = np.maximum.accumulate(self.time_speedups)
        if time_speedup > times[-1]:
            raise ValueError(
                f"{time_speedup:g} cannot be reached in time on this machine; the fastest was {times[-1]:.2f}"
            )
        return float(np.interp(time_speedup, times, self.flops_speedups))


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Everything that jobs/calibrate.py measures of a model, as classify.py and serve.py read it."""

    model: dict[str, str]
    """What was calibrated, by `ModelIdentity.parts`, and how long texts became windows, if they did; a file of an older version
    has weights and max-tokens alone."""
    precision: str
    """What it computed in, by `models.precision.precision_on`; in a file of an older version the word for that, or 'auto'."""
    data: dict[str, Any]
    """The sample: rows, rejected rows, tokens, a digest of them, and the seed of the draw and the split."""
    curve: Curve
    reference: Reference
    """The distribution of the sample's rows, for drift."""
    timing: WallClock | None = None
    """Speed-ups in time, unless the user did without."""
    scalings: list[Scaling] = field(default_factory=list)
    """The temperatures that were put on exits, if the user wanted them."""
    choices: dict[str, Choice] = field(default_factory=dict)
    """Thresholds by usual target, for people who read the file; any other target follows from the curve."""

    def save(self, directory: str | Path) -> Path:
        """Write calibration.json into a model's directory and return its path."""
        path = Path(directory) / FILE
        write_text(path, json.dumps({"version": VERSION} | asdict(self), indent=1) + "\n")
        return path

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Read calibration.json of a model's directory, or of its hub id.

        Raises NotCalibratedError if there is none, UserError if it has another layout, or the hub cannot be asked.
        """
        try:
            path = find_file(directory, FILE)
        except FileNotFoundError as error:
            raise NotCalibratedError(
                f"{directory}: not calibrated, so nothing is known of speed and disagreement; calibrate "
                "it on a random sample of the texts to come (jobs/calibrate.py)"
            ) from error
        except OSError as error:
            raise UserError(f"{directory}: its {FILE} cannot be read: {one_line(error)}") from error
        except UnsupportedModelError as error:
            raise UserError(f"{error}; or run jobs/calibrate.py again") from error
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            version = values.pop("version")
            if version == OLDER_VERSIONS[0]:
                values["model"] = {"weights": values["model"], "max-tokens": str(values.pop("max_tokens"))}
            elif version not in (*OLDER_VERSIONS, VERSION):
                raise UserError(f"{path}: of another version of offramp; run jobs/calibrate.py again")
            values["curve"] = Curve(**values["curve"])
            values["reference"] = Reference(**values["reference"])
            values["choices"] = {name: Choice(**choice) for name, choice in values["choices"].items()}
            values["timing"] = values["timing"] and WallClock(**values["timing"])
            return cls(**values)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path}: damaged; run jobs/calibrate.py again") from error

    @property
    def computed_in(self) -> str | None:
        """The precision in which its thresholds hold; None if a file of an older version leaves that open."""
        return self.precision if is_precision(self.precision) else None

    def check(self, identity: ModelIdentity, dtype: str, long_texts: LongTexts | None = None) -> None:
        """Raise UserError unless this very model was calibrated, in this dtype; 'auto' takes the one that was.

        So must long texts have become the same windows, or have been truncated, without `long_texts`.
        """
        then, now = self.model | {LONG_TEXTS: self.model.get(LONG_TEXTS, TRUNCATED)}, identity.parts()
        now[LONG_TEXTS] = TRUNCATED if long_texts is None else long_texts.describe()
        if self.computed_in is None or dtype != "auto":
            then["dtype"], now["dtype"] = dtype_of(self.precision), dtype
        if difference := first_difference(then, now):
            raise UserError(f"the model was calibrated with {difference}; run jobs/calibrate.py again")


SPEEDUPS = (1.5, 2.0, 3.0, 4.0)
"""Speed-ups in FLOPs that users usually ask for."""
LIMITS = (0.005, 0.01, 0.02)
"""Limits on the fraction of differing predictions that users usually ask for."""


def choices(curve: Curve, confidence: float, limits: Sequence[float] = LIMITS) -> dict[str, Choice]:
    """Return thresholds by target, '2x' or 'at most 0.01', for the usual targets that can be reached.

    With limits on every class these are 'at most 0.01 of each class', and with labels 'accuracy at most 0.01 lower'.
    """
    fastest = 1 / min(curve.flops_fractions)
    reached = {f"{speedup:g}x": curve.at_speedup(speedup) for speedup in SPEEDUPS if speedup <= fastest}
    wanted = {f"at most {limit:g}": Limits(max_disagreement=limit, confidence=confidence) for limit in limits}
    for limit in limits if curve.classes is not None else ():
        each = Limits(max_missed=((None, limit),), confidence=confidence)
        wanted |= {f"at most {limit:g} of each class": each}
    for limit in limits if curve.quality is not None else ():
        wanted |= {f"accuracy at most {limit:g} lower": Limits(max_quality_loss=limit, confidence=confidence)}
    return reached | {target: curve.within_limits(limits) for target, limits in wanted.items()}
