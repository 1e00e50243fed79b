"""A lane: runs rows through the model layer by layer, on one CPU thread or one GPU, with memory of its own.

It works *layer-major*. All rows are sorted by length into one token buffer; a layer runs over all of them in micro-batches of
a fixed token budget; the exit head judges every row; rows that leave are written down, and the next layer gathers the
survivors into micro-batches that are as full as the first ones. So the matrices stay large however few rows are left, and
FLOPs saved become time saved.

*First-token-first*: a pooled head reads one token. So an exit layer is run for the first tokens only, which takes no keys and
values of the other tokens (see `attend_from_first`), the head decides, and the layer is run for the survivors alone. The
answers are the same, and a row that leaves pays next to nothing for its exit layer.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.backbone import PackedTokens
from models.criteria import may_exit, normalised_entropy
from models.early_exit import EarlyExitModel
from models.heads import PooledHead
from models.runs import Run
from pipeline.packing import MicroBatch, micro_batches, runs_of, tile_size
from pipeline.rows import IntArray, TokenRows

FIRST_TOKEN_TILE = 64
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
    first_tokens: int
    """Rows whose first tokens are worked on at once."""
    first_token_first: bool


class Lane:
    """Runs groups of rows, one after the other. Lanes share the model, which they only read."""

    def __init__(self, model: EarlyExitModel, config: LaneConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.model, self.config, self.device, self.dtype = model, config, device, dtype
        self._held = torch.empty(0, dtype=dtype, device=device)

    def run(self, rows: TokenRows, active: IntArray, results: Results) -> int:
        """Run the rows numbered `active` (sorted by length) until all have left; return the filler tokens computed."""
        group = rows.take(active)
        lengths, done, filler = group.lengths, 0, 0
        buffer_TH = self._buffer(len(group.token_ids))

        def embed(batch: MicroBatch) -> Tensor:
            members = group.take(np.arange(batch.row_start, batch.row_stop))
            embedded: Tensor = self.model.backbone.embeddings(pack(members, batch.runs, batch.filler, self.device))
            return embedded

        load: Callable[[MicroBatch], Tensor] = embed
        for exit_layer in self.config.exits:
            head = self.model.exits[str(exit_layer)]
            if isinstance(head, PooledHead) and self.config.first_token_first:
                filler += self._run_layers(range(done, exit_layer - 1), load, lengths, buffer_TH)
                logits = self._judge_first_tokens(exit_layer, head, lengths, buffer_TH)
                done = exit_layer - 1
            else:
                judged: list[Tensor] = []
                filler += self._run_layers(range(done, exit_layer), load, lengths, buffer_TH, head, judged)
                logits = torch.cat(judged)
                done = exit_layer
            stays = ~self._decide(exit_layer, logits, active, results)
            if not stays.any():
                break
            load = self._loader(buffer_TH, lengths, stays)
            active, lengths = active[stays], lengths[stays]
        return filler

    def _buffer(self, tokens: int) -> Tensor:
        """Return [tokens and room for filler, H]: the same memory at every call, since fresh memory costs page faults."""
        needed, hidden = tokens + tile_size(self.config.token_budget), self.model.shape.hidden
        if len(self._held) < needed:
            # The old memory goes first, or both would be held at once; an eighth more, or it would grow at every call.
            self._held = torch.empty(0)
            self._held = torch.zeros(needed + needed // 8, hidden, dtype=self.dtype, device=self.device)
        return self._held[:needed]

    def _run_layers(
        self,
        layers: range,
        load: Callable[[MicroBatch], Tensor],
        lengths: IntArray,
        buffer_TH: Tensor,
        head: nn.Module | None = None,
        judged: list[Tensor] | None = None,
    ) -> int:
        """Load rows, run whole layers over them and leave them one after the other in the buffer; return the filler computed.

        What is written never overtakes what is still to be loaded. With a head, its logits [B, C] are appended to `judged`.
        """
        filler = 0
        for batch in micro_batches(lengths, self.config.token_budget):
            x_TH = load(batch)
            for index in layers:
                x_TH = self.model.backbone.layers[index](x_TH, batch.runs)
            buffer_TH[batch.tokens] = x_TH[: batch.num_tokens]
            if head is not None and judged is not None:
                judged.append(head(x_TH, batch.runs))
            filler += batch.filler * len(layers)
        return filler

    def _loader(
        self, buffer_TH: Tensor, lengths: IntArray, stays: npt.NDArray[np.bool_]
    ) -> Callable[[MicroBatch], Tensor]:
        """Return what gathers a micro-batch of the rows that stay; its filler may be any tokens."""
        if stays.all():
            return lambda batch: buffer_TH[batch.tokens_and_filler]
        places = np.pad(np.flatnonzero(np.repeat(stays, lengths)), (0, tile_size(self.config.token_budget)))
        places_T = torch.from_numpy(places).to(self.device)
        return lambda batch: buffer_TH.index_select(0, places_T[batch.tokens_and_filler])

    def _judge_first_tokens(self, exit_layer: int, head: PooledHead, lengths: IntArray, buffer_TH: Tensor) -> Tensor:
        """Run the exit layer for first tokens only, and the head on them: logits [B, C]. The buffer stays as it is."""
        layer, logits, token = self.model.backbone.layer(exit_layer), [], 0
        for start in range(0, len(lengths), self.config.first_tokens):
            part = lengths[start : start + self.config.first_tokens]
            tokens = int(part.sum())
            tile = -len(part) % FIRST_TOKEN_TILE
            first_BH = layer.first_tokens_only(buffer_TH[token : token + tokens], runs_of(part), filler=tile)
            logits.append(head.judge(first_BH)[: len(part)])
            token += tokens
        return torch.cat(logits)

    def _decide(self, exit_layer: int, logits: Tensor, active: IntArray, results: Results) -> npt.NDArray[np.bool_]:
        """Write down who leaves, and return them: [B]."""
        uncertainty = normalised_entropy(logits)
        if exit_layer == self.model.shape.layers:
            leaves = torch.ones(len(active), dtype=torch.bool)
        elif results.exit_plan is not None:
            leaves = torch.from_numpy(results.exit_plan[active] <= exit_layer)
        else:
            leaves = may_exit(uncertainty, self.config.speed).cpu()  # the one synchronisation of a block of layers
        results.record(active[leaves.numpy()], exit_layer, logits[leaves], uncertainty[leaves])
        decided: npt.NDArray[np.bool_] = leaves.numpy()
        return decided
