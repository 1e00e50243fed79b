"""Early exit as the papers' published code runs it."""

import numpy as np
import torch

from models.early_exit import EarlyExitModel
from models.length_group import LengthGroup
from pipeline.benchmark.peers.padding import Runner
from pipeline.benchmark.workload import Workload
from pipeline.engine.pack import pack


def one_row_at_a_time(model: EarlyExitModel) -> Runner:
    """Run early exit with batch size 1, every head evaluated."""
    device = next(model.parameters()).device

    def run(work: Workload) -> None:
        with torch.inference_mode():
            for row, exit_layer in enumerate(work.exit_plan):
                alone = work.rows.take(np.array([row]))
                groups = (LengthGroup(1, len(alone.token_ids)),)
                packed = pack(alone, groups, 0, device)
                x_TH = model.backbone.embeddings(packed)
                for number in range(1, exit_layer + 1):
                    x_TH = model.backbone.layer(number)(x_TH, groups)
                    model.exit_output(number, model.head(number).features(x_TH, groups)).logits.softmax(-1).max().item()

    return run
