"""Paths of thresholds, from full depth to the fastest: one parameter along which every exit's threshold only grows.

A path is made so that a saving costs few answers. For a price of a differing answer, in FLOPs, the thresholds that cost least
on some rows are found exit by exit; falling prices give the path. No row leaves later when one goes on along the path, so it
can be tested from its safe end (`guarantees.fixed_sequence`), and a saving of FLOPs can be read off it.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt
from sklearn.isotonic import IsotonicRegression

from models.exits.criterion import Criterion
from models.exits.flops import FlopCounter
from pipeline.calibration.curve import STEP
from pipeline.evaluation.recorded import AllExits
from pipeline.rows import IntArray

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

PRICES = np.geomspace(3000, 0.03, 24)
"""Of one differing answer, in full-depth rows."""
SWEEPS = 2
"""Over the exits for every price, each threshold being the best for what the others are."""
SINGLE_SPEEDS = [float(f"{speed:.6g}") for speed in np.geomspace(1e-6, 1, 601)]
"""Points of the path with the same threshold everywhere, fixed before any row is seen."""
LEAST_SPEED = 1e-9
"""Lets rows leave that are certain beyond what float32 can tell; a threshold of 0 would let none."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What the exits below the last say of B rows: E exits, L layers."""

    layers: tuple[int, ...]
    """[E], ascending."""
    depth: int
    """L."""
    uncertainty: npt.NDArray[np.float32]
    """[E, B]."""
    differs: Bools
    """[E, B]: whether the answer is another than at full depth."""
    lengths: IntArray
    """[B], tokens."""
    flops: FlopCounter

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def of(cls, recorded: AllExits, criterion: Criterion, lengths: IntArray, flops: FlopCounter) -> Self:
        """Take from a recording what a criterion looks at; values differ if they are more than its tolerance apart."""
        answers = recorded.answers
        apart = np.abs(answers[:-1] - answers[-1]) > criterion.tolerance
        return cls(
            layers=recorded.layers[:-1],
            depth=recorded.layers[-1],
            uncertainty=recorded.uncertainty(criterion)[:-1],
            differs=apart if recorded.regression else answers[:-1] != answers[-1],
            lengths=lengths,
            flops=flops,
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
        )

    @cached_property
    def layer_cost(self) -> Floats:
        """[B]: a layer, as a share of a full-depth row of this sample's mean cost."""
        return self.flops.layer(self.lengths.astype(np.float64)) / self._full_depth.mean()

    @cached_property
    def head_cost(self) -> Floats:
        """[E + 1, B]: a look at an exit, the last included, in the same unit."""
        lengths = self.lengths.astype(np.float64)
        heads = [self.flops.head(self.flops.exit_heads[layer], lengths) for layer in (*self.layers, self.depth)]
        return np.array(heads) / self._full_depth.mean()

    @cached_property
    def _full_depth(self) -> Floats:
        return self.flops.full_depth(self.lengths)

    @cached_property
    def risk(self) -> Floats:
        """[E, B]: how likely a differing answer is at this uncertainty.

        It only grows with it (FastBERT's figure 3): isotonic regression (Ayer et al. 1955) takes out most of what is chance.
        """
        fit = IsotonicRegression().fit_transform  # in float64: in float32 it makes NaN of the ends
        rows = zip(self.uncertainty.astype(np.float64), self.differs.astype(np.float64), strict=True)
        return np.array([fit(seen, differs) for seen, differs in rows])

    @cached_property
    def order(self) -> IntArray:
        """[E, B]: rows by uncertainty."""
        return np.argsort(self.uncertainty, axis=1, kind="stable")

    def exits_at(self, speeds: Floats) -> Bools:
        """[E, B]: which rows would leave where, were they still there. As `criteria.may_exit`, in float32."""
        thresholds = speeds.astype(np.float32)[:, None]
        exits_EB: Bools = (self.uncertainty <= thresholds) & (thresholds > 0)
        return exits_EB

    def outcome(self, speeds: Floats) -> tuple[float, int, IntArray]:
        """Return FLOPs spent over those of full depth, rows whose answer differs, and rows by exit [E + 1]."""
        exits_EB = np.vstack([self.exits_at(speeds), np.ones((1, len(self)), np.bool_)])
        first_B = exits_EB.argmax(0)
        spent = self.flops.with_heads_at([*self._looked_at(speeds), self.depth])
        share = spent.rows(self.lengths, np.array([*self.layers, self.depth])[first_B]).sum() / self._full_depth.sum()
        differs = np.vstack([self.differs, np.zeros((1, len(self)), np.bool_)])[first_B, np.arange(len(self))]
        return float(share), int(differs.sum()), np.bincount(first_B, minlength=len(self.layers) + 1)

    def _looked_at(self, speeds: Floats) -> list[int]:
        return [layer for layer, speed in zip(self.layers, speeds, strict=True) if speed > 0]


