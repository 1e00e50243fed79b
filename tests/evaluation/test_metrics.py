"""Every metric has a value on every sample, and it is scikit-learn's where that defines one."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, matthews_corrcoef

from models.early_exit import EarlyExitModel
from pipeline.corpus.chunks import Chunk
from pipeline.evaluation.evaluation import Evaluation
from pipeline.evaluation.metrics import CLASSIFICATION, REGRESSION, f1, matthews
from pipeline.rows import FloatArray
from tests.support.models import random_rows, regression_model


def drawn(seed: int, rows: int, classes: list[int]) -> FloatArray:
    return np.random.default_rng(seed).choice(classes, rows).astype(np.float32)


SUBSETS = st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True)


@given(st.integers(0, 10**6), st.integers(1, 30), SUBSETS, SUBSETS)
def test_metrics_of_classes_are_those_of_scikit_learn(seed: int, rows: int, true: list[int], given: list[int]) -> None:
    targets, predictions = drawn(seed, rows, true), drawn(seed + 1, rows, given)
    with warnings.catch_warnings(action="ignore"):  # of scikit-learn, where there is one class
        macro = f1_score(targets, predictions, average="macro", zero_division=0)
        correlation = matthews_corrcoef(targets, predictions)
    assert f1(predictions, targets, classes=4) == pytest.approx(macro)
    assert matthews(predictions, targets) == pytest.approx(correlation, abs=1e-9)


@given(
    st.integers(0, 10**6), st.integers(1, 30), st.sampled_from([[0], [1], [0, 1]]), st.sampled_from([[0], [1], [0, 1]])
)
def test_f1_of_two_classes_is_that_of_class_1(seed: int, rows: int, true: list[int], given: list[int]) -> None:
    targets, predictions = drawn(seed, rows, true), drawn(seed + 1, rows, given)
    wanted = f1_score(targets == 1, predictions == 1, average="binary", zero_division=0)
    assert f1(predictions, targets) == pytest.approx(wanted)


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [1.0, 3.0]], ids=["one row", "constant", "two rows"])
def test_metrics_of_values_are_defined_where_nothing_varies(values: list[float]) -> None:
    for metric in REGRESSION.values():
        constant = np.full(len(values), 5.0, np.float32)
        assert metric(constant, np.array(values, np.float32)) == 0.0
        varying = np.array(values, np.float32)
        assert metric(varying, varying) == pytest.approx(1.0 if len(set(values)) > 1 else 0.0)


@pytest.mark.parametrize("occurring", [[0, 2], [1], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("metric", CLASSIFICATION)
@pytest.mark.parametrize("rows", [1, 40])
def test_a_model_of_three_classes_is_judged_on_rows_of_any(
    metric: str, rows: int, occurring: list[int], exit_model: EarlyExitModel
) -> None:
    examples = Chunk(rows=random_rows(rows, 20, seed=1), labels=drawn(2, rows, occurring))
    evaluation = Evaluation(exit_model, examples, metric)
    point = evaluation.full_depth()
    assert point.agreement == 1.0  # with itself, whatever the metric
    assert evaluation.by_layer()[4] == point.quality
    answers = evaluation.recorded.answers[-1]
    with warnings.catch_warnings(action="ignore"):
        wanted = {
            "accuracy": (answers == examples.labels).mean(),
            "f1": f1_score(examples.labels, answers, average="macro", zero_division=0),
            "mcc": matthews_corrcoef(examples.labels, answers),
        }
    assert point.quality == pytest.approx(wanted[metric], abs=1e-6)
    for name in evaluation.criteria():
        assert all(0 <= point.agreement <= 1 for point in evaluation.curve(name))


@pytest.mark.parametrize("rows", [1, 2, 40])
def test_a_model_of_values_is_judged_on_constant_ones(rows: int) -> None:
    examples = Chunk(rows=random_rows(rows, 20, seed=1), labels=np.full(rows, 3.0, np.float32))
    for metric in REGRESSION:
        evaluation = Evaluation(regression_model(), examples, metric)
        assert set(evaluation.by_layer().values()) == {0.0}
        assert all(np.isfinite(p.agreement) for name in evaluation.criteria() for p in evaluation.curve(name))
