"""Uncertainty by hand, and FLOPs against torch's own counter."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.backbone import PackedTokens
from models.early_exit import EarlyExitModel
from models.exits.flops import pairs_within
from models.exits.losses import label_losses, lte_losses, soft_label_losses
from models.exits.uncertainty import extend_streak, normalized_entropy, should_exit
from models.length_group import LengthGroup
from pipeline.training.recipes import Objective
from tests.support.models import CONFIGS


def test_normalized_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [math.log(0.5), math.log(0.5), -1e9, -1e9], [1e9, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(normalized_entropy(logits), torch.tensor([1.0, 0.5, 0.0]))


@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=200))
def test_normalized_entropy_is_in_the_unit_interval(logits: list[float]) -> None:
    value = float(normalized_entropy(torch.tensor([logits]))[0])
    assert 0.0 <= value <= 1.0


def test_one_class_is_never_uncertain() -> None:
    assert normalized_entropy(torch.zeros(3, 1)).tolist() == [0.0, 0.0, 0.0]


def test_the_ends_of_speed_hold_exactly() -> None:
    uncertainty = torch.tensor([0.0, 0.5, 1.0])
    assert should_exit(uncertainty, 1.0).all()
    assert not should_exit(uncertainty, 0.0).any()
    assert should_exit(uncertainty, 0.5).tolist() == [True, True, False]


def test_soft_label_loss_is_kl_from_teacher_to_student_by_hand() -> None:
    teacher = torch.log(torch.tensor([[0.75, 0.25]]))
    student = torch.log(torch.tensor([[0.5, 0.5]]))
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(soft_label_losses(student, teacher)) == pytest.approx(expected)
    assert float(soft_label_losses(teacher, teacher)) == pytest.approx(0.0)
    flat = math.sqrt(0.75) / (math.sqrt(0.75) + math.sqrt(0.25))
    softened = flat * math.log(flat / 0.5) + (1 - flat) * math.log((1 - flat) / 0.5)
    assert float(soft_label_losses(student, teacher, temperature=2.0)) == pytest.approx(4 * softened)
    assert float(soft_label_losses(torch.tensor([[1.0]]), torch.tensor([[3.0]]))) == pytest.approx(4.0)


def test_rows_without_a_label_do_not_count() -> None:
    logits = torch.log(torch.tensor([[0.75, 0.25], [0.5, 0.5], [0.1, 0.9]]))
    labels = torch.tensor([0.0, math.nan, 1.0])
    expected = -(math.log(0.75) + math.log(0.9)) / 2
    assert float(label_losses(logits, labels).sum() / 2) == pytest.approx(expected)
    assert float(Objective(soft=False).losses(logits, labels, None)) == pytest.approx(expected)
    assert float(Objective(soft=False).losses(logits[:1], torch.tensor([math.nan]), None)) == 0.0
    assert label_losses(torch.tensor([[1.0], [5.0]]), torch.tensor([3.0, math.nan])).tolist() == [4.0, 0.0]


def test_a_true_label_weighs_in_its_own_row_only() -> None:
    random = torch.manual_seed(0)
    logits, teacher = torch.randn(4, 3, generator=random), torch.randn(4, 3, generator=random)
    labels = torch.tensor([math.nan, 2.0, math.nan, math.nan])
    soft, hard = soft_label_losses(logits, teacher), label_losses(logits, labels)
    expected = (soft[0] + soft[2] + soft[3] + 0.7 * soft[1] + 0.3 * hard[1]) / 4
    assert float(Objective(soft=True, label_weight=0.3).losses(logits, labels, teacher)) == pytest.approx(
        float(expected)
    )


def test_learned_certainty_aims_at_being_right() -> None:
    logits = torch.tensor([[2.0, 1.0], [2.0, 1.0], [2.0, 1.0]])
    half = torch.zeros(3)  # sigmoid: 0.5
    assert float(lte_losses(half, logits, torch.tensor([0.0, 1.0, math.nan]))) == pytest.approx(0.25)
    sure = torch.tensor([100.0, -100.0, 0.0])
    assert float(lte_losses(sure, logits, torch.tensor([0.0, 1.0, math.nan]))) == pytest.approx(0.0)
    value = lte_losses(torch.zeros(1), torch.tensor([[2.5]]), torch.tensor([2.0]))
    assert float(value) == pytest.approx((0.5 - (1 - math.tanh(0.5))) ** 2, rel=1e-4)


def test_streaks_count_agreeing_neighbours_and_start_again() -> None:
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    streak = torch.zeros(1, dtype=torch.int64)
    seen = []
    for before, now in pairwise([a, a, a, b, b]):
        streak = extend_streak(streak, before, now, 0.0)
        seen.append(int(streak))
    assert seen == [1, 2, 0, 1]
    assert int(extend_streak(streak, torch.tensor([[1.0]]), torch.tensor([[1.05]]), 0.1)) == 2
    assert int(extend_streak(streak, torch.tensor([[1.0]]), torch.tensor([[1.2]]), 0.1)) == 0


@pytest.mark.parametrize("kind", ["pooled", "attention"])
@pytest.mark.parametrize("family", ["bert", "electra", "distilbert", "mpnet", "modernbert", "deberta-v2"])
@pytest.mark.parametrize("length", [1, 7, 33])
def test_flops_equal_torchs_counter(family: str, kind: str, length: int) -> None:
    config = copy.deepcopy(CONFIGS[family])
    config.local_attention = 128  # of a window we count what is seen, and torch what is computed
    model = EarlyExitModel(config).eval()
    model.add_exits(kind)
    model.lte = None  # one number a row, which we leave out
    model.backbone.freeze()  # what follows from the weights alone is made once for all rows
    rows = 3
    packed = PackedTokens(
        token_ids=torch.zeros(rows * length, dtype=torch.long),
        segments=torch.full((rows,), length),
        groups=(LengthGroup(rows, length),),
    )
    counter = FlopCounterMode(display=False)
    # torch's counter does not know the CPU's flash kernel; as plain products it counts attention too. With gradients on,
    # since without them keys are padded, which is no work that a row asks for.
    with counter, torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        model(packed)
    ours = model.flops.rows([length] * rows, [model.shape.layers] * rows).sum()
    assert ours == counter.get_total_flops()


def test_tokens_pay_for_what_they_see_of_a_window() -> None:
    lengths = np.arange(1, 30, dtype=np.float64)
    for window in (0, 1, 3, 40):
        seen = [sum(abs(q - k) <= window for q in range(n) for k in range(n)) for n in range(1, 30)]
        assert pairs_within(lengths, window).tolist() == seen
    flops = EarlyExitModel(CONFIGS["modernbert"]).flops
    layer = 2 * 25 * (4 * 32 * 32 + 3 * 32 * 48)
    by_depth = [flops.layers(np.array([25.0]), depth)[0] for depth in range(5)]
    seen = [25 * 25, *[pairs_within(np.array([25.0]), 8)[0]] * 2, 25 * 25]  # every third layer sees all
    assert np.diff(by_depth).tolist() == [layer + 4 * pairs * 32 for pairs in seen]


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
