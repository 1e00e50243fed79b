"""The engine: token ids in, predictions out. It knows nothing of text, Arrow or Ray.

It works *layer-major*. All rows of a call are sorted by length into one token buffer; a block of layers runs over all of
them in micro-batches of a fixed token budget; the exit head judges every row; rows that leave are written down, the
survivors are moved together, and the next block runs over them in micro-batches that are as full as the first ones. So
the matrices stay large however few rows are left, and FLOPs saved become time saved.

Every call returns exactly its own rows, in their order, and keeps no state: a repeated call gives the same answer.

Memory: two bytes (bf16) x hidden x `resident_tokens` for the buffer, plus about 8 x hidden x `token_budget` values at work.
Larger calls are worked through in groups of `resident_tokens`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.backbone import PackedTokens
from models.criteria import may_exit, normalised_entropy
from models.early_exit import EarlyExitModel
from models.runs import Run
from pipeline.config import EngineConfig
from pipeline.packing import MicroBatch, cut_by_tokens, micro_batches, runs_of, sort_by_length, tile_size
from pipeline.rows import IntArray, Predictions, TokenRows

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def best_dtype(device: torch.device) -> str:
    """Return 'bf16' where the device multiplies it in hardware (AMX, AVX512-BF16, Ampere and later), else 'fp32'."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    # torch has no public name for these yet; both have been there, unchanged, since torch 2.4.
    return "bf16" if torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported() else "fp32"


def default_token_budget(device: torch.device) -> int:
    """Return the tokens of a micro-batch.

    CPU: of 1k..16k the fastest at hidden 384 and 768 (2 cores with AMX, bf16, mean 50 tokens): activations stay in cache.
    GPU: unmeasured; anchored on A100 figures, where some thousand tokens fill the device.
    """
    return 2048 if device.type == "cpu" else 16384


def pack(rows: TokenRows, runs: tuple[Run, ...], filler: int, device: torch.device) -> PackedTokens:
    """Move rows that are in packed order to the device; `filler` zero ids follow the last row."""
    ids = np.pad(rows.token_ids, (0, filler)).astype(np.int64)
    segments = rows.segments.astype(np.int64)
    return PackedTokens(
        token_ids=torch.from_numpy(ids).to(device), segments=torch.from_numpy(segments).to(device), runs=runs
    )


@dataclass(slots=True)
class _Results:
    """Predictions under way, in the order of the input."""

    probabilities: Tensor
    exit_layers: Tensor
    uncertainty: Tensor

    def record(self, rows: IntArray, layer: int, logits: Tensor, uncertainty: Tensor) -> None:
        where = torch.from_numpy(rows)
        self.probabilities[where] = torch.softmax(logits.float(), dim=-1).cpu()
        self.uncertainty[where] = uncertainty.cpu()
        self.exit_layers[where] = layer


