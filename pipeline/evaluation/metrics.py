"""Measures of quality: answers [B] and targets [B], class indices as float or values, -> a number, higher being better."""

from collections.abc import Callable

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef

from pipeline.rows import FloatArray


def _f1(answers: FloatArray, targets: FloatArray) -> float:
    many = len(np.unique(targets)) > 2
    return float(f1_score(targets, answers, average="macro" if many else "binary", zero_division=0))


def correlation(answers: FloatArray, targets: FloatArray) -> float:
    """Pearson's correlation; 0 where one side is constant."""
    constant = np.ptp(answers) == 0 or np.ptp(targets) == 0
    return 0.0 if constant else float(np.corrcoef(answers, targets)[0, 1])


def _rank_correlation(answers: FloatArray, targets: FloatArray) -> float:
    constant = np.ptp(answers) == 0 or np.ptp(targets) == 0
    return 0.0 if constant else float(spearmanr(answers, targets).statistic)


Metric = Callable[[FloatArray, FloatArray], float]
CLASSIFICATION: dict[str, Metric] = {
    "accuracy": lambda answers, targets: float((answers == targets).mean()),
    "f1": _f1,
    "mcc": lambda answers, targets: float(matthews_corrcoef(targets, answers)),
}
"""F1 is that of class 1 with two classes, else the mean over classes."""
REGRESSION: dict[str, Metric] = {"pearson": correlation, "spearman": _rank_correlation}
