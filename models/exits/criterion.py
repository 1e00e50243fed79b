"""Criterion: when a row exits. Plain values, so that workers without a model need not load torch."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Self

from models.errors import InputError

CRITERIA = ("entropy", "confidence", "patience", "lte")
THRESHOLD_CRITERIA = ("entropy", "confidence", "lte")
"""The criteria that have thresholds, which patience has not; a calibration chooses those."""
TOLERANCE = 0.1
"""The distance from which on values differ, unless another is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """Which uncertainty decides, and up to which value of it a row exits.

    entropy     normalized entropy at most `speed` (FastBERT, DeeBERT)
    confidence  1 - highest probability at most `speed` (BERxiT)
    lte         1 - certainty that a learned head predicts at most `speed` (BERxiT's learning to exit); also for regression
    patience    `patience` exits in a row predict the class of the one before, or a value less than `tolerance` apart (PABEE)

    Of a model that predicts label sets, entropy and confidence are those of its least certain label
    (`uncertainty.least_certain_label`), and exits agree where their sets are equal.
    """

    name: str = "entropy"
    speed: float = 0.0
    """Threshold in [0, 1] of the first three: 0 runs every row at full depth, with 1 every row takes the first exit."""
    speeds: tuple[tuple[int, float], ...] = ()
    """A threshold of its own for every exit, as (layer, threshold), in place of `speed`; exits that are not named, or whose
    threshold is 0, are not evaluated."""
    patience: int = 1
    """Number of consecutive exits that must agree with the one before."""
    tolerance: float = TOLERANCE
    """Largest difference of values that counts as agreement, in units of the value; for regression."""
    label_thresholds: tuple[float, ...] = ()
    """Probabilities above which labels are predicted, for a model of label sets: one a label, or one for all; () is 0.5."""

    def __post_init__(self) -> None:
        # JSON has lists in place of tuples; six digits are what `describe`, and so the fingerprint of a run, distinguishes.
        pairs = sorted((int(layer), float(f"{speed:.6g}")) for layer, speed in self.speeds)
        object.__setattr__(self, "speeds", tuple(pair for pair in pairs if pair[1] != 0.0))
        object.__setattr__(self, "label_thresholds", _fewest([float(f"{p:.6g}") for p in self.label_thresholds]))
        if pairs:
            object.__setattr__(self, "speed", 0.0)
        if self.name not in CRITERIA:
            raise InputError("criterion", f"must be one of {', '.join(CRITERIA)}, not '{self.name}'")
        for speed in (self.speed, *(speed for _, speed in pairs)):
            if not 0.0 <= speed <= 1.0:
                raise InputError("speed", f"must be in [0, 1], not {speed}")
        if len({layer for layer, _ in pairs}) != len(pairs) or (self.speeds and self.name == "patience"):
            raise InputError("speeds", f"must name a layer once, and patience knows none: {self.speeds}")
        if self.patience < 1:
            raise InputError("patience", f"must be at least 1, not {self.patience}")
        if self.tolerance < 0:
            raise InputError("tolerance", f"must be at least 0, not {self.tolerance}")
        for threshold in self.label_thresholds:
            if not 0.0 < threshold < 1.0:
                raise InputError("label_threshold", f"must be between 0 and 1, not {threshold:g}")

    @property
    def full_depth(self) -> bool:
        """Whether no row exits before the last layer, so that no exit before it needs to be evaluated."""
        return self.name != "patience" and self.speed == 0.0 and not self.speeds

    def at_full_depth(self) -> Self:
        """Return the criterion of the same uncertainty by which every row goes to full depth; for patience, one of entropy."""
        name = "entropy" if self.name == "patience" else self.name
        return type(self)(name=name, tolerance=self.tolerance, label_thresholds=self.label_thresholds)

    def boundaries(self, labels: int) -> tuple[float, ...]:
        """Return the logit above which each of this many labels is predicted: that of its threshold, 0 for 0.5."""
        thresholds = self.label_thresholds or (0.5,)
        logits = tuple(math.log(threshold / (1.0 - threshold)) for threshold in thresholds)
        return logits * labels if len(logits) == 1 else logits

    def speed_at(self, layer: int) -> float:
        """Return the threshold of the exit after a layer; at 0 no row exits there."""
        return dict(self.speeds).get(layer, 0.0) if self.speeds else self.speed

    def uses_exit(self, layer: int) -> bool:
        """Return whether a row may exit after this layer, so that its exit needs to be evaluated."""
        return self.name == "patience" or self.speed_at(layer) > 0.0

    def to_json(self) -> dict[str, Any]:
        """Lay it out as config.json has it: without thresholds of labels where it has none, as older versions know it."""
        values = asdict(self)
        return values if self.label_thresholds else {k: v for k, v in values.items() if k != "label_thresholds"}

    def describe(self) -> str:
        """Return its name with its thresholds: 'entropy 0.3', 'lte 3:0.25 6:0.5', 'patience 2, tolerance 0.1'.

        Thresholds of labels follow unless they are 0.5: 'entropy 0.3, labels above 0.4', or 'labels above 0.5 0.3' for each.
        """
        above = f", labels above {' '.join(f'{p:g}' for p in self.label_thresholds)}" if self.label_thresholds else ""
        if self.name == "patience":
            return f"patience {self.patience}, tolerance {self.tolerance:g}{above}"
        if self.speeds:
            return f"{self.name} {' '.join(f'{layer}:{speed:g}' for layer, speed in self.speeds)}{above}"
        return f"{self.name} {self.speed:g}{above}"


def _fewest(thresholds: list[float]) -> tuple[float, ...]:
    """Return thresholds of labels in the shortest form: () where all are 0.5, one where all are equal.

    _fewest([0.5, 0.5]) is (), _fewest([0.3, 0.3]) is (0.3,), and _fewest([0.3, 0.5]) is (0.3, 0.5).
    """
    kinds = tuple(dict.fromkeys(thresholds))
    return () if kinds in ((), (0.5,)) else kinds if len(kinds) == 1 else tuple(thresholds)
