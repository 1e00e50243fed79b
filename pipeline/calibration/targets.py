"""Turn what a caller asks of the exits into a criterion: a threshold of the caller's own, a speed-up, or a limit.

Target(speed=0.3)                  exit where the uncertainty is at most 0.3
Target(target_speedup=2)           thresholds that save half of the FLOPs, by the model's calibration
Target(max_disagreement=0.01)      the fastest thresholds that change at most 1 % of the predictions, by the calibration
Target(max_missed=[("spam", 0.02)])  likewise, at most 2 % of those that full depth calls spam
Target(max_quality_loss=0.01)      likewise, with which accuracy falls by at most 1 %, by a calibration with labels
Target()                           the criterion that is stored in the model, else normalized entropy at 0.1
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from models.exits.task import Task
from pipeline.calibration.curve import Calibration, Choice, Curve, WallClock
from pipeline.calibration.guarantees import CONFIDENCE
from pipeline.calibration.limits.limits import ByClass, Limits
from pipeline.errors import InputError, printable
from pipeline.identity import ModelIdentity
from pipeline.windows import LongTexts

LIMIT_FIELDS = ("max_disagreement", "max_missed", "max_quality_loss")
"""Fields that limit what exiting early changes; they may stand together."""
EXCLUSIVE = (("speed",), ("target_speedup",), LIMIT_FIELDS)
"""Fields of which a target may set those of one group."""
NUMBERS = ("speed", "tolerance", "target_speedup", "max_disagreement", "max_quality_loss", "confidence")
"""Fields that are a number, if they are given."""
CALIBRATED = ("criterion", "patience", "exits")
"""Fields that the calibration decides where it chooses the thresholds."""
DEFAULT_SPEED = 0.1
VALUE_CHARACTERS = 80
"""Characters that a refusal repeats of what is no number."""
LabelThreshold = Sequence[tuple[str | None, float]]
"""Probabilities above which labels are predicted, by name; that of None is for all that are not named."""


def by_name(given: float | Mapping[str, float] | None) -> ByClass | None:
    """Return one value for all classes or labels, or some by name, as a Target has them; 0.1 makes ((None, 0.1),)."""
    if given is None:
        return None
    return tuple(given.items()) if isinstance(given, Mapping) else ((None, given),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is asked of the exits; a field that is None leaves the choice to the model."""

    criterion: str | None = None
    speed: float | None = None
    patience: int | None = None
    tolerance: float | None = None
    exits: tuple[int, ...] | None = None
    """Layers after which exits are evaluated."""
    label_threshold: LabelThreshold | None = None
    """Thresholds of labels, for a model of label sets."""
    target_speedup: float | None = None
    """FLOPs of full depth over those to spend."""
    speedup_in: str = "flops"
    """What `target_speedup` counts: 'flops', or 'time' for wall-clock as the calibration measured it."""
    max_disagreement: float | None = None
    """Largest fraction of predictions that may differ from those at full depth."""
    max_missed: ByClass | None = None
    """Largest fractions of the rows of a class at full depth that may get another answer, by name of the class."""
    max_quality_loss: float | None = None
    """Largest loss of accuracy against full depth, by the labels that the calibration had."""
    confidence: float = CONFIDENCE
    """Probability with which all limits hold together."""

    def __post_init__(self) -> None:
        for name in ("max_missed", "label_threshold"):
            if (by_class := getattr(self, name)) is not None and not by_class:
                raise InputError(name, "names no class; give one number for all, or one for each of some")
        for name in NUMBERS:
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, _number(name, value))
        for name in ("max_missed", "label_threshold"):
            if (by_class := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple((of, _number(name, value)) for of, value in by_class))
        given = [group[0] for group in self._given if group]
        if len(given) > 1:
            raise InputError(given[1], f"and `{given[0]}` exclude each other")
        clash = [name for name in CALIBRATED if getattr(self, name) is not None]
        if clash and given and given != ["speed"]:
            raise InputError(clash[0], f"is chosen by `{given[0]}`, from what calibrate.py found")
        fractions = [(name, getattr(self, name)) for name in ("max_disagreement", "max_quality_loss", "confidence")]
        for name, value in [*fractions, *(("max_missed", limit) for _, limit in self.max_missed or ())]:
            if value is not None and not 0 < value < 1:
                raise InputError(name, f"must be between 0 and 1, not {value:g}")
        if self.target_speedup is not None and not self.target_speedup >= 1:
            raise InputError("target_speedup", f"must be at least 1, which is full depth, not {self.target_speedup:g}")
        if self.target_speedup is None and self.speedup_in != "flops":
            raise InputError("speedup_in", "says what `target_speedup` counts, and none is asked for")

    @property
    def _given(self) -> list[list[str]]:
        """The fields of each of the EXCLUSIVE groups that are set."""
        return [[name for name in group if getattr(self, name) is not None] for group in EXCLUSIVE]

    @property
    def asked(self) -> str:
        """The first field that decides thresholds; empty if the choice is left to the model."""
        return next((group[0] for group in self._given if group), "")

    @property
    def needs_calibration(self) -> bool:
        """Return whether the thresholds have to be looked up in the model's calibration."""
        return self.target_speedup is not None or self.limits is not None

    @property
    def limits(self) -> Limits | None:
        """What a run is to be held to; None where there are no limits."""
        if all(getattr(self, name) is None for name in LIMIT_FIELDS):
            return None
        return Limits(
            max_disagreement=self.max_disagreement,
            max_missed=tuple(self.max_missed or ()),
            max_quality_loss=self.max_quality_loss,
            confidence=self.confidence,
        )


