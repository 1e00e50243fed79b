"""The engine: token ids in, predictions out. It knows nothing of text, Arrow or Ray.

It works *layer-major*. All rows of a call are sorted by length into one token buffer; a layer runs over all of them in
micro-batches of a fixed token budget; the exit head judges every row; rows that leave are written down, the survivors are
moved together, and the next layer runs over them in micro-batches that are as full as the first ones. So the matrices stay
large however few rows are left, and FLOPs saved become time saved.

*First-token-first*: a pooled head reads one token. So at an exit layer keys and values are computed for all tokens, the rest of
the layer for the first tokens only; then the head decides, and the layer is finished for the survivors alone. The answers
are the same, and a row that leaves pays a sixth of its exit layer.

Every call returns exactly its own rows, in their order, and keeps no state: a repeated call gives the same answer.

Memory: two bytes (bf16) x hidden x (`resident_tokens` + 5 x tokens of a chunk), plus about 8 x hidden x `token_budget` values.
Larger calls are worked through in groups of `resident_tokens`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbone import EncoderLayer, PackedTokens, first_tokens
from models.criteria import may_exit, normalised_entropy
from models.early_exit import EarlyExitModel
from models.fused import can_fuse, fuse_linears
from models.heads import PooledHead
from models.runs import Run
from pipeline.config import EngineConfig
from pipeline.packing import MicroBatch, cut_by_tokens, micro_batches, runs_of, sort_by_length, tile_size
from pipeline.rows import IntArray, Predictions, TokenRows

CHUNK_BUDGETS = 16
"""Micro-batches that an exit decides on at once, on CPUs: some hundred first tokens make a dense matrix, and keys and values of
this many tokens stay small. On a GPU a chunk is all that is resident, since every decision waits for the device."""
FIRST_TOKEN_TILE = 256
"""Matrices of first tokens have a multiple of this many rows, so that few shapes occur."""
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
    exit_plan: IntArray | None

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
        if can_fuse(self.device, self.dtype):
            fuse_linears(self.model.backbone.layers, self.token_budget)
        self.chunk_tokens = config.resident_tokens if self.device.type == "cuda" else CHUNK_BUDGETS * self.token_budget
        self._workspace = _Workspace(tile_size(self.token_budget), self.dtype, self.device)
        self._exits = self._plan_exits()
        self.flops = self.model.flops.with_heads_at(self._exits)
        """Counts what this engine computes: heads that it never looks at cost nothing."""

    @torch.inference_mode()
    def run(self, rows: TokenRows, exit_plan: IntArray | None = None) -> Predictions:
        """Classify rows; the answer has exactly these rows, in this order.

        `exit_plan` [B] forces the layer at which each row leaves, in place of the criterion: for benchmarks, whose speed
        should not depend on the weights.
        """
        count = len(rows)
        results = _Results(
            probabilities=torch.zeros(count, self.model.shape.classes),
            exit_layers=torch.zeros(count, dtype=torch.int16),
            uncertainty=torch.zeros(count),
            exit_plan=exit_plan,
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

    def _plan_exits(self) -> list[int]:
        """Layers after which rows are looked at, the last one included; without exits only that one."""
        last = self.model.shape.layers
        if self.config.speed == 0.0:
            return [last]
        return [layer for layer in self.model.exit_layers if layer % self.config.exit_every == 0 or layer == last]

    def _run_group(self, rows: TokenRows, active: IntArray, results: _Results) -> int:
        """Run the rows numbered `active` (sorted by length) until all have left; return the filler tokens computed."""
        group = rows.take(active)
        lengths, filler = group.lengths, 0
        buffer_TH = self._workspace.take("hidden", int(lengths.sum()), self.model.shape.hidden)
        done = 0
        for exit_layer in self._exits:
            filler += self._run_layers(range(done, exit_layer - 1), buffer_TH, lengths, group if done == 0 else None)
            stays, more = self._run_exit(exit_layer, buffer_TH, active, lengths, results)
            active, lengths, filler, done = active[stays], lengths[stays], filler + more, exit_layer
            if len(active) == 0:
                break
        return filler

    def _run_layers(self, layers: range, buffer_TH: Tensor, lengths: IntArray, group: TokenRows | None) -> int:
        """Run whole layers over all tokens in place, after embedding `group` if given; return the filler computed."""
        if not layers and group is None:
            return 0
        filler = 0
        for batch in micro_batches(lengths, self.token_budget):
            if group is not None:
                members = group.take(np.arange(batch.row_start, batch.row_stop))
                x_TH = self.model.backbone.embeddings(pack(members, batch.runs, batch.filler, self.device))
            else:
                x_TH = buffer_TH[batch.tokens_and_filler]
            for index in layers:
                x_TH = self.model.backbone.layers[index](x_TH, batch.runs)
            buffer_TH[batch.tokens] = x_TH[: batch.num_tokens]
            filler += batch.filler * len(layers)
        return filler

    def _run_exit(
        self, exit_layer: int, buffer_TH: Tensor, active: IntArray, lengths: IntArray, results: _Results
    ) -> tuple[npt.NDArray[np.bool_], int]:
        """Run an exit layer: write down who leaves, move the survivors together in the buffer with the layer done.

        Returns who stays [B], and the filler tokens computed. Works in chunks of many micro-batches, so that first tokens
        make dense matrices too; what is written never overtakes what is still to be read.
        """
        layer, head = self.model.backbone.layer(exit_layer), self.model.exits[str(exit_layer)]
        step: _FirstTokenFirst | _AllTokens = _AllTokens(layer, head, self._workspace)
        if isinstance(head, PooledHead) and self.config.first_token_first:
            step = _FirstTokenFirst(layer, head, self._workspace)
        last = exit_layer == self.model.shape.layers
        stays_B = np.zeros(len(active), np.bool_)
        read = write = filler = 0
        for part in cut_by_tokens(lengths, self.chunk_tokens):
            chunk_lengths = lengths[part]
            tokens = int(chunk_lengths.sum())
            batches = list(micro_batches(chunk_lengths, self.token_budget))
            x_TH = buffer_TH[read : read + tokens + batches[-1].filler]
            logits = step.judge(x_TH, batches, tokens)
            uncertainty = normalised_entropy(logits)
            if last:
                leaves = torch.ones(len(chunk_lengths), dtype=torch.bool)
            elif results.exit_plan is not None:
                leaves = torch.from_numpy(results.exit_plan[active[part]] <= exit_layer)
            else:
                leaves = may_exit(uncertainty, self.config.speed).cpu()  # the one synchronisation of a chunk
            stays = ~leaves.numpy()
            results.record(active[part][~stays], exit_layer, logits[leaves], uncertainty[leaves])
            if stays.any():
                survivors = list(micro_batches(chunk_lengths[stays], self.token_budget))
                keep = None if stays.all() else self._token_index(chunk_lengths, stays)
                step.finish(x_TH, keep, survivors, buffer_TH[write:])
                write += survivors[-1].token_stop
                filler += sum(batch.filler for batch in survivors)
            stays_B[part] = stays
            read += tokens
        return stays_B, filler

    def _token_index(self, lengths: IntArray, stays: npt.NDArray[np.bool_]) -> Tensor:
        """Places of the survivors' tokens, and behind them any places for filler."""
        keep = np.flatnonzero(np.repeat(stays, lengths))
        return torch.from_numpy(np.pad(keep, (0, tile_size(self.token_budget)))).to(self.device)


