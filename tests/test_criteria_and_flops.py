"""Uncertainty by hand, and FLOPs against torch's own counter."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.backbone import PackedTokens
from models.criteria import may_exit, normalised_entropy
from models.early_exit import EarlyExitModel
from models.losses import self_distillation
from models.runs import Run
from tests.conftest import CONFIGS


def test_normalised_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [math.log(0.5), math.log(0.5), -1e9, -1e9], [1e9, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(normalised_entropy(logits), torch.tensor([1.0, 0.5, 0.0]))


@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=200))
def test_normalised_entropy_is_in_the_unit_interval(logits: list[float]) -> None:
    value = float(normalised_entropy(torch.tensor([logits]))[0])
    assert 0.0 <= value <= 1.0


def test_one_class_is_never_uncertain() -> None:
    assert normalised_entropy(torch.zeros(3, 1)).tolist() == [0.0, 0.0, 0.0]


def test_the_ends_of_speed_hold_exactly() -> None:
    uncertainty = torch.tensor([0.0, 0.5, 1.0])
    assert may_exit(uncertainty, 1.0).all()
    assert not may_exit(uncertainty, 0.0).any()
    assert may_exit(uncertainty, 0.5).tolist() == [True, True, False]


def test_self_distillation_is_kl_from_teacher_to_students_by_hand() -> None:
    teacher = torch.log(torch.tensor([[0.75, 0.25]]))
    student = torch.log(torch.tensor([[0.5, 0.5]]))
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(self_distillation([student, student], teacher)) == pytest.approx(2 * expected)
    assert float(self_distillation([teacher], teacher)) == pytest.approx(0.0)


@pytest.mark.parametrize("kind", ["pooled", "attention"])
@pytest.mark.parametrize("family", ["bert", "electra", "distilbert"])
@pytest.mark.parametrize("length", [1, 7, 33])
def test_flops_equal_torchs_counter(family: str, kind: str, length: int) -> None:
    model = EarlyExitModel(CONFIGS[family]).eval()
    model.add_exits(kind)
    rows = 3
    packed = PackedTokens(
        token_ids=torch.zeros(rows * length, dtype=torch.long),
        segments=torch.full((rows,), length),
        runs=(Run(rows, length),),
    )
    counter = FlopCounterMode(display=False)
    # torch's counter does not know the CPU's flash kernel; as plain products it counts attention too. With gradients on,
    # since without them keys are padded, which is no work that a row asks for.
    with counter, torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        model(packed)
    ours = model.flops.rows([length] * rows, [model.shape.layers] * rows).sum()
    assert ours == counter.get_total_flops()


def test_an_early_exit_costs_its_layers_and_heads_only() -> None:
    model = EarlyExitModel(CONFIGS["bert"])
    model.add_exits("pooled")
    flops, lengths = model.flops, [10.0]
    one, two = flops.rows(lengths, [1])[0], flops.rows(lengths, [2])[0]
    layer = 2 * 10 * (4 * 32 * 32 + 2 * 32 * 48) + 4 * 10 * 10 * 32
    head = 2 * 32 * (32 + 3)
    assert one == layer + head
    assert two == 2 * one
    assert flops.full_depth(lengths)[0] == 4 * layer + head