def _number(field: str, value: object) -> float:
    """Return a number; raise InputError for anything else, which whoever calls from Python may give."""
    if isinstance(value, Real) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            return float(value)
    raise InputError(field, f"must be a number, not {printable(repr(value), VALUE_CHARACTERS)}")


def own_criterion(target: Target, model: EarlyExitModel) -> Criterion:
    """Complete the target by the model's stored criterion, then by defaults; raise InputError for impossible values."""
    stored = model.criterion
    thresholds = label_thresholds(target.label_threshold, model)
    if stored is not None and target.criterion not in (None, stored.name):
        stored = None  # another criterion's threshold says nothing
    if stored is None:
        name = target.criterion or ("lte" if model.regression and model.lte is not None else "entropy")
        full_depth = target.criterion is None and model.regression and name == "entropy"  # a teacher without exits
        stored = Criterion(name=name, speed=0.0 if full_depth else DEFAULT_SPEED)
    given = {name: getattr(target, name) for name in ("speed", "patience", "tolerance")}
    given |= {"label_thresholds": thresholds}
    given |= {"speeds": None if target.speed is None else ()}  # one threshold replaces one for every exit
    return replace(stored, **{name: value for name, value in given.items() if value is not None})


def label_thresholds(given: LabelThreshold | None, model: EarlyExitModel) -> tuple[float, ...]:
    """Return the thresholds of a model's labels, as Criterion has them: those given, else those stored, else ().

    label_thresholds([(None, 0.4), ("toxic", 0.3)], model) is (0.3, 0.4) if its labels are toxic and spam. Raises InputError for
    a label that it does not have, and for a model that predicts no label sets.
    """
    if given is None:
        return () if model.criterion is None else model.criterion.label_thresholds
    if model.task is not Task.LABELS:
        what = "one value" if model.regression else "one class"
        raise InputError("label_threshold", f"is for models of label sets, and this one predicts {what}")
    values = _of_labels("label_threshold", given, model)
    thresholds = tuple(values.get(label, values.get(None, 0.5)) for label in model.labels)
    return Criterion(label_thresholds=thresholds).label_thresholds


def _of_labels(field: str, given: ByClass, model: EarlyExitModel) -> dict[str | None, float]:
    """Return values by label; raise InputError for a label that is given twice, or that the model does not have."""
    values = dict(given)
    names = [name for name, _ in given]
    if len(names) > len(values):
        twice = next(name for name in values if names.count(name) > 1)
        what = "one for all labels" if twice is None else f"that of '{twice}'"
        raise InputError(field, f"{what} is given twice; name each label: toxic=0.3 spam=0.4")
    unknown = [name for name in values if name is not None and name not in model.labels]
    if unknown:
        raise InputError(field, f"'{unknown[0]}' is none of the model's labels: {', '.join(model.labels)}")
    return values


def check_limits(target: Target, model: EarlyExitModel, curve: Curve) -> None:
    """Raise InputError unless the calibration has counted what is limited."""
    for name in ("max_missed", "max_quality_loss"):
        if getattr(target, name) is not None and model.task is Task.VALUE:
            raise InputError(name, "is for models of classes or label sets, and this one predicts one value")
    if target.max_missed is not None:
        _of_labels("max_missed", target.max_missed, model)
        if curve.classes is None:
            raise InputError("max_missed", "needs a calibration that counted classes; run jobs/calibrate.py again")
    if target.max_quality_loss is not None and curve.quality is None:
        raise InputError(
            "max_quality_loss",
            "needs a calibration on rows with true labels; run jobs/calibrate.py with a label column",
        )


def load_calibration(
    directory: str,
    target: Target,
    model: EarlyExitModel,
    identity: ModelIdentity,
    dtype: str,
    long_texts: LongTexts | None = None,
) -> Calibration:
    """Load the calibration of a model directory; raise UserError if there is none, or if it is about something else."""
    calibration = Calibration.load(directory)
    calibration.check(identity, dtype, long_texts)
    known = calibration.curve.tolerance
    if target.tolerance not in (None, known):
        raise InputError(
            "tolerance", f"{target.tolerance:g}: the model was calibrated with {known:g}; run calibrate.py again"
        )
    curve = Criterion(label_thresholds=tuple(calibration.curve.label_thresholds))
    if curve.label_thresholds != label_thresholds(target.label_threshold, model):
        then = curve.describe().partition("labels ")[2] or "above 0.5"
        raise InputError(
            "label_threshold", f"is not what the model was calibrated with: {then}; run calibrate.py again"
        )
    check_limits(target, model, calibration.curve)
    return calibration


def choose(target: Target, curve: Curve, timing: WallClock | None = None) -> Choice:
    """Look up the thresholds for a speed-up or a limit; raise InputError if the speed-up is out of reach."""
    if target.limits is not None:
        return curve.within_limits(target.limits)
    assert target.target_speedup is not None
    try:
        return curve.at_speedup(_in_flops(target, timing))
    except ValueError as error:
        raise InputError("target_speedup", str(error)) from error


def _in_flops(target: Target, timing: WallClock | None) -> float:
    """Convert the wanted speed-up to one in FLOPs."""
    assert target.target_speedup is not None
    if target.speedup_in == "flops":
        return target.target_speedup
    if timing is None:
        raise ValueError("in time: calibrate.py was run without timing")
    return timing.flops_speedup_for(target.target_speedup)
