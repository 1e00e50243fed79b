"""What a step waits for: on a GPU nothing is read back, so that the host runs ahead of it."""

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from models.early_exit import EarlyExitModel
from pipeline.corpus.chunks import Chunk, MemorySource
from pipeline.rows import TokenRows
from pipeline.training.config import TrainingConfig
from pipeline.training.loop import Trainer
from pipeline.training.process_group import ProcessGroup
from pipeline.training.progress import LOG_STEPS, TrainingLog, TrainState
from pipeline.training.recipes import Objective, WholeModel
from tests.support.gpu import watching_waits
from tests.support.models import random_exits

CONFIG = TrainingConfig(epochs=1, batch_rows=4, learning_rate=1e-3)
LOG = TrainingLog(print, None, CONFIG)
ROWS = TokenRows.from_lists([[1, 2, 3], [4, 5, 6], [7, 8, 9, 10]])
UNREADABLE = torch.empty((), device="meta")
"""A loss on a device without memory: whoever reads it gets an error."""


def batch_of(model: EarlyExitModel) -> Chunk:
    logits = np.zeros((3, model.shape.classes), np.float32)
    return Chunk(rows=ROWS, labels=np.array([0, 1, np.nan], np.float32), logits=logits, global_rows=3)


def test_the_loss_is_read_only_where_a_line_is_due(tmp_path: Path) -> None:
    lines: list[str] = []
    log = TrainingLog(lines.append, tmp_path / "log.jsonl", CONFIG)
    for step in range(1, LOG_STEPS):
        log.end_step(TrainState(step=step), UNREADABLE, 0.5, 1.0)
    log.end_step(TrainState(step=LOG_STEPS), torch.tensor(0.25), 0.5, 1.0)
    log.last_line = float("-inf")
    log.end_step(TrainState(step=LOG_STEPS + 1), torch.tensor(0.5), 0.5, 2.0)
    assert [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [0.25]
    assert lines == [" 50%  step 51  loss 0.5000  102 rows/s  about 2 s left"]


def test_no_time_is_named_before_a_part_of_the_training_is_done() -> None:
    lines: list[str] = []
    log = TrainingLog(lines.append, None, CONFIG)
    log.last_line = float("-inf")
    log.end_step(TrainState(step=1), torch.tensor(0.5), 0.0, 2.0)
    assert lines == ["  0%  step 1  loss 0.5000  2 rows/s"]


@pytest.mark.parametrize("kind", ["pooled", "attention"])
@pytest.mark.parametrize("strategy", ["joint", "alternating"])
def test_nothing_of_a_step_is_read_back(
    kind: str, strategy: str, bert_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Take steps on the meta device, where whoever reads a value gets an error."""
    monkeypatch.setattr("pipeline.training.recipes.autocast", lambda _device: nullcontext())  # it does not know meta
    model = random_exits(EarlyExitModel.from_pretrained(bert_directory), kind).to("meta")
    recipe = WholeModel(model, Objective(soft=True, label_weight=0.5), strategy=strategy)
    batch = batch_of(model)
    trainer = Trainer(recipe, MemorySource(whole=batch, seed=0), batch, CONFIG, None, ProcessGroup(), False, LOG)
    trainer.optimizer = torch.optim.SGD(recipe.parameters(), 0.1)  # nor does AdamW in one kernel
    for number in (1, 2):
        trainer.state.step = number
        loss = trainer._step(batch, None)
        assert (loss.device.type, loss.shape) == ("meta", ())
        left_out = {id(parameter) for parameter in recipe.left_out(number)}
        assert bool(left_out) == (strategy == "alternating" and number == 1)
        assert {id(parameter) for parameter in recipe.parameters() if parameter.grad is None} == left_out
    assert {id(parameter) for parameter in model.in_order_of_use()} == {id(p) for p in model.parameters()}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", ["pooled", "attention"])
def test_a_gpu_is_not_waited_for(kind: str, bert_directory: Path) -> None:
    model = random_exits(EarlyExitModel.from_pretrained(bert_directory), kind).to("cuda")
    recipe, batch = WholeModel(model, Objective(soft=True, label_weight=0.5)), batch_of(model)
    trainer = Trainer(recipe, MemorySource(whole=batch, seed=0), batch, CONFIG, None, ProcessGroup(), False, LOG)
    trainer._step(batch, None)  # libraries start with the first one
    with watching_waits("error"):
        trainer._step(batch, None)
