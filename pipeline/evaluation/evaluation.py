"""Quality against cost: one pass through all exits of every row, from which every threshold's outcome follows by arithmetic.

evaluation = Evaluation(model, examples)
evaluation.at(Criterion(speed=0.3)).flops_speedup     # 2.1: FLOPs of full depth over those spent
cheapest_within(evaluation.curve("entropy"), 0.01)    # the cheapest threshold that loses at most a point of quality
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from models.early_exit import EarlyExitModel
from models.exits.criterion import CRITERIA, Criterion
from models.exits.task import Task
from pipeline.corpus.chunks import Chunk
from pipeline.errors import InputError
from pipeline.evaluation.metrics import Metric, accuracy, f1, metrics_of, subset_accuracy
from pipeline.evaluation.recorded import record_all_exits
from pipeline.rows import FloatArray, IntArray

Bools = npt.NDArray[np.bool_]

GRID = 60
"""At most this many thresholds of a criterion are tried: quantiles of the uncertainties that occur."""
EXIT_TEST_LAYERS = 0.1
"""The time to evaluate an exit, head and re-packing, in layers: measured at 0.03 to 0.12 (docs/results/speed/README.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoint:
    """Quality and cost of a model under one criterion with its threshold."""

    criterion: Criterion
    quality: float
    """The metric against the labels."""
    agreement: float
    """The fraction of rows with the class or label set of full depth; for values, the metric against those of full depth."""
    mean_exit_layer: float
    flops_speedup: float
    """FLOPs of the plain full-depth model over FLOPs spent, heads included, on the same rows."""
    exits: dict[int, int]
    """The number of rows by exit layer."""
    worthwhile_exits: tuple[int, ...]
    """The exits worth evaluating under this criterion; see `worthwhile_exits`."""


class Evaluation:
    """A model's outputs at all exits for labelled rows, and what follows from them for any criterion."""

    def __init__(
        self,
        model: EarlyExitModel,
        examples: Chunk,
        metric: str | None = None,
        label_thresholds: tuple[float, ...] = (),
    ) -> None:
        """Run the model on the examples; `metric` is a name in `metrics_of` its task, None for the first of them.

        `label_thresholds` are those of a Criterion, for a model of label sets: all points have them, whatever their criterion.
        Raises InputError if the model's task has no such metric.
        """
        by_classes = {"f1": partial(f1, classes=model.shape.classes)} if model.task is Task.CLASSES else {}
        self.metrics: Mapping[str, Metric] = metrics_of(model.task) | by_classes
        self.label_thresholds = label_thresholds
        if metric is not None and metric not in self.metrics:
            raise InputError("metric", f"'{metric}' is none of {', '.join(self.metrics)}")
        self.metric = metric or next(iter(self.metrics))
        recorded = record_all_exits(model, examples, label_thresholds)
        self.rows = np.flatnonzero(recorded.finite)
        """Numbers of the examples that are evaluated: those of which every exit makes finite numbers."""
        self.targets, self.lengths = examples.labels[self.rows], examples.rows.lengths[self.rows]
        self.recorded, self.flops = recorded.take(self.rows), model.flops

    def at(self, criterion: Criterion) -> OperatingPoint:
        """Return what the engine would do under this criterion, evaluating every exit at which it lets rows exit."""
        recorded, metric = self.recorded, self.metrics[self.metric]
        agreement = metric if recorded.regression else accuracy if recorded.boundaries is None else subset_accuracy
        criterion = replace(criterion, label_thresholds=self.label_thresholds)
        would_exit_EB = recorded.exits_at(criterion)
        first_B = would_exit_EB.argmax(0)
        layers = np.array(recorded.layers)
        exit_layers_B = layers[first_B]
        predictions_B = recorded.answers[first_B, np.arange(len(first_B))]
        used = [layer for layer in recorded.layers[:-1] if criterion.uses_exit(layer)]
        spent = self.flops.with_heads_at([*used, recorded.layers[-1]]).rows(self.lengths, exit_layers_B)
        return OperatingPoint(
            criterion=criterion,
            quality=metric(predictions_B, self.targets),
            agreement=agreement(predictions_B, recorded.answers[-1]),
            mean_exit_layer=float(exit_layers_B.mean()),
            flops_speedup=float(self.flops.full_depth(self.lengths).sum() / spent.sum()),
            exits={int(layer): int((exit_layers_B == layer).sum()) for layer in layers},
            worthwhile_exits=worthwhile_exits(recorded.layers, would_exit_EB),
        )

    def beside(self, other: "Evaluation", points: Sequence[OperatingPoint]) -> list[OperatingPoint]:
        """Return points of this model with their FLOPs over those of another one's full depth, to be drawn beside it."""
        ratio = float(other.flops.full_depth(other.lengths).sum() / self.flops.full_depth(self.lengths).sum())
        return [replace(point, flops_speedup=ratio * point.flops_speedup) for point in points]

    def full_depth(self) -> OperatingPoint:
        """Return the point at which every row runs through all layers."""
        return self.at(Criterion())

    def by_layer(self, metric: str | None = None) -> dict[int, float]:
        """Return the quality of every exit when all rows exit there, by layer."""
        measure = self.metrics[metric or self.metric]
        return {
            layer: measure(predictions, self.targets)
            for layer, predictions in zip(self.recorded.layers, self.recorded.answers, strict=True)
        }

    def correct(self, exit_: int) -> Bools:
        """Return which rows the exit of this index predicts rightly; of label sets, those without a wrong label: [B]."""
        right: Bools = self.recorded.answers[exit_] == self.targets
        return right if right.ndim == 1 else np.logical_and.reduce(right, axis=1)

    def criteria(self) -> list[str]:
        """Return the names of the criteria that this model can use; none for a model without exits."""
        if len(self.recorded.layers) == 1:
            return []
        skipped = {"lte"} if self.recorded.lte is None else set()
        skipped |= {"entropy", "confidence"} if self.recorded.regression else set()
        return [name for name in CRITERIA if name not in skipped]

    def curve(self, name: str) -> list[OperatingPoint]:
        """Return the points over a grid of thresholds of one criterion, from full depth to the fastest."""
        points = [self.at(criterion) for criterion in self._grid(name)]
        return [self.full_depth(), *sorted(points, key=lambda point: point.flops_speedup)]

    def _grid(self, name: str) -> Iterable[Criterion]:
        """Return one criterion with each of the thresholds to try."""
        if name == "patience":
            exits = range(1, len(self.recorded.layers))
            if not self.recorded.regression:
                return [Criterion(name=name, patience=patience) for patience in exits]
            changes = np.abs(np.diff(self.recorded.answers, axis=0))
            steps = np.unique(np.quantile(changes, np.linspace(0.02, 1, GRID // 3)).round(4))
            return [Criterion(name=name, patience=n, tolerance=float(step)) for n in exits for step in steps]
        uncertainty_EB = self.recorded.uncertainty(Criterion(name=name, speed=0.5))[:-1]
        steps = np.unique(np.quantile(uncertainty_EB, np.linspace(0.01, 1, GRID)).round(4))
        return [Criterion(name=name, speed=float(step)) for step in steps if 0 < step <= 1]


def cheapest_within(points: Sequence[OperatingPoint], drop: float) -> OperatingPoint:
    """Return the point that saves most FLOPs among those whose quality is at most `drop` (0.01 is a point) below full depth."""
    full = next(point for point in points if point.criterion.full_depth)
    good = [point for point in points if point.quality >= full.quality - drop - 1e-9]
    return max(good, key=lambda point: point.flops_speedup)


def worthwhile_exits(layers: tuple[int, ...], would_exit_EB: Bools) -> tuple[int, ...]:
    """Return the exits with which these rows cost least, if evaluating an exit costs EXIT_TEST_LAYERS.

    `would_exit_EB` holds, for each exit, which rows would exit there if they got so far; at the last exit all do. Starting from
    all exits, the one whose loss gains most is dropped until no loss gains. (Patience counts the exits that are evaluated, so
    for it the result is an estimate.)

        takes_half = np.array([[False, False], [True, False], [True, True]])
        worthwhile_exits((1, 2, 3), takes_half)    # (2, 3): no row takes the exit after layer 1
    """
    numbers = np.array(layers)

    def cost(kept: list[int]) -> float:
        first_B = would_exit_EB[kept].argmax(0)
        return float(numbers[kept][first_B].mean() + EXIT_TEST_LAYERS * first_B.mean())

    kept = list(range(len(layers)))
    while len(kept) > 1:
        without = [[*kept[:index], *kept[index + 1 :]] for index in range(len(kept) - 1)]
        best = min(without, key=cost)
        if cost(best) >= cost(kept):
            break
        kept = best
    return tuple(int(layer) for layer in numbers[kept])


def accuracy_by_uncertainty(
    uncertainty_B: FloatArray, correct_B: Bools, bins: int = 10
) -> tuple[FloatArray, FloatArray, IntArray]:
    """Return middle, accuracy (NaN where empty) and rows of equal bins of uncertainty.

    FastBERT (Liu et al. 2020, figure 3) calls it LUHA, lower uncertainty, higher accuracy: a good criterion's accuracy falls
    from bin to bin.

        accuracy_by_uncertainty(np.array([0.1, 0.2, 0.9]), np.array([True, True, False]), bins=2)
        # [0.25, 0.75], [1.0, 0.0], [2, 1]
    """
    index_B = np.minimum((uncertainty_B * bins).astype(np.int64), bins - 1)
    rows = np.bincount(index_B, minlength=bins)
    correct = np.bincount(index_B, weights=correct_B, minlength=bins)
    with np.errstate(invalid="ignore"):
        accuracy = (correct / rows).astype(np.float32)
    return ((np.arange(bins) + 0.5) / bins).astype(np.float32), accuracy, rows
