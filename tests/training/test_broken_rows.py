"""A row of which a model makes no finite numbers costs a training the steps that it is in, and not the model."""

import copy

import numpy as np
import pytest
import torch

from models.early_exit import EarlyExitModel
from pipeline.corpus.chunks import Chunk, MemorySource
from pipeline.errors import UserError
from pipeline.training.config import TrainingConfig
from pipeline.training.frozen import standardize_heads
from pipeline.training.loop import train
from pipeline.training.process_group import ProcessGroup
from pipeline.training.progress import TrainState
from pipeline.training.recipes import FrozenHeads, Objective, Recipe, WholeModel
from tests.support.models import random_rows

BROKEN = 199
"""The token whose embedding is finite, and its square is not."""
CONFIG = TrainingConfig(epochs=2, batch_rows=16, learning_rate=1e-3, seed=1)


def chunk_of(rows: int, broken: int) -> Chunk:
    made = random_rows(rows, 20, seed=5)
    made.token_ids[made.token_ids == BROKEN] = 7
    made.token_ids[made.offsets[:broken]] = BROKEN
    return Chunk(rows=made, labels=(np.arange(rows) % 3).astype(np.float32))


def spoiled(model: EarlyExitModel) -> EarlyExitModel:
    with torch.no_grad():
        model.backbone.embeddings.word_embeddings.weight[BROKEN] = 1e30
    return model


def recipe_of(name: str, model: EarlyExitModel) -> Recipe:
    if name == "heads":
        return FrozenHeads(model, Objective(soft=True))
    soft = name == "student"
    return WholeModel(model, Objective(soft=soft), teacher=copy.deepcopy(model) if soft else None)


def fit(recipe: Recipe, rows: Chunk, lines: list[str]) -> TrainState:
    dev = chunk_of(60, 0)
    return train(recipe, MemorySource(whole=rows, seed=1, chunk_rows=200), dev, CONFIG, log=lines.append)


@pytest.mark.parametrize("name", ["heads", "student", "whole"])
def test_steps_with_broken_rows_change_nothing_and_are_counted(name: str, exit_model: EarlyExitModel) -> None:
    model, lines = spoiled(exit_model), list[str]()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = fit(recipe_of(name, model), chunk_of(320, 2), lines)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert any(not torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert np.isfinite(state.losses).all()
    told = [line for line in lines if "are left out" in line]
    assert len(told) == 2
    assert all(
        line.endswith("of 21 steps are left out: a row in each gave no numbers") and line[0] in "12" for line in told
    )


def test_rows_that_are_all_broken_end_a_training_in_one_line(exit_model: EarlyExitModel) -> None:
    with pytest.raises(UserError, match=r"none of the 2 steps of epoch 1 gave numbers to learn from: model or teacher"):
        fit(recipe_of("whole", spoiled(exit_model)), chunk_of(32, 32), [])


def test_whole_rows_alone_set_the_scale_of_heads(exit_model: EarlyExitModel) -> None:
    if exit_model.branch_head != "pooled":
        pytest.skip("attention heads have no scale")
    model, rows = spoiled(exit_model), chunk_of(80, 3).rows
    whole = rows.take(np.arange(3, 80))
    found = []
    for some in (rows, whole):
        standardize_heads(model, some, ProcessGroup())
        found.append([buffer.clone() for layer in (1, 2, 3) for buffer in model.head(layer).buffers()])
    assert found[0]
    assert all(torch.allclose(a, b, atol=1e-5) and a.isfinite().all() for a, b in zip(*found, strict=True))


def test_heads_keep_their_scale_where_all_rows_are_broken(exit_model: EarlyExitModel) -> None:
    model = spoiled(exit_model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    standardize_heads(model, chunk_of(80, 80).rows, ProcessGroup())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_training_without_broken_rows_says_nothing(exit_model: EarlyExitModel) -> None:
    lines: list[str] = []
    fit(recipe_of("heads", exit_model), chunk_of(64, 0), lines)
    assert not [line for line in lines if "left out" in line]
