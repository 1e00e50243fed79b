"""Paths of thresholds, from full depth to the fastest: one parameter along which every exit's threshold only grows.

A path is made so that a saving changes few predictions. For a given price of a changed prediction, in FLOPs, coordinate descent
finds the thresholds, exit by exit, that cost least on some rows; falling prices give the path. Further along the path no row
exits later, so a path can be tested from its safe end (`limits.conditions.passing`), and a saving of FLOPs can be read off it.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression

from models.exits.criterion import Criterion
from models.exits.flops import FlopCounter
from pipeline.calibration.curve import STEP
from pipeline.calibration.drift.cells import count_cells
from pipeline.evaluation.recorded import AllExits
from pipeline.rows import IntArray

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

PRICES = np.geomspace(3000, 0.03, 24)
"""The prices of one changed prediction, in rows at full depth, that give the corners of a path."""
SWEEPS = 2
"""Passes of coordinate descent over the exits, for every price."""
SINGLE_SPEEDS = [float(f"{speed:.6g}") for speed in np.geomspace(1e-6, 1, 601)]
"""The thresholds of the path with the same threshold at every exit, fixed before any row is seen."""
MIN_SPEED = 1e-9
"""The least threshold above 0: rows exit that are certain beyond what float32 resolves; a threshold of 0 lets none exit."""


class ThresholdOutcome(NamedTuple):
    """What one threshold for every exit does to the rows of a sample."""

    flops_fraction: float
    """FLOPs spent over those of full depth."""
    differing: int
    """Rows whose prediction is not that of full depth."""
    exits: IntArray
    """Rows by exit, the last included, as [E + 1]; texts of several windows by the deepest of these."""


class Published(NamedTuple):
    """What a run with one threshold for every exit would publish of B rows, or texts."""

    cells: IntArray
    """All of them by cell, and those that differ from full depth, by `count_cells`: [2, E x BINS + 1]."""
    predicted: npt.NDArray[Any] | None
    """The class of each, as [B], or its label set, as [B, C]; None for values."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The outputs of the exits below the last for the rows of a sample: E exits, B rows, L layers."""

    layers: tuple[int, ...]
    """The layers of these exits, ascending, as [E]."""
    depth: int
    """The number of layers, L."""
    uncertainty: npt.NDArray[np.float32]
    """The uncertainty of every row at every exit, as [E, B]."""
    differs: Bools
    """Whether a row's prediction at an exit is not that of full depth, as [E, B]."""
    lengths: IntArray
    """Tokens of every row, as [B]."""
    flops: FlopCounter
    answers: npt.NDArray[Any] | None = None
    """Classes by exit, the last included, and row, as [E + 1, B], or label sets as [E + 1, B, C]; None for values."""

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def of(cls, recorded: AllExits, criterion: Criterion, lengths: IntArray, flops: FlopCounter) -> Self:
        """Make a sample of recorded exits, as this criterion sees them.

        Values (regression) differ if they are more than the criterion's tolerance apart, label sets if any label differs.
        """
        return cls(
            layers=recorded.layers[:-1],
            depth=recorded.layers[-1],
            uncertainty=recorded.uncertainty(criterion)[:-1],
            differs=recorded.differs(criterion.tolerance),
            lengths=lengths,
            flops=flops,
            answers=None
            if recorded.regression
            else recorded.answers.astype(np.int64 if recorded.boundaries is None else np.bool_),
        )

    def take(self, rows: IntArray) -> Self:
        """Return these rows in this order."""
        return type(self)(
            layers=self.layers,
            depth=self.depth,
            uncertainty=self.uncertainty[:, rows],
            differs=self.differs[:, rows],
            lengths=self.lengths[rows],
            flops=self.flops,
            answers=None if self.answers is None else self.answers[:, rows],
        )

    @cached_property
    def layers_cost(self) -> Floats:
        """The cost of each row's layers up to every depth, 0 to L, as [L + 1, B]; the mean row at full depth costs 1."""
        lengths = self.lengths.astype(np.float64)
        return np.array([self.flops.layers(lengths, depth) for depth in range(self.depth + 1)]) / self.full_depth.mean()

    @cached_property
    def head_cost(self) -> Floats:
        """The cost of evaluating each exit, the last included, for every row, as [E + 1, B], in the units of `layers_cost`."""
        lengths = self.lengths.astype(np.float64)
        heads = [self.flops.head(self.flops.exit_heads[layer], lengths) for layer in (*self.layers, self.depth)]
        return np.array(heads) / self.full_depth.mean()

    @cached_property
    def full_depth(self) -> Floats:
        """FLOPs of every row at full depth, as [B]."""
        return self.flops.full_depth(self.lengths)

    @cached_property
    def risk(self) -> Floats:
        """The probability that the prediction differs at a row's uncertainty, as [E, B].

        It only grows with the uncertainty (FastBERT's figure 3), so isotonic regression removes most of the noise.
        """
        rows = zip(self.uncertainty.astype(np.float64), self.differs.astype(np.float64), strict=True)
        return np.array([_isotonic(uncertainty, differs) for uncertainty, differs in rows])

    @cached_property
    def order(self) -> IntArray:
        """Indices of the rows by uncertainty, for every exit, as [E, B]."""
        return np.argsort(self.uncertainty, axis=1, kind="stable")

    def would_exit(self, speeds: Floats) -> Bools:
        """Return which rows each exit lets exit, if they got so far, with these thresholds [E]: [E, B].

        With uncertainties [[0.2, 0.6], [0.1, 0.3]] and thresholds [0.0, 0.2] that is [[False, False], [True, False]]: a
        threshold of 0 lets no row exit. It compares in float32, as `models.exits.uncertainty.should_exit` does.
        """
        thresholds = speeds.astype(np.float32)[:, None]
        would_exit_EB: Bools = (self.uncertainty <= thresholds) & (thresholds > 0)
        return would_exit_EB

    def outcome(self, speeds: Floats) -> ThresholdOutcome:
        """Return cost, differing predictions and exits of all rows with these thresholds [E]."""
        first_B = self.first_exits(speeds)
        differs = np.vstack([self.differs, np.zeros((1, len(self)), np.bool_)])[first_B, np.arange(len(self))]
        return ThresholdOutcome(
            flops_fraction=float(self.spent(speeds, first_B).sum() / self.full_depth.sum()),
            differing=int(differs.sum()),
            exits=np.bincount(first_B, minlength=len(self.layers) + 1),
        )

    def published(self, speeds: Floats) -> Published:
        """Return what a run with these thresholds [E] would publish."""
        first_B, exits = self.first_exits(speeds), len(self.layers)
        taken = np.minimum(first_B, exits - 1), np.arange(len(self))
        return Published(
            cells=count_cells(first_B, self.uncertainty[taken], self.differs[taken] & (first_B < exits), exits),
            predicted=None if self.answers is None else self.answers[first_B, np.arange(len(self))],
        )

    def first_exits(self, speeds: Floats) -> IntArray:
        """Return the index of the exit that each row takes with these thresholds [E], E for the last: [B]."""
        would_exit_EB = np.vstack([self.would_exit(speeds), np.ones((1, len(self)), np.bool_)])
        return would_exit_EB.argmax(0)

    def spent(self, speeds: Floats, first_B: IntArray) -> Floats:
        """Return the FLOPs of each row that exits at the exit of this index, with these thresholds [E]: [B]."""
        used = [layer for layer, speed in zip(self.layers, speeds, strict=True) if speed > 0]
        return self.flops.with_heads_at([*used, self.depth]).rows(
            self.lengths, np.array([*self.layers, self.depth])[first_B]
        )


