"""Metrics of quality: predictions [B] and targets [B], class indices as float or values, to a number; higher is better.

    CLASSIFICATION["accuracy"](np.array([0, 1, 1]), np.array([0, 1, 0]))  # 0.667

Label sets are [B, C] of 0 and 1, and have metrics of their own:

    LABEL_SETS["micro-f1"](np.array([[1, 1], [0, 0]]), np.array([[1, 0], [0, 0]]))  # 0.667

Each has a value for every sample of one row or more, whatever classes are in it. F1 and Matthews' correlation need
scikit-learn, which the extra `report` brings; it is imported when one of them is computed.
"""

from collections.abc import Callable

import numpy as np
from scipy.stats import spearmanr

from models.exits.task import Task
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


def micro_f1(predictions: FloatArray, targets: FloatArray) -> float:
    """Return the F1 score of all labels of all rows counted together, [B, C] each; 1 where none is predicted and none true."""
    right, wrong = (predictions * targets).sum(), (predictions != targets).sum()
    return float(2 * right / (2 * right + wrong)) if right or wrong else 1.0


def macro_f1(predictions: FloatArray, targets: FloatArray) -> float:
    """Return the mean over labels of their F1 scores, [B, C] each, of labels that occur, predicted or true.

    A label that is never predicted rightly counts 0; where no label occurs at all the score is 1, as nothing is wrong.
    """
    right_C, wrong_C = (predictions * targets).sum(0), (predictions != targets).sum(0)
    occur_C = (right_C + wrong_C) > 0
    scores = 2 * right_C[occur_C] / (2 * right_C[occur_C] + wrong_C[occur_C])
    return float(scores.mean()) if len(scores) else 1.0


def subset_accuracy(predictions: FloatArray, targets: FloatArray) -> float:
    """Return the fraction of rows whose predicted label set is the target, no label more and none less: [B, C] each."""
    return float((predictions == targets).all(-1).mean())


def _constant(predictions: FloatArray, targets: FloatArray) -> bool:
    """Return whether one side has the same value everywhere, so that no correlation is defined."""
    return bool(np.ptp(predictions) == 0 or np.ptp(targets) == 0)


CLASSIFICATION: dict[str, Metric] = {"accuracy": accuracy, "f1": f1, "mcc": matthews}
"""Metrics of models that predict a class, by the name that users give; the first is the default."""
REGRESSION: dict[str, Metric] = {"pearson": correlation, "spearman": rank_correlation}
"""Metrics of models that predict a value, by the name that users give; the first is the default."""
LABEL_SETS: dict[str, Metric] = {"micro-f1": micro_f1, "macro-f1": macro_f1, "subset-accuracy": subset_accuracy}
"""Metrics of models that predict label sets, by the name that users give; the first is the default."""


def metrics_of(task: Task) -> dict[str, Metric]:
    """Return the metrics of models with this task, by the name that users give; the first is the default."""
    return {Task.CLASSES: CLASSIFICATION, Task.VALUE: REGRESSION, Task.LABELS: LABEL_SETS}[task]