class Engine:
    """Runs token rows through an early-exit model; takes the model over, casting and moving it in place."""

    def __init__(self, model: EarlyExitModel, config: EngineConfig, device: str = "cpu") -> None:
        self.config = config
        self.device = torch.device(device)
        dtype = best_dtype(self.device) if config.dtype == "auto" else config.dtype
        self.dtype = DTYPES[dtype]
        self.model = model.eval().to(self.device, self.dtype)
        self.token_budget = config.token_budget or default_token_budget(self.device)
        self._blocks = self._plan_blocks()
        self.flops = self.model.flops.with_heads_at(block.stop for block in self._blocks)
        """Counts what this engine computes: heads that it never looks at cost nothing."""

    @torch.inference_mode()
    def run(self, rows: TokenRows) -> Predictions:
        """Classify rows; the answer has exactly these rows, in this order."""
        count = len(rows)
        results = _Results(
            probabilities=torch.zeros(count, self.model.shape.classes),
            exit_layers=torch.zeros(count, dtype=torch.int16),
            uncertainty=torch.zeros(count),
        )
        order = sort_by_length(rows.lengths)
        filler = 0
        for group in cut_by_tokens(rows.lengths[order], self.config.resident_tokens):
            filler += self._run_group(rows, order[group], results)
        exit_layers = results.exit_layers.numpy()
        if count and exit_layers.min() < 1:
            raise AssertionError("a row came out of the engine without an exit")
        return Predictions(
            probabilities=results.probabilities.numpy(),
            exit_layers=exit_layers,
            uncertainty=results.uncertainty.numpy(),
            layer_tokens=int((rows.lengths * exit_layers).sum()),
            filler_tokens=filler,
        )

    def _plan_blocks(self) -> list[range]:
        """Cut the layers into blocks that end at an exit; without exits there is one block."""
        last = self.model.shape.layers
        ends = [e for e in self.model.exit_layers if e % self.config.exit_every == 0 and e < last]
        if self.config.speed == 0.0:
            ends = []
        starts = [0, *ends]
        return [range(start, stop) for start, stop in zip(starts, [*ends, last], strict=True)]

    def _run_group(self, rows: TokenRows, active: IntArray, results: _Results) -> int:
        """Run the rows numbered `active` (sorted by length) through all blocks; return the filler tokens computed."""
        group = rows.take(active)
        lengths, filler = group.lengths, 0
        margin = tile_size(self.token_budget)
        buffer_TH = torch.empty(
            int(lengths.sum()) + margin, self.model.shape.hidden, dtype=self.dtype, device=self.device
        )
        buffer_TH[-margin:] = 0  # the last micro-batch's filler, and never uninitialised memory that may hold NaN
        for block in self._blocks:
            batches = list(micro_batches(lengths, self.token_budget))
            logits = torch.cat([self._run_block(block, batch, buffer_TH, group) for batch in batches])
            uncertainty = normalised_entropy(logits)
            filler += len(block) * sum(batch.filler for batch in batches)
            if block.stop == self.model.shape.layers:
                results.record(active, block.stop, logits, uncertainty)
                break
            leaves = may_exit(uncertainty, self.config.speed).cpu()  # the one synchronisation of a block
            gone, stays = leaves.numpy(), ~leaves.numpy()
            if gone.any():
                results.record(active[gone], block.stop, logits[leaves], uncertainty[leaves])
                self._compact(buffer_TH, batches, lengths, stays)
                active, lengths = active[stays], lengths[stays]
            if len(active) == 0:
                break
        return filler

    def _run_block(self, block: range, batch: MicroBatch, buffer_TH: Tensor, group: TokenRows) -> Tensor:
        """Run one micro-batch through a block of layers and the exit head after it: -> logits [B, C]."""
        if block.start == 0:
            members = group.take(np.arange(batch.row_start, batch.row_stop))
            x_TH = self.model.backbone.embeddings(pack(members, batch.runs, batch.filler, self.device))
        else:
            x_TH = buffer_TH[batch.token_start : batch.token_stop + batch.filler]
        for index in block:
            x_TH = self.model.backbone.layers[index](x_TH, batch.runs)
        if block.stop < self.model.shape.layers:
            buffer_TH[batch.tokens] = x_TH[: batch.num_tokens]
        logits_BC: Tensor = self.model.exits[str(block.stop)](x_TH, batch.runs)
        return logits_BC

    def _compact(self, buffer_TH: Tensor, batches: list[MicroBatch], lengths: IntArray, stays: IntArray) -> None:
        """Move the survivors' tokens to the front of the buffer, order kept. Writing never overtakes reading."""
        write = 0
        for batch in batches:
            keep = np.flatnonzero(np.repeat(stays[batch.rows], lengths[batch.rows]))
            if len(keep) == batch.num_tokens and write == batch.token_start:
                write += batch.num_tokens  # nobody left so far: it lies where it should
                continue
            index = torch.from_numpy(keep).to(self.device)
            buffer_TH[write : write + len(keep)] = buffer_TH[batch.tokens].index_select(0, index)
            write += len(keep)


def all_exits(
    model: EarlyExitModel, rows: TokenRows, token_budget: int = 2048
) -> Iterator[tuple[IntArray, dict[int, Tensor]]]:
    """Run rows through every exit, without re-packing: yields (row numbers, exit layer -> logits [B, C]) by micro-batch.

    The model's gradient mode is the caller's. For calibration, evaluation and training on frozen features.
    """
    device = next(model.parameters()).device
    order = sort_by_length(rows.lengths)
    for part in cut_by_tokens(rows.lengths[order], token_budget):
        members = rows.take(order[part])
        filler = -len(members.token_ids) % tile_size(token_budget)
        yield order[part], model(pack(members, runs_of(members.lengths), filler, device))
