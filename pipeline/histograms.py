"""Histograms of rows: counts by bin, from which nobody can read a text."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.rows import IntArray

UNCERTAINTY_BINS = SCORE_BINS = 20
LENGTH_EDGES = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Edges between bins of length in tokens: at most 8, at most 16, ..., more than 256. Stored calibrations count by them."""

_STEPS = [float(f"{step}e{power}") for power in range(-2, 6) for step in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)]
VALUE_EDGES = (*(-edge for edge in reversed((*_STEPS, 1e6))), *_STEPS, 1e6)
"""Edges between bins of a predicted value: nine a decade from 0.01 to a million, and the same below zero.

They are fixed, so that shards, runs and nights add up, and fine enough for grades from 1 to 5 and for percentages alike.
"""
MAX_CLASS_BINS = 256
"""Most bins of classes: a model of more classes has neighboring ones in one bin. A receipt has so many numbers at most."""


def bins_of(values: npt.ArrayLike, edges: Sequence[float]) -> IntArray:
    """Return each value's bin: up to the first edge, to the second, ..., above the last: [1, 2, 9] by (2, 3) -> [0, 0, 2]."""
    return np.searchsorted(np.asarray(edges, np.float64), np.asarray(values, np.float64), side="left")


def bin_counts(values: npt.ArrayLike, edges: Sequence[float]) -> list[int]:
    """Count values by `bins_of`: [1, 2, 9] by (2, 3) -> [2, 0, 1]."""
    counts: list[int] = np.bincount(bins_of(values, edges), minlength=len(edges) + 1).tolist()
    return counts


def length_histogram(lengths: npt.ArrayLike) -> list[int]:
    """Count rows by their tokens, in the bins of LENGTH_EDGES."""
    return bin_counts(lengths, LENGTH_EDGES)


def length_bins(lengths: npt.ArrayLike) -> IntArray:
    """Return the bin of each row by its tokens, as LENGTH_EDGES has them."""
    return bins_of(lengths, LENGTH_EDGES)


def uncertainty_bins(uncertainty_B: npt.NDArray[np.float32]) -> IntArray:
    """Return the bin of each row by its uncertainty, of UNCERTAINTY_BINS equal bins of [0, 1]."""
    return _equal_bins(uncertainty_B, UNCERTAINTY_BINS)


def score_bins(scores_B: npt.NDArray[np.float32]) -> IntArray:
    """Return the bin of each row by its score, a probability, of SCORE_BINS equal bins of [0, 1]."""
    return _equal_bins(scores_B, SCORE_BINS)


def _equal_bins(values: npt.NDArray[np.float32], bins: int) -> IntArray:
    return np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], values, side="right")


def classes_per_bin(classes: int) -> int:
    """Return how many neighboring classes a bin has: 1 up to MAX_CLASS_BINS of them, 40 of 10,000."""
    return -(-classes // MAX_CLASS_BINS)


def counts_by_group(groups_B: IntArray, bins_B: IntArray, groups: int, bins: int) -> list[list[int]]:
    """Count rows by bin, each group by itself: groups [0, 0, 1] and bins [1, 1, 0] of two -> [[0, 2], [1, 0]]."""
    counts: list[list[int]] = (
        np.bincount(groups_B * bins + bins_B, minlength=groups * bins).reshape(groups, bins).tolist()
    )
    return counts


def length_bounds() -> list[tuple[int, int | None]]:
    """Return the shortest and the longest length of every bin of LENGTH_EDGES: [(1, 8), (9, 16), ..., (257, None)]."""
    return list(zip((1, *(edge + 1 for edge in LENGTH_EDGES)), (*LENGTH_EDGES, None), strict=True))
