"""What a step waits for: on a GPU nothing is read back, so that the host runs ahead of it."""

import json
from pathlib import Path

import torch

from pipeline.training.config import TrainingConfig
from pipeline.training.progress import LOG_STEPS, TrainingLog, TrainState

CONFIG = TrainingConfig(epochs=1, batch_rows=4, learning_rate=1e-3)
UNREADABLE = torch.empty((), device="meta")
"""A loss on a device without memory: whoever reads it gets an error."""


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
