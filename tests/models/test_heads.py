"""Pooled branch heads read their token standardized, in every precision."""

from pathlib import Path

import torch

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from models.precision import set_precision
from pipeline.engine.pack import pack
from pipeline.engine.packing import length_groups_of, sort_by_length
from pipeline.training.frozen import standardize_heads
from pipeline.training.process_group import ProcessGroup
from tests.support.models import random_exits, random_rows, spread_weights


def test_pooled_heads_read_what_little_differs_between_rows(bert_directory: Path) -> None:
    model = random_exits(spread_weights(EarlyExitModel.from_pretrained(bert_directory)), "pooled")
    branches = model.exit_layers[:-1]
    shift_H = torch.rand(model.shape.hidden, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # first tokens that are nearly the same for all rows
        for layer in branches:
            model.backbone.layer(layer).ffn_norm.weight.mul_(0.05)
            model.backbone.layer(layer).ffn_norm.bias.copy_(shift_H)
    rows = random_rows(300, 40, seed=1)
    standardize_heads(model, rows, ProcessGroup())
    read: list[torch.Tensor] = []
    model.head(1).dense.register_forward_pre_hook(lambda _module, inputs: read.append(inputs[0].detach()))
    rows = rows.take(sort_by_length(rows.lengths))
    model(pack(rows, length_groups_of(rows.lengths), 0, torch.device("cpu")))
    assert read[0].mean(0).abs().median() < 0.1  # of single channels bf16 rounds more away
    assert 0.9 < read[0].std(0).median() < 1.1
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    assert set(statistics) == {f"exits.{layer}.{name}" for layer in branches for name in ("mean", "deviation")}
    set_precision(model, "bf16", torch.device("cpu"), 256)
    assert model.head(1).dense.weight.dtype == torch.bfloat16
    assert all(torch.equal(value, statistics[name]) for name, value in model.named_buffers())


def test_a_handful_of_rows_standardizes_nothing(bert_directory: Path) -> None:
    model = random_exits(EarlyExitModel.from_pretrained(bert_directory), "pooled")
    before = {name: value.clone() for name, value in model.named_buffers()}
    standardize_heads(model, random_rows(8, 40, seed=1), ProcessGroup())
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_new_heads_forget_the_threshold_of_others(exit_model: EarlyExitModel, tmp_path: Path) -> None:
    exit_model.criterion = Criterion(speed=0.4)
    exit_model.save_pretrained(tmp_path)
    again = EarlyExitModel.from_pretrained(tmp_path)
    assert again.criterion == Criterion(speed=0.4)
    again.add_exits("attention")
    assert again.criterion is None
