"""Cells of rows: by the layer after which a row exits, and by how uncertain it is there.

Both are known of every row, and a calibration sees in each cell how often answers differ from full depth (`drift.expected`).
Bins are the same for every layer, run and calibration, so that counts add up; they are finer where exits are certain, as most
rows are there.
"""

import numpy as np
import numpy.typing as npt

from pipeline.histograms import bins_of
from pipeline.rows import IntArray

EDGES = (0.01, 0.03, 0.1, 0.2, 0.3, 0.45, 0.6)
"""Edges between the bins of uncertainty: at most 0.01, at most 0.03, ..., more than 0.6."""
BINS = len(EDGES) + 1
_BOUNDS = (0.0, *EDGES, 1.0)


def cells_of(exits_B: IntArray, uncertainty_B: npt.ArrayLike) -> IntArray:
    """Return each row's cell by the index of its exit and its uncertainty there, `BINS` cells an exit: [B].

    cells_of(np.array([0, 1, 1]), [0.0, 0.01, 0.9]) is [0, 8, 15].
    """
    return exits_B * BINS + bins_of(uncertainty_B, EDGES)


def count_cells(
    exits_B: IntArray, uncertainty_B: npt.ArrayLike, differs_B: npt.NDArray[np.bool_], exits: int
) -> IntArray:
    """Count rows by the cell of one of E exits below the last, and those that differ: [2, E x BINS + 1].

    The last cell has all rows of full depth, whatever their uncertainty there.
    """
    cells_B, size = np.minimum(cells_of(exits_B, uncertainty_B), exits * BINS), exits * BINS + 1
    return np.stack([np.bincount(cells_B, minlength=size), np.bincount(cells_B[differs_B], minlength=size)])


def describe_cells(layers: IntArray, bins: IntArray) -> str:
    """Describe neighboring cells: "exit at layer 5 with uncertainty 0.2 to 0.45", or "exit at layers 1 to 3"."""
    first, last = int(layers.min()), int(layers.max())
    if first < last:
        return f"exit at layers {first} to {last}"
    low, high = _BOUNDS[int(bins.min())], _BOUNDS[int(bins.max()) + 1]
    return f"exit at layer {first} with uncertainty {low:g} to {high:g}"