def single_path(exits: int) -> Floats:
    """Return the path with one threshold for all exits: [P, E]. It looks at no row, so all rows may test it."""
    return np.repeat(np.concatenate([[0.0], SINGLE_SPEEDS])[:, None], exits, axis=1)


def cheapest_path(sample: Sample) -> Floats:
    """Return a path on which a saving costs as few differing answers as can be found on these rows: [P, E]."""
    exits, rows = len(sample.layers), len(sample)
    if not exits or not rows:
        return np.zeros((1, exits))
    speeds, corners = np.zeros(exits), [np.zeros(exits)]
    for price in PRICES:
        for _ in range(SWEEPS):
            for place in reversed(range(exits)):
                speeds[place] = _best_threshold(sample, speeds, place, price)
        corners.append(np.maximum(corners[-1], speeds))
    fastest = np.maximum(corners[-1], np.eye(exits)[0])  # all rows leave at the first exit
    return _fill(sample, np.array([*corners, fastest]))


def _best_threshold(sample: Sample, speeds: Floats, place: int, price: float) -> float:
    """Return the threshold of one exit that costs least for what the others are; 0 if looking at it does not pay."""
    others = speeds.copy()
    others[place] = 0.0
    exits_EB = sample.exits_at(others)
    there: Bools = ~np.any(exits_EB[:place], axis=0)
    gain = _cost_of_going_on(sample, others, exits_EB, place, price) - price * sample.risk[place]
    by_uncertainty = sample.order[place]
    order = by_uncertainty[there[by_uncertainty]]
    if not len(order):
        return 0.0
    saved = np.cumsum(gain[order])
    seen = sample.uncertainty[place][order]
    ends = np.flatnonzero(np.append(seen[1:] > seen[:-1], True))  # rows of equal uncertainty leave together
    best = ends[saved[ends].argmax()]
    return _round_up(seen[best]) if saved[best] > sample.head_cost[place][there].sum() else 0.0


def _cost_of_going_on(sample: Sample, speeds: Floats, exits_EB: Bools, place: int, price: float) -> Floats:
    """What a row costs after this exit if it does not leave here: layers, looks, and the risk of a differing answer: [B]."""
    cost = (sample.depth - sample.layers[-1]) * sample.layer_cost + sample.head_cost[-1]
    for later in reversed(range(place + 1, len(sample.layers))):
        if speeds[later] > 0:
            cost = np.where(exits_EB[later], price * sample.risk[later], cost) + sample.head_cost[later]
        cost = cost + (sample.layers[later] - sample.layers[later - 1]) * sample.layer_cost
    return cost


def _fill(sample: Sample, corners: Floats) -> Floats:
    """Put points between the corners of a path, about STEP apart; in between, ranks of the thresholds go in a straight line."""
    shares = [sample.outcome(speeds)[0] for speeds in corners]
    sorted_EB = np.take_along_axis(sample.uncertainty, sample.order, axis=1)
    ranks = np.array([(sample.exits_at(speeds)).sum(1) for speeds in corners])
    path = [corners[0]]
    for before, after in zip(range(len(corners) - 1), range(1, len(corners)), strict=True):
        steps = max(1, round(abs(shares[after] - shares[before]) / STEP))
        for part in np.arange(1, steps) / steps:
            rank = (ranks[before] + part * (ranks[after] - ranks[before])).astype(np.int64)
            between = [_round_up(row[n - 1]) if n else 0.0 for row, n in zip(sorted_EB, rank, strict=True)]
            path.append(np.clip(between, corners[before], corners[after]))
        path.append(corners[after])
    return np.unique(np.maximum.accumulate(path), axis=0)


def _round_up(speed: float) -> float:
    """Six digits, as a criterion keeps them, and not below: a row that sits on the threshold leaves."""
    scale = 10.0 ** (5 - math.floor(math.log10(max(speed, LEAST_SPEED))))
    return min(1.0, float(f"{math.ceil(max(speed, LEAST_SPEED) * scale) / scale:.6g}"))
