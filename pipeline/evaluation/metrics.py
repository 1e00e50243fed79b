"""Metrics of quality: predictions [B] and targets [B], class indices as float or values, to a number; higher is better.

    CLASSIFICATION["accuracy"](np.array([0, 1, 1]), np.array([0, 1, 0]))  # 0.667

Each has a value for every sample of one row or more, whatever classes are in it.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from pipeline.rows import FloatArray

Metric = Callable[[FloatArray, FloatArray], float]


def accuracy(predictions: FloatArray, targets: FloatArray) -> float:
    """Return the fraction of rows whose predicted class is the target."""
    return float((predictions == targets).mean())


def f1(predictions: FloatArray, targets: FloatArray, classes: int = 2) -> float:
    """Return the F1 score of class 1 where a model has two classes, else the mean over those that occur, predicted or true.

    A class that is never predicted rightly counts 0, and so does class 1 of two where it does not occur at all.
    """
    true, predicted = _counts(targets, classes), _counts(predictions, classes)
    right = _counts(targets[predictions == targets], classes)
    scores = 2 * right / np.maximum(true + predicted, 1)
    return float(scores[1]) if classes == 2 else float(scores[true + predicted > 0].mean())


def matthews(predictions: FloatArray, targets: FloatArray) -> float:
    """Return Matthews' correlation coefficient, for any number of classes (Gorodkin 2004); 0 where one side has one class."""
    classes = int(max(predictions.max(), targets.max())) + 1
    true, predicted = _counts(targets, classes), _counts(predictions, classes)
    rows, right = len(targets), float((predictions == targets).sum())
    scale = (rows**2 - predicted @ predicted) * (rows**2 - true @ true)
    return 0.0 if scale == 0 else float((right * rows - true @ predicted) / np.sqrt(scale))


def _counts(values: FloatArray, classes: int) -> npt.NDArray[np.float64]:
    """Count rows by class, as [C]."""
    return np.bincount(values.astype(np.int64), minlength=classes).astype(np.float64)


def correlation(predictions: FloatArray, targets: FloatArray) -> float:
    """Return Pearson's correlation; 0 where one side is constant."""
    return 0.0 if _constant(predictions, targets) else float(np.corrcoef(predictions, targets)[0, 1])


def rank_correlation(predictions: FloatArray, targets: FloatArray) -> float:
    """Return Spearman's rank correlation; 0 where one side is constant."""
    return 0.0 if _constant(predictions, targets) else float(spearmanr(predictions, targets).statistic)


def _constant(predictions: FloatArray, targets: FloatArray) -> bool:
    """Return whether one side has the same value everywhere, so that no correlation is defined."""
    return bool(np.ptp(predictions) == 0 or np.ptp(targets) == 0)


CLASSIFICATION: dict[str, Metric] = {"accuracy": accuracy, "f1": f1, "mcc": matthews}
"""Metrics of models that predict a class, by the name that users give; the first is the default."""
REGRESSION: dict[str, Metric] = {"pearson": correlation, "spearman": rank_correlation}
"""Metrics of models that predict a value, by the name that users give; the first is the default."""
