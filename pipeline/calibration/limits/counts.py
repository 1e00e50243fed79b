"""Counts along a path of thresholds, on rows that did not choose it: by class, and against true labels.

A prediction is a class index, with predictions as [B], or a label set, as [B, C] of truth values.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pipeline.rows import FloatArray, IntArray

Bools = npt.NDArray[np.bool_]
Predicted = npt.NDArray[Any]
"""Classes of B rows, [B], or their label sets, [B, C]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassCounts:
    """Rows of every class at full depth, and how many of them are missed along a path: C classes, P points."""

    names: list[str]
    """The classes, or labels, as [C]."""
    rows: list[int]
    """Test rows that full depth gives each class, or a set with the label, as [C]."""
    changes: list[list[list[int]]]
    """For each class the points at which the number of its rows that get another answer changes, each as [point, number]."""

    @classmethod
    def of(cls, names: Sequence[str], rows: IntArray, missed: IntArray) -> Self:
        """Keep the counts of missed rows, [P, C], by where they change: with many classes most of them hardly ever do."""
        changes = []
        for counts in missed.T:
            points = np.flatnonzero(np.diff(counts, prepend=0))
            changes.append([[int(point), int(counts[point])] for point in points])
        return cls(names=list(names), rows=rows.tolist(), changes=changes)

    def missed(self, index: int, points: int) -> list[int]:
        """Return how many rows of a class are missed at each of this many points.

        With changes [[2, 1], [4, 3]] and six points that is [0, 0, 1, 1, 3, 3].
        """
        counts = np.zeros(points, np.int64)
        for point, count in self.changes[index]:
            counts[point:] = count
        whole: list[int] = counts.tolist()
        return whole


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityCounts:
    """What becomes of right answers along a path, on the test rows that have a true label: P points."""

    labelled: int
    """Test rows with a label."""
    right: int
    """Those of them that full depth predicts as they are labelled."""
    lost: list[int]
    """Rows that are right at full depth and wrong as they exit, as [P]."""
    gained: list[int]
    """Rows that are wrong at full depth and right as they exit, as [P]."""


def count(
    path: Iterable[Predicted], names: Sequence[str], labels: FloatArray | None
) -> tuple[ClassCounts | None, QualityCounts | None]:
    """Count along a path of predictions, those at full depth first, by class and against true labels; nothing of an empty path.

    Without `names` classes are not counted, and without a row that has a label, of which a NaN is none, quality is not. Labels
    are those of `corpus.labelled.label_array`: [B], or [B, C] for label sets, which are right if every label is.
    """
    rows = np.flatnonzero(_labelled(labels)) if labels is not None else np.empty(0, np.int64)
    points = iter(path)
    if (full := next(points, None)) is None:
        return None, None
    right = _right(full, labels, rows)
    missed, lost, gained = [], [], []
    for early in chain([full], points):  # one at a time: label sets at every point would take much memory
        missed.append(missed_by_class(full, early, len(names)))
        now = _right(early, labels, rows)
        lost.append(int((right & ~now).sum()))
        gained.append(int((now & ~right).sum()))
    return (
        ClassCounts.of(names, rows_by_class(full, len(names)), np.array(missed)) if names else None,
        QualityCounts(labelled=len(rows), right=int(right.sum()), lost=lost, gained=gained) if len(rows) else None,
    )


def rows_by_class(full: Predicted, classes: int) -> IntArray:
    """Count the rows of each class, or with each label: [C]."""
    return (full.sum(0) if full.ndim == 2 else np.bincount(full, minlength=classes)).astype(np.int64)


def missed_by_class(full: Predicted, early: Predicted, classes: int) -> IntArray:
    """Count the rows of each class at full depth that are given another class, or lose the label: [C]."""
    if full.ndim == 2:
        return (full & ~early).sum(0)
    return np.bincount(full[full != early], minlength=classes)


def _labelled(labels: FloatArray) -> Bools:
    return ~np.isnan(labels if labels.ndim == 1 else labels[:, 0])


def _right(predicted: Predicted, labels: FloatArray | None, rows: IntArray) -> Bools:
    """Return which of these rows are predicted as they are labelled."""
    if labels is None:
        return np.empty(0, np.bool_)
    equal: Bools = predicted[rows] == labels[rows]
    return equal if equal.ndim == 1 else np.logical_and.reduce(equal, axis=1)