def _isotonic(x_B: Floats, y_B: Floats) -> Floats:
    """Return the least-squares fit of y among the functions that do not fall in x (Ayer et al. 1955): [B].

    _isotonic([1, 2, 3, 3], [0, 1, 0, 1]) is [0, 2/3, 2/3, 2/3]: equal x have equal fits, and falling y are averaged.
    """
    _, group_B, counts = np.unique(x_B, return_inverse=True, return_counts=True)
    means = np.bincount(group_B, weights=y_B) / counts
    fit: Floats = isotonic_regression(means, weights=counts).x[group_B]
    return fit


def single_path(exits: int) -> Floats:
    """Return the path with one threshold for all exits: [P, E]. It depends on no row, so all rows may test it."""
    return np.repeat(np.concatenate([[0.0], SINGLE_SPEEDS])[:, None], exits, axis=1)


def cheapest_path(sample: Sample) -> Floats:
    """Return the path on which savings change as few predictions as can be found on these rows: [P, E]."""
    exits, rows = len(sample.layers), len(sample)
    if not exits or not rows:
        return np.zeros((1, exits))
    speeds, corners = np.zeros(exits), [np.zeros(exits)]
    for price in PRICES:
        for _ in range(SWEEPS):
            for index in reversed(range(exits)):
                speeds[index] = _best_threshold(sample, speeds, index, price)
        corners.append(np.maximum(corners[-1], speeds))
    fastest = np.maximum(corners[-1], np.eye(exits)[0])  # all rows exit at the first exit
    return _fill(sample, np.array([*corners, fastest]))


