"""Transformers' own models on padded batches: eager or compiled, sorted by length or in arrival order."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch._inductor.config as inductor
from torch import Tensor, nn

from pipeline.benchmark.peers.padding import BATCH_ROWS, Ids, Runner, padded_batches
from pipeline.benchmark.workload import Workload

SORTED_BATCH_ROWS = {"cpu": (BATCH_ROWS,), "cuda": (BATCH_ROWS, 256, 1024)}
"""The batch sizes that a peer may choose from, by device. 32 rows leave a GPU idle, and careful users know that."""
Classify = Callable[[Tensor, Tensor], Tensor]
"""Maps ids and mask, [B, L] int64 on the device, to logits there: [B, C]."""


def in_batches(
    classify: Classify, device: torch.device, batch_rows: int = BATCH_ROWS, *, in_order_of_length: bool = True
) -> Runner:
    """Return a runner that classifies padded batches, sorted by length or in arrival order, as most scripts do.

    Logits stay on the device to the end: the host pads the next batches while a GPU is at work on the last ones.
    """

    def run(work: Workload) -> None:
        rows = work.rows
        order = np.argsort(rows.lengths, kind="stable") if in_order_of_length else np.arange(len(rows))
        with torch.no_grad():
            batches = padded_batches(rows, order, batch_rows)
            logits = [classify(_to(ids, device), _to(mask, device)) for ids, mask in batches]
            torch.cat(logits).float().cpu()

    return run


def at_every_size(classify: Classify, device: torch.device) -> dict[int, Runner]:
    """Return a runner, sorted by length, for every batch size that is worth a try on the device."""
    return {rows: in_batches(classify, device, rows) for rows in SORTED_BATCH_ROWS[device.type]}


def eager(model: Callable[..., Any]) -> Classify:
    """Run transformers' own model as it is."""
    return lambda ids_BL, mask_BL: model(input_ids=ids_BL, attention_mask=mask_BL).logits


def compiled(model: nn.Module) -> Classify:
    """Run transformers' own model through torch.compile, for any shape, with frozen weights on CPUs (the faster way)."""
    if next(model.parameters()).device.type == "cpu":
        inductor.freezing = True  # read when the first batch compiles
    return eager(torch.compile(model, dynamic=True))


def _to(values: Ids, device: torch.device) -> Tensor:
    """Move an array to the device; to a GPU through pinned memory, without waiting for it."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
