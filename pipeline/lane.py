"""A lane: runs rows through the model layer by layer, on one CPU thread or one GPU, with memory of its own.

It works *layer-major*. All rows are sorted by length into one token buffer; a layer runs over all of them in micro-batches of
a fixed token budget; the exit head judges every row; rows that leave are written down, the survivors are moved together, and
the next layer runs over them in micro-batches that are as full as the first ones. So the matrices stay large however few rows
are left, and FLOPs saved become time saved.

*First-token-first*: a pooled head reads one token. So at an exit layer keys and values are computed for all tokens, the rest of
the layer for the first tokens only; then the head decides, and the layer is finished for the survivors alone. The answers
are the same, and a row that leaves pays a sixth of its exit layer.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbone import EncoderLayer, PackedTokens, first_tokens
from models.criteria import may_exit, normalised_entropy
from models.early_exit import EarlyExitModel
from models.heads import PooledHead
from models.runs import Run
from pipeline.packing import MicroBatch, cut_by_tokens, micro_batches, tile_size
from pipeline.rows import IntArray, TokenRows

FIRST_TOKEN_TILE = 256
"""Matrices of first tokens have a multiple of this many rows, so that few shapes occur."""


def pack(rows: TokenRows, runs: tuple[Run, ...], filler: int, device: torch.device) -> PackedTokens:
    """Move rows that are in packed order to the device; `filler` zero ids follow the last row."""
    ids = np.pad(rows.token_ids, (0, filler)).astype(np.int64)
    segments = rows.segments.astype(np.int64)
    return PackedTokens(
        token_ids=torch.from_numpy(ids).to(device), segments=torch.from_numpy(segments).to(device), runs=runs
    )


@dataclass(slots=True)
class Results:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneConfig:
    """What a lane needs to know beside the model."""

    exits: list[int]
    """Layers after which rows are looked at, ascending; the last layer included."""
    speed: float
    token_budget: int
    chunk_tokens: int
    """Tokens that an exit decides on at once."""
    first_token_first: bool


class Lane:
    """Runs groups of rows, one after the other. Lanes share the model, which they only read."""

    def __init__(self, model: EarlyExitModel, config: LaneConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.model, self.config, self.device = model, config, device
        self._workspace = _Workspace(tile_size(config.token_budget), dtype, device)

    def run(self, rows: TokenRows, active: IntArray, results: Results) -> int:
        """Run the rows numbered `active` (sorted by length) until all have left; return the filler tokens computed."""
        group = rows.take(active)
        lengths, filler = group.lengths, 0
        buffer_TH = self._workspace.take("hidden", int(lengths.sum()), self.model.shape.hidden)
        done = 0
        for exit_layer in self.config.exits:
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
        for batch in micro_batches(lengths, self.config.token_budget):
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
        self, exit_layer: int, buffer_TH: Tensor, active: IntArray, lengths: IntArray, results: Results
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
        for part in cut_by_tokens(lengths, self.config.chunk_tokens):
            chunk_lengths = lengths[part]
            tokens = int(chunk_lengths.sum())
            batches = list(micro_batches(chunk_lengths, self.config.token_budget))
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
                survivors = list(micro_batches(chunk_lengths[stays], self.config.token_budget))
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
        return torch.from_numpy(np.pad(keep, (0, tile_size(self.config.token_budget)))).to(self.device)


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
