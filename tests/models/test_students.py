"""Students of some of a teacher's layers: the teacher's own weights, in every family, and a model that transformers opens."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from models.early_exit import EarlyExitModel
from models.errors import UnsupportedModelError
from pipeline.engine.pack import pack
from pipeline.engine.packing import length_groups_of, sort_by_length
from pipeline.rows import TokenRows
from tests.models.test_families import our_last_logits, reference_logits
from tests.models.test_variants import VARIANTS, ragged_rows, saved
from tests.support.models import CONFIGS, random_classifier, random_exits, random_rows


def through_layers(model: EarlyExitModel, rows: TokenRows, layers: list[int]) -> torch.Tensor:
    """Run some of a model's layers by hand, and its last head: [B, C]."""
    order = sort_by_length(rows.lengths)
    packed = pack(rows.take(order), length_groups_of(rows.lengths[order]), 0, torch.device("cpu"))
    with torch.inference_mode():
        x_TH = model.backbone.embeddings(packed)
        for layer in layers:
            x_TH = model.backbone.layers[layer - 1](x_TH, packed.groups)
        head = model.head(model.shape.layers)
        logits = head.out(head.features(x_TH, packed.groups))
    return logits[torch.from_numpy(np.argsort(order))]


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("layers", [[1], [1, 2, 3], [1, 4]], ids=str)
def test_a_student_computes_what_these_layers_of_its_teacher_do(family: str, layers: list[int], tmp_path: Path) -> None:
    random_classifier(family).save_pretrained(tmp_path)
    teacher = random_exits(EarlyExitModel.from_pretrained(tmp_path), "pooled")
    student, rows = teacher.with_layers(layers), random_rows(17, 50, seed=1)
    assert (student.exit_layers, student.branch_head, student.lte) == ((len(layers),), None, None)
    torch.testing.assert_close(our_last_logits(student, rows), through_layers(teacher, rows, layers), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_student_is_a_plain_model_to_transformers(name: str, tmp_path: Path) -> None:
    teacher, rows = saved(name, tmp_path / "teacher"), ragged_rows(9)
    student = teacher.with_layers([1, 3])
    expected = through_layers(teacher, rows, [1, 3])
    torch.testing.assert_close(our_last_logits(student, rows), expected, atol=1e-5, rtol=0)
    student.save_pretrained(tmp_path / "student")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student").eval()
    torch.testing.assert_close(reference_logits(theirs, rows, pad_to_longest=False), expected, atol=1e-4, rtol=0)
    again = EarlyExitModel.from_pretrained(tmp_path / "student")
    assert again.config_digest == student.config_digest != teacher.config_digest
    assert our_last_logits(again, rows).equal(our_last_logits(student, rows))


def test_layers_that_are_not_there_or_not_alike_make_no_student(tmp_path: Path) -> None:
    random_classifier("bert").save_pretrained(tmp_path / "bert")
    bert, rows = EarlyExitModel.from_pretrained(tmp_path / "bert"), random_rows(5, 20, seed=2)
    torch.testing.assert_close(our_last_logits(bert.with_layers([2, 4]), rows), through_layers(bert, rows, [2, 4]))
    modern, convolution = saved("modernbert", tmp_path / "a"), saved("deberta-v2 with a convolution", tmp_path / "b")
    for teacher in (modern, convolution):
        with pytest.raises(UnsupportedModelError, match="its first layer is not like the others"):
            teacher.with_layers([2, 3])
    for wrong in ([], [0], [4], [2, 1], [1, 1]):
        with pytest.raises(ValueError, match="layers must ascend within 1 to 3"):
            modern.with_layers(wrong)