def _best_threshold(sample: Sample, speeds: Floats, index: int, price: float) -> float:
    """Return the threshold of one exit that costs least, given those of the others; 0 if evaluating it does not pay."""
    others = speeds.copy()
    others[index] = 0.0
    would_exit_EB = sample.would_exit(others)
    active: Bools = ~np.any(would_exit_EB[:index], axis=0)
    gain = _cost_of_going_on(sample, others, would_exit_EB, index, price) - price * sample.risk[index]
    by_uncertainty = sample.order[index]
    order = by_uncertainty[active[by_uncertainty]]
    if not len(order):
        return 0.0
    saved = np.cumsum(gain[order])
    uncertainty = sample.uncertainty[index][order]
    ends = np.flatnonzero(
        np.append(uncertainty[1:] > uncertainty[:-1], True)
    )  # rows of equal uncertainty exit together
    best = ends[saved[ends].argmax()]
    return _round_up(uncertainty[best]) if saved[best] > sample.head_cost[index][active].sum() else 0.0


def _cost_of_going_on(sample: Sample, speeds: Floats, would_exit_EB: Bools, index: int, price: float) -> Floats:
    """Return what each row costs after this exit if it does not exit here: layers, heads, and the risk it runs: [B]."""
    cost = sample.layers_cost[sample.depth] - sample.layers_cost[sample.layers[-1]] + sample.head_cost[-1]
    for later in reversed(range(index + 1, len(sample.layers))):
        if speeds[later] > 0:
            cost = np.where(would_exit_EB[later], price * sample.risk[later], cost) + sample.head_cost[later]
        cost = cost + sample.layers_cost[sample.layers[later]] - sample.layers_cost[sample.layers[later - 1]]
    return cost


def _fill(sample: Sample, corners: Floats) -> Floats:
    """Put points about STEP apart between the corners of a path; in between, the ranks of the thresholds are linear."""
    fractions = [sample.outcome(speeds).flops_fraction for speeds in corners]
    sorted_EB = np.take_along_axis(sample.uncertainty, sample.order, axis=1)
    ranks = np.array([sample.would_exit(speeds).sum(1) for speeds in corners])
    path = [corners[0]]
    for before, after in pairwise(range(len(corners))):
        steps = max(1, round(abs(fractions[after] - fractions[before]) / STEP))
        for part in np.arange(1, steps) / steps:
            rank = (ranks[before] + part * (ranks[after] - ranks[before])).astype(np.int64)
            between = [_round_up(row[n - 1]) if n else 0.0 for row, n in zip(sorted_EB, rank, strict=True)]
            path.append(np.clip(between, corners[before], corners[after]))
        path.append(corners[after])
    return np.unique(np.maximum.accumulate(path), axis=0)


def _round_up(speed: float) -> float:
    """Round up to the six digits that a criterion keeps, so that a row right at the threshold still exits.

    _round_up(0.12345678) is 0.123457.
    """
    scale = 10.0 ** (5 - math.floor(math.log10(max(speed, MIN_SPEED))))
    return min(1.0, float(f"{math.ceil(max(speed, MIN_SPEED) * scale) / scale:.6g}"))
