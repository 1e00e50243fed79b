"""Every metric has a value on every sample, and it is scikit-learn's where that defines one."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, matthews_corrcoef

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.corpus.chunks import Chunk
from pipeline.evaluation.evaluation import Evaluation
from pipeline.evaluation.metrics import CLASSIFICATION, LABEL_SETS, REGRESSION, f1, macro_f1, matthews, micro_f1
from pipeline.rows import FloatArray
from tests.support.models import label_set_model, random_rows, regression_model


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


@given(st.integers(0, 10**6), st.integers(1, 20), st.floats(0, 1), st.floats(0, 1))
def test_metrics_of_label_sets_are_those_of_scikit_learn(seed: int, rows: int, true: float, given: float) -> None:
    random = np.random.default_rng(seed)
    targets = (random.random((rows, 4)) < true).astype(np.float32)
    predictions = (random.random((rows, 4)) < given).astype(np.float32)
    occur = (targets + predictions).any(0)
    if not occur.any():
        assert micro_f1(predictions, targets) == macro_f1(predictions, targets) == 1.0
        return
    micro = f1_score(targets, predictions, average="micro", zero_division=0)
    assert micro_f1(predictions, targets) == pytest.approx(micro)
    each = f1_score(targets, predictions, average=None, zero_division=0)
    assert macro_f1(predictions, targets) == pytest.approx(each[occur].mean())


@pytest.mark.parametrize("metric", LABEL_SETS)
@pytest.mark.parametrize("rows", [1, 40])
def test_a_model_of_label_sets_is_judged_at_its_thresholds(metric: str, rows: int, tmp_path: Path) -> None:
    labels = (np.random.default_rng(1).random((rows, 5)) < 0.4).astype(np.float32)
    examples = Chunk(rows=random_rows(rows, 20, seed=1), labels=labels)
    evaluation = Evaluation(label_set_model(tmp_path), examples, metric, (0.7,))
    point = evaluation.full_depth()
    assert (point.agreement, point.criterion.label_thresholds) == (1.0, (0.7,))
    predicted = evaluation.recorded.logits[-1] > np.log(0.7 / 0.3)
    assert point.quality == pytest.approx(LABEL_SETS[metric](predicted.astype(np.float32), labels))
    assert evaluation.correct(-1).tolist() == (predicted == labels).all(1).tolist()
    assert evaluation.criteria() == ["entropy", "confidence", "patience", "lte"]
    fast = evaluation.at(Criterion(speed=1.0))
    first = evaluation.recorded.logits[0] > np.log(0.7 / 0.3)
    assert fast.agreement == pytest.approx((first == predicted).all(1).mean())
