"""Histograms of rows: counts by bin, from which nobody can read a text."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

UNCERTAINTY_BINS = 20
LENGTH_EDGES = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Edges between bins of length in tokens: at most 8, at most 16, ..., more than 256. Stored calibrations count by them."""


def bin_counts(values: npt.ArrayLike, edges: Sequence[float]) -> list[int]:
    """Count values up to the first edge, up to the second, ..., above the last: [1, 2, 9] by (2, 3) -> [2, 0, 1]."""
    bins = np.searchsorted(np.asarray(edges, np.float64), np.asarray(values, np.float64), side="left")
    counts: list[int] = np.bincount(bins, minlength=len(edges) + 1).tolist()
    return counts


def length_histogram(lengths: npt.ArrayLike) -> list[int]:
    """Count rows by their tokens, in the bins of LENGTH_EDGES."""
    return bin_counts(lengths, LENGTH_EDGES)


def length_bounds() -> list[tuple[int, int | None]]:
    """Return the shortest and the longest length of every bin of LENGTH_EDGES: [(1, 8), (9, 16), ..., (257, None)]."""
    return list(zip((1, *(edge + 1 for edge in LENGTH_EDGES)), (*LENGTH_EDGES, None), strict=True))


def uncertainty_histogram(uncertainty_B: npt.NDArray[np.float32]) -> list[int]:
    """Count rows by their uncertainty, in UNCERTAINTY_BINS equal bins of [0, 1]."""
    return np.histogram(uncertainty_B, bins=UNCERTAINTY_BINS, range=(0, 1))[0].tolist()
