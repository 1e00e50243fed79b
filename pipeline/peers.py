"""What users would run instead, to be measured beside the engine in one process. Each peer classifies the same token rows."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from models.backbone import PackedTokens
from models.early_exit import EarlyExitModel
from models.runs import Run
from pipeline.rows import IntArray, TokenRows
from pipeline.workload import Workload

BATCH_ROWS = 32
"""What people write: the batch size of most scripts and of the papers' training."""
Runner = Callable[[Workload], None]
Ids = npt.NDArray[np.int64]


class MissingPeerError(Exception):
    """A peer's package is not installed; the message names it."""


def padded_batches(rows: TokenRows, order: IntArray) -> Iterator[tuple[Ids, Ids]]:
    """Cut rows into batches of BATCH_ROWS in this order, padded to their longest: (ids, mask), each [B, L]."""
    lengths = rows.lengths
    for start in range(0, len(order), BATCH_ROWS):
        batch = order[start : start + BATCH_ROWS]
        ids = np.zeros((len(batch), int(lengths[batch].max())), np.int64)
        mask = np.zeros_like(ids)
        for place, row in enumerate(batch):
            ids[place, : lengths[row]] = rows.token_ids[rows.offsets[row] : rows.offsets[row + 1]]
            mask[place, : lengths[row]] = 1
        yield ids, mask


def hugging_face(model: nn.Module, *, in_order_of_length: bool) -> Runner:
    """Transformers' own model, in arrival order as most scripts do, or sorted by length."""
    device = next(model.parameters()).device

    def run(work: Workload) -> None:
        order = np.argsort(work.rows.lengths, kind="stable") if in_order_of_length else np.arange(len(work.rows))
        with torch.inference_mode():
            for ids, mask in padded_batches(work.rows, order):
                inputs = {
                    "input_ids": torch.from_numpy(ids).to(device),
                    "attention_mask": torch.from_numpy(mask).to(device),
                }
                model(**inputs).logits.float().cpu()

    return run


def one_row_at_a_time(model: EarlyExitModel) -> Runner:
    """Early exit as the papers' published code runs it: batch size 1, every head looked at."""

    def run(work: Workload) -> None:
        rows = work.rows
        with torch.inference_mode():
            for row, exit_layer in enumerate(work.exit_plan):
                ids = torch.from_numpy(rows.token_ids[rows.offsets[row] : rows.offsets[row + 1]].astype(np.int64))
                runs = (Run(1, len(ids)),)
                packed = PackedTokens(token_ids=ids, segments=torch.tensor([len(ids)]), runs=runs)
                x_TH = model.backbone.embeddings(packed)
                for number in range(1, exit_layer + 1):
                    x_TH = model.backbone.layer(number)(x_TH, runs)
                    model.exits[str(number)](x_TH, runs).softmax(-1).max().item()

    return run


def openvino(model: nn.Module, *, precision: str, threads: int) -> Runner:
    """OpenVINO on the CPU with its own inference precision ('bf16' or 'f32'), sorted by length; raises MissingPeerError."""
    if find_spec("openvino") is None:
        raise MissingPeerError("openvino")
    import openvino as ov

    example = {"input_ids": torch.ones(2, 8, dtype=torch.long), "attention_mask": torch.ones(2, 8, dtype=torch.long)}
    with torch.no_grad():
        converted = ov.convert_model(model, example_input=example)
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = ov.Core().compile_model(converted, "CPU", settings).create_infer_request()

    def run(work: Workload) -> None:
        for ids, mask in padded_batches(work.rows, np.argsort(work.rows.lengths, kind="stable")):
            request.infer({"input_ids": ids, "attention_mask": mask})

    return run