class _Workspace:
    """Named memory for tokens that is made once and used again: fresh memory costs page faults, more than the arithmetic on it.

    Behind the tokens there is always room for the last micro-batch's filler. Nothing in it is ever NaN.
    """

    def __init__(self, margin: int, dtype: torch.dtype, device: torch.device) -> None:
        self.margin, self.dtype, self.device = margin, dtype, device
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, tokens: int, width: int) -> Tensor:
        """Return [tokens + margin, width]; what was taken under this name before is overwritten."""
        needed = (tokens + self.margin) * width
        if name not in self._held or self._held[name].numel() < needed:
            # The old memory goes first, or both would be held at once; an eighth more, or it would grow at every call.
            self._held.pop(name, None)
            self._held[name] = torch.zeros(needed + needed // 8, dtype=self.dtype, device=self.device)
        return self._held[name][:needed].view(tokens + self.margin, width)

    def gather(self, name: str, source_TW: Tensor, places: Tensor) -> Tensor:
        """Return the rows of the source at these places, which end in a margin of any places for filler."""
        out = self.take(name, len(places) - self.margin, source_TW.shape[1])
        return torch.index_select(source_TW, 0, places, out=out)


class _FirstTokenFirst:
    """An exit layer with a pooled head: decide on the first tokens, finish the layer for the survivors."""

    def __init__(self, layer: EncoderLayer, head: PooledHead, workspace: _Workspace) -> None:
        self.layer, self.head, self.workspace = layer, head, workspace

    def judge(self, x_TH: Tensor, batches: list[MicroBatch], tokens: int) -> Tensor:
        """Return the head's logits [B, C]; keeps keys and values for `finish`."""
        self.kv_T2H = self.workspace.take("keys and values", tokens, 2 * x_TH.shape[1])
        for batch in batches:
            self.kv_T2H[batch.tokens_and_filler] = self.layer.keys_and_values(x_TH[batch.tokens_and_filler])
        runs = tuple(run for batch in batches for run in batch.runs)
        first_BH = first_tokens(x_TH, runs)
        padded = F.pad(first_BH, (0, 0, 0, -len(first_BH) % FIRST_TOKEN_TILE))
        y_BH = self.layer.finish(padded, self.kv_T2H, runs, first_only=True)
        return self.head.judge(y_BH)[: len(first_BH)]

    def finish(self, x_TH: Tensor, keep: Tensor | None, survivors: list[MicroBatch], out_TH: Tensor) -> None:
        """Write the survivors' tokens, one after the other, with the layer done."""
        kv_T2H = self.kv_T2H
        if keep is not None:
            x_TH = self.workspace.gather("survivors", x_TH, keep)
            kv_T2H = self.workspace.gather("survivors' keys and values", kv_T2H, keep)
        for batch in survivors:
            y_TH = self.layer.finish(x_TH[batch.tokens_and_filler], kv_T2H[batch.tokens_and_filler], batch.runs)
            out_TH[batch.tokens] = y_TH[: batch.num_tokens]


class _AllTokens:
    """An exit layer whose head reads every token: the layer first, then the head, then the survivors move together."""

    def __init__(self, layer: EncoderLayer, head: nn.Module, workspace: _Workspace) -> None:
        self.layer, self.head, self.workspace = layer, head, workspace

    def judge(self, x_TH: Tensor, batches: list[MicroBatch], tokens: int) -> Tensor:
        """Return the head's logits [B, C]; keeps the layer's output for `finish`."""
        self.y_TH = self.workspace.take("layer done", tokens, x_TH.shape[1])
        logits = []
        for batch in batches:
            done = self.layer(x_TH[batch.tokens_and_filler], batch.runs)
            self.y_TH[batch.tokens] = done[: batch.num_tokens]
            logits.append(self.head(done, batch.runs))
        return torch.cat(logits)

    def finish(self, _x_TH: Tensor, keep: Tensor | None, survivors: list[MicroBatch], out_TH: Tensor) -> None:
        """Write the survivors' tokens, one after the other."""
        tokens = survivors[-1].token_stop
        if keep is None:
            out_TH[:tokens] = self.y_TH[:tokens]
        else:
            torch.index_select(self.y_TH, 0, keep[:tokens], out=out_TH[:tokens])


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
