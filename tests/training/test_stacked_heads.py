"""Branch heads side by side: they compute, learn and weigh as each of them alone, in as many operators as one."""

import copy
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig

from models.branch_heads import BranchHeads
from models.early_exit import EarlyExitModel, ExitOutput
from models.exits.losses import lte_losses
from models.heads import PooledHead
from models.length_group import LengthGroup
from models.training import attention
from pipeline.corpus.chunks import Chunk
from pipeline.engine.packing import sort_by_length
from pipeline.training.recipes import FrozenHeads, Objective, loss_of, stack_outputs, targets_of
from tests.support.models import BERT_SIZES, random_exits, random_rows

GROUPS = (LengthGroup(3, 2), LengthGroup(2, 5), LengthGroup(1, 17))
ROWS, TOKENS = 6, 33
KINDS = ["pooled", "attention"]


def model_of(kind: str, layers: int = 4, classes: int = 3) -> EarlyExitModel:
    config = BertConfig(**(BERT_SIZES | {"num_hidden_layers": layers, "num_labels": classes}))
    model = random_exits(EarlyExitModel(config), kind)
    for layer in model.exit_layers[:-1]:
        for buffer in model.head(layer).buffers():
            buffer.copy_(torch.rand(buffer.shape) + 0.5)
    return model


def one_by_one(model: EarlyExitModel, states: Tensor) -> ExitOutput:
    """Compute what BranchHeads does, head by head."""
    outputs = {}
    for layer, state in zip(model.exit_layers, states, strict=False):
        head = model.head(layer)
        features = head.features_of_first(state) if head.reads_first_token else head.features(state, GROUPS)
        outputs[layer] = model.exit_output(layer, features)
    return stack_outputs(outputs)


def gradients(model: EarlyExitModel) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("rectangle", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_heads_side_by_side_give_the_values_and_gradients_of_each_alone(
    kind: str, rectangle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = model_of(kind).double()
    together = copy.deepcopy(alone)
    heads = BranchHeads(together).eval()
    states = torch.randn(3, ROWS if kind == "pooled" else TOKENS + 4, 32, dtype=torch.double)  # 4 tokens of padding
    expected = one_by_one(alone, states)
    if rectangle:  # as on a GPU
        monkeypatch.setattr(attention, "_mix_by_group", attention._mix_padded)
    got = heads(states, GROUPS)
    assert got.lte is not None
    assert expected.lte is not None
    torch.testing.assert_close(got.logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got.lte, expected.lte, atol=1e-4, rtol=1e-4)
    weights = torch.randn(got.logits.shape)
    for output in (got, expected):
        assert output.lte is not None
        ((output.logits * weights).sum() + output.lte.square().sum()).backward()
    of_each = gradients(alone)
    names = ("dense", "out") if kind == "pooled" else ("narrow", "query", "key_value", "attention_out", "dense", "out")
    for name in names:
        stack = getattr(heads.heads, name)
        for index, (weight, bias) in enumerate(zip(stack.weight.grad, stack.bias.grad.view(3, -1), strict=True)):
            torch.testing.assert_close(weight, of_each[f"exits.{index + 1}.{name}.weight"], atol=1e-3, rtol=1e-3)
            torch.testing.assert_close(bias, of_each[f"exits.{index + 1}.{name}.bias"], atol=1e-3, rtol=1e-3)
    assert heads.lte is not None
    torch.testing.assert_close(heads.lte.weight.grad, of_each["lte.weight"], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_has_what_the_heads_learn_and_is_saved_with_it(kind: str, tmp_path: Path) -> None:
    model = model_of(kind)
    before = copy.deepcopy(model)
    heads = BranchHeads(model)
    for name, value in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.mul_(2.0)
    for layer in before.exit_layers[:-1]:
        for parameter, old in zip(model.head(layer).parameters(), before.head(layer).parameters(), strict=True):
            assert torch.equal(parameter, 2 * old)
    assert torch.equal(next(iter(model.head(4).parameters())), next(iter(before.head(4).parameters())))
    model.save_pretrained(tmp_path)
    opened = EarlyExitModel.from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(opened.state_dict()[name], value)


def test_new_means_and_deviations_reach_the_heads_that_lie_together() -> None:
    model = model_of("pooled")
    heads = BranchHeads(model).eval()
    states = 5 + 3 * torch.randn(3, ROWS, 32)
    for layer, state in zip((1, 2, 3), states, strict=True):
        head = model.head(layer)
        assert isinstance(head, PooledHead)
        head.standardize(state)
    torch.testing.assert_close(heads(states, GROUPS).logits, one_by_one(model, states).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize(
    "objective", [Objective(soft=False), Objective(soft=True, temperature=2.0), Objective(soft=True, label_weight=0.4)]
)
def test_the_loss_is_the_sum_of_every_exit_alone(objective: Objective, classes: int) -> None:
    torch.manual_seed(0)
    output = ExitOutput(torch.randn(4, ROWS, classes), torch.randn(3, ROWS))  # the last exit has no certainty
    teacher, weights = torch.randn(ROWS, classes), torch.tensor([0.5, 1.0, 2.0, 3.0])
    labels = np.array([0, 2, np.nan, 1, np.nan, 0], np.float32)
    batch = Chunk(rows=random_rows(ROWS, 9, seed=0), labels=labels)
    known = torch.from_numpy(labels)
    targets = targets_of(known, teacher) if objective.soft else known
    assert output.lte is not None
    expected = sum(
        float(weight * objective.losses(logits, known, teacher))
        for logits, weight in zip(output.logits, weights, strict=True)
    ) + sum(float(lte_losses(lte, logits, targets)) for lte, logits in zip(output.lte, output.logits, strict=False))
    assert float(loss_of(output, weights, batch, teacher, objective)) == pytest.approx(expected, rel=1e-5)
    assert float(loss_of(ExitOutput(output.logits, None), weights, batch, teacher, objective)) < expected


class Operators(TorchDispatchMode):
    """Counts the operators that run, views among them."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
def test_more_exits_are_no_more_operators(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, where each is a launch, a step of small heads takes as long as its operators are many."""
    monkeypatch.setattr("pipeline.training.recipes.autocast", lambda _device: nullcontext())
    monkeypatch.setattr(attention, "_mix_by_group", attention._mix_padded)
    rows = random_rows(ROWS, 9, seed=1)
    rows = rows.take(sort_by_length(rows.lengths))
    batch = Chunk(rows=rows, labels=np.zeros(ROWS, np.float32))
    counted = []
    for layers in (3, 9):
        recipe = FrozenHeads(model_of(kind, layers), Objective(soft=True))
        states = recipe.backbone.run(rows)
        states = replace(states, inputs=states.inputs.float())  # as autocast would do
        recipe.loss(batch, 1, states)  # what is cached is made
        with Operators() as operators:
            recipe.loss(batch, 1, states).backward()
        counted.append(operators.counts)
        recipe.backbone.loaded.close()
    assert counted[0] == counted[1]
    assert counted[0].total() > 20
