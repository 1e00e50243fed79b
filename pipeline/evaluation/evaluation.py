"""Quality against cost: one pass through all exits of every row, from which all thresholds follow by arithmetic."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.early_exit import EarlyExitModel
from models.exits.criterion import CRITERIA, Criterion
from pipeline.corpus.chunks import Chunk
from pipeline.errors import InputError
from pipeline.evaluation.metrics import CLASSIFICATION, REGRESSION
from pipeline.evaluation.recorded import record_all_exits
from pipeline.rows import FloatArray, IntArray

GRID = 60
"""Thresholds tried of each criterion: quantiles of the uncertainty that occurs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoint:
    """Quality and cost with one criterion and threshold."""

    criterion: Criterion
    quality: float
    agreement: float
    """The same measure against the answers of full depth; for accuracy, the share of equal labels."""
    mean_exit_layer: float
    flops_speedup: float
    """FLOPs of the plain full-depth model over FLOPs spent, heads included, on the same rows."""
    exits: dict[int, int]
    """Rows by exit layer."""
    exits_that_pay: tuple[int, ...]


class Evaluation:
    """Labelled rows, what all exits of a model say of them, and what follows."""

    def __init__(self, model: EarlyExitModel, examples: Chunk, metric: str | None = None) -> None:
        """`metric` names the measure of quality: of CLASSIFICATION or REGRESSION; None takes the first.

        Raises InputError if the model's task has no such measure.
        """
        self.metrics = REGRESSION if model.regression else CLASSIFICATION
        if metric is not None and metric not in self.metrics:
            raise InputError("metric", f"'{metric}' is none of {', '.join(self.metrics)}")
        self.metric = metric or next(iter(self.metrics))
        self.targets, self.lengths, self.flops = examples.labels, examples.rows.lengths, model.flops
        self.recorded = record_all_exits(model, examples)

    def at(self, criterion: Criterion) -> OperatingPoint:
        """Derive what the engine would do with this criterion, looking at all exits at which a row may leave."""
        recorded, measure = self.recorded, self.metrics[self.metric]
        exits_EB = recorded.exits_at(criterion)
        first_B = exits_EB.argmax(0)
        layers = np.array(recorded.layers)
        exit_layers_B = layers[first_B]
        answers_B = recorded.answers[first_B, np.arange(len(first_B))]
        full = self.flops.full_depth(self.lengths)
        looked_at = [layer for layer in recorded.layers[:-1] if criterion.uses_exit(layer)]
        spent = self.flops.with_heads_at([*looked_at, recorded.layers[-1]]).rows(self.lengths, exit_layers_B)
        return OperatingPoint(
            criterion=criterion,
            quality=measure(answers_B, self.targets),
            agreement=measure(answers_B, recorded.answers[-1]),
            mean_exit_layer=float(exit_layers_B.mean()),
            flops_speedup=float(full.sum() / spent.sum()),
            exits={int(layer): int((exit_layers_B == layer).sum()) for layer in layers},
            exits_that_pay=exits_that_pay(recorded.layers, exits_EB),
        )

    def full_depth(self) -> OperatingPoint:
        return self.at(Criterion())

    def by_layer(self, metric: str | None = None) -> dict[int, float]:
        """Quality if all rows left at one exit."""
        measure = self.metrics[metric or self.metric]
        return {
            layer: measure(answers, self.targets)
            for layer, answers in zip(self.recorded.layers, self.recorded.answers, strict=True)
        }

    def criteria(self) -> list[str]:
        """Criteria that this model can use."""
        if len(self.recorded.layers) == 1:
            return []
        skipped = {"lte"} if self.recorded.lte is None else set()
        skipped |= {"entropy", "confidence"} if self.recorded.regression else set()
        return [name for name in CRITERIA if name not in skipped]

    def curve(self, name: str) -> list[OperatingPoint]:
        """Points over a grid of thresholds of one criterion, from full depth to the fastest."""
        points = [self.at(criterion) for criterion in self._grid(name)]
        return [self.full_depth(), *sorted(points, key=lambda point: point.flops_speedup)]

    def _grid(self, name: str) -> Iterable[Criterion]:
        if name == "patience":
            exits = range(1, len(self.recorded.layers))
            if not self.recorded.regression:
                return [Criterion(name=name, patience=patience) for patience in exits]
            changes = np.abs(np.diff(self.recorded.answers, axis=0))
            steps = np.unique(np.quantile(changes, np.linspace(0.02, 1, GRID // 3)).round(4))
            return [Criterion(name=name, patience=n, tolerance=float(step)) for n in exits for step in steps]
        seen = self.recorded.uncertainty(Criterion(name=name, speed=0.5))[:-1]
        steps = np.unique(np.quantile(seen, np.linspace(0.01, 1, GRID)).round(4))
        return [Criterion(name=name, speed=float(step)) for step in steps if 0 < step <= 1]


def cheapest_within(points: Iterable[OperatingPoint], drop: float) -> OperatingPoint:
    """Return the point that saves most FLOPs among those at most `drop` (0.01 is a point) below full depth."""
    points = list(points)
    full = next(point for point in points if point.criterion.full_depth)
    good = [point for point in points if point.quality >= full.quality - drop - 1e-9]
    return max(good, key=lambda point: point.flops_speedup)


EXIT_TEST_LAYERS = 0.1
"""Time of looking at an exit, head and re-packing, in layers: 0.03 to 0.12 (docs/results/speed.md)."""


def exits_that_pay(layers: tuple[int, ...], exits_EB: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    """Choose the exits with which these rows cost least, where looking at one costs EXIT_TEST_LAYERS.

    `exits_EB` says where rows would leave; the last exit takes all. Starts from all exits and drops the one whose loss gains
    most, until none does. (Patience counts the exits that are looked at, so for it this is a guess.)
    """
    numbers = np.array(layers)

    def cost(kept: list[int]) -> float:
        first_B = exits_EB[kept].argmax(0)
        return float(numbers[kept][first_B].mean() + EXIT_TEST_LAYERS * first_B.mean())

    kept = list(range(len(layers)))
    while len(kept) > 1:
        without = [[*kept[:place], *kept[place + 1 :]] for place in range(len(kept) - 1)]
        best = min(without, key=cost)
        if cost(best) >= cost(kept):
            break
        kept = best
    return tuple(int(layer) for layer in numbers[kept])


def luha(
    uncertainty_B: FloatArray, right_B: npt.NDArray[np.bool_], bins: int = 10
) -> tuple[FloatArray, FloatArray, IntArray]:
    """Return middle, share of right answers (NaN where empty) and rows of equal bins of uncertainty (FastBERT, figure 3)."""
    where = np.minimum((uncertainty_B * bins).astype(np.int64), bins - 1)
    rows = np.bincount(where, minlength=bins)
    right = np.bincount(where, weights=right_B, minlength=bins)
    with np.errstate(invalid="ignore"):
        share = (right / rows).astype(np.float32)
    return ((np.arange(bins) + 0.5) / bins).astype(np.float32), share, rows
