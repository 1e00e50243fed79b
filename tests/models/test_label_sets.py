"""Models that predict label sets: what transformers opens, how uncertain a row is, and what exits learn from."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

from models.early_exit import EarlyExitModel
from models.errors import InputError
from models.exits.criterion import Criterion
from models.exits.losses import label_losses, lte_losses, soft_label_losses
from models.exits.task import Task
from models.exits.uncertainty import extend_streak, uncertainty_of
from tests.support.models import TAGS, label_set_classifier, label_set_model, new_model, regression_model

NOTHING = math.nan


def entropy(p: float) -> float:
    """Return the entropy of a choice between two, in bits."""
    return -sum(q * math.log2(q) for q in (p, 1 - p) if q > 0)


def test_transformers_opens_the_directory_as_the_same_kind_of_model(tmp_path: Path) -> None:
    model = label_set_model(tmp_path)
    assert (model.task, model.labels, model.regression) == (Task.LABELS, TAGS, False)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert theirs.config.problem_type == "multi_label_classification"
    assert list(theirs.config.id2label.values()) == TAGS
    assert (new_model().task, regression_model().task) == (Task.CLASSES, Task.VALUE)


def test_one_label_is_a_set_too_where_config_json_says_so(tmp_path: Path) -> None:
    label_set_classifier(labels=["spam"]).save_pretrained(tmp_path)
    model = EarlyExitModel.from_pretrained(tmp_path)
    assert (model.task, model.shape.classes) == (Task.LABELS, 1)


def test_the_same_weights_with_another_task_are_another_model(tmp_path: Path) -> None:
    before = label_set_model(tmp_path).config_digest
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"problem_type": None}))
    assert EarlyExitModel.from_pretrained(tmp_path).config_digest != before


def test_a_new_classifier_on_a_backbone_predicts_what_it_is_made_for(tmp_path: Path) -> None:
    label_set_classifier().save_pretrained(tmp_path)
    new = EarlyExitModel.from_pretrained(tmp_path, new_labels=["a", "b"], new_task=Task.LABELS)
    assert (new.task, new.labels) == (Task.LABELS, ["a", "b"])
    assert EarlyExitModel.from_pretrained(tmp_path, new_labels=["a", "b"]).task is Task.CLASSES


@given(
    logits=st.lists(st.floats(-20, 20), min_size=1, max_size=6),
    threshold=st.floats(0.02, 0.98),
)
def test_a_row_is_as_uncertain_as_its_least_certain_label(logits: list[float], threshold: float) -> None:
    shifted = [logit - math.log(threshold / (1 - threshold)) for logit in logits]
    probabilities = [1 / (1 + math.exp(-logit)) for logit in shifted]
    boundaries = torch.tensor(Criterion(label_thresholds=(threshold,)).boundaries(len(logits)))
    expected = {
        "entropy": max(entropy(p) for p in probabilities),
        "confidence": max(min(p, 1 - p) for p in probabilities),
    }
    for name, value in expected.items():
        got = uncertainty_of(Criterion(name=name), torch.tensor([logits]), boundaries_C=boundaries)
        assert got.shape == (1,)
        assert float(got) == pytest.approx(value, abs=2e-4)


def test_exits_agree_where_their_label_sets_are_equal() -> None:
    boundaries, streak = torch.tensor([0.0, 1.0]), torch.zeros(1, dtype=torch.int64)
    before = torch.tensor([[2.0, 0.5]])
    for now, expected in (([0.1, 0.9], 1), ([9.0, -9.0], 2), ([9.0, 1.5], 0), ([9.0, 1.1], 1), ([-1.0, 1.1], 0)):
        streak = extend_streak(streak, before, torch.tensor([now]), 0.0, boundaries)
        before = torch.tensor([now])
        assert int(streak) == expected


def test_thresholds_of_labels_have_one_form_and_are_described() -> None:
    assert Criterion(label_thresholds=(0.5, 0.5)) == Criterion()
    assert Criterion(label_thresholds=(0.3, 0.3)) == Criterion(label_thresholds=(0.3,))
    assert Criterion(speed=0.2, label_thresholds=(0.3,)).describe() == "entropy 0.2, labels above 0.3"
    each = Criterion(name="patience", label_thresholds=(0.5, 0.3))
    assert each.describe() == "patience 1, tolerance 0.1, labels above 0.5 0.3"
    assert each.at_full_depth().label_thresholds == (0.5, 0.3)
    assert each.boundaries(2) == pytest.approx((0.0, math.log(3 / 7)))
    assert Criterion().boundaries(3) == (0.0, 0.0, 0.0)
    for wrong in (0.0, 1.0, 1.5, math.nan):
        with pytest.raises(InputError, match="must be between 0 and 1"):
            Criterion(label_thresholds=(wrong,))


def test_losses_are_those_of_torch_and_rows_without_a_label_set_count_nothing() -> None:
    torch.manual_seed(0)
    logits, teacher = torch.randn(3, 4, 5), torch.randn(4, 5)
    labels = (torch.rand(4, 5) > 0.5).float()
    labels[0], labels[1] = NOTHING, 0.0  # no label set; an empty one
    losses = label_losses(logits, labels)
    assert losses.shape == (3, 4)
    assert losses[:, 0].tolist() == [0.0, 0.0, 0.0]
    for row in (1, 2, 3):
        assert float(losses[2, row]) == pytest.approx(
            float(F.binary_cross_entropy_with_logits(logits[2, row], labels[row])), abs=1e-6
        )
    soft = soft_label_losses(logits, teacher, 2.0, Task.LABELS)
    pairs = [torch.distributions.Bernoulli(logits=x / 2.0) for x in (teacher.expand(3, 4, 5), logits)]
    torch.testing.assert_close(soft, 4 * torch.distributions.kl_divergence(*pairs).mean(-1))
    assert soft_label_losses(teacher, teacher, 1.0, Task.LABELS).abs().max() < 1e-6


def test_an_exit_is_certain_where_it_is_right_about_every_label() -> None:
    logits = torch.tensor([[3.0, -3.0], [3.0, 3.0], [3.0, 3.0]])
    targets = torch.tensor([[1.0, 0.0], [1.0, 0.0], [NOTHING, NOTHING]])
    sure = torch.tensor([50.0, -50.0, 50.0])
    assert float(lte_losses(sure, logits, targets)) == pytest.approx(0.0)
    assert float(lte_losses(-sure, logits, targets)) == pytest.approx(1.0)
