"""Metrics of quality: predictions [B] and targets [B], class indices as float or values, to a number; higher is better.

    CLASSIFICATION["accuracy"](np.array([0, 1, 1]), np.array([0, 1, 0]))  # 0.667

Each has a value for every sample of one row or more, whatever classes are in it. F1 and Matthews' correlation need
scikit-learn, which the extra `report` brings; it is imported when one of them is computed.
"""

from collections.abc import Callable

import numpy as np
from scipy.stats import spearmanr

from pipeline.errors import require
from pipeline.rows import FloatArray

Metric = Callable[[FloatArray, FloatArray], float]


def accuracy(predictions: FloatArray, targets: FloatArray) -> float:
    """Return the fraction of rows whose predicted class is the target."""
    return float((predictions == targets).mean())


def f1(predictions: FloatArray, targets: FloatArray, classes: int = 2) -> float:
    """Return the F1 score of class 1 where a model has two classes, else the mean over those that occur, predicted or true.

    A class that is never predicted rightly counts 0, and so does class 1 of two where it does not occur at all.
    """
    require("sklearn", extra="report")
    from sklearn.metrics import f1_score

    average = "macro" if classes > 2 else "binary"
    return float(f1_score(targets, predictions, average=average, zero_division=0))


def matthews(predictions: FloatArray, targets: FloatArray) -> float:
    """Return Matthews' correlation coefficient; 0 where one side has one class."""
    require("sklearn", extra="report")
    from sklearn.metrics import matthews_corrcoef

    return 0.0 if _constant(predictions, targets) else float(matthews_corrcoef(targets, predictions))


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
