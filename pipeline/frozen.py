"""A frozen backbone that hands every exit its input: the engine's layers and lanes, without re-packing, for training heads."""

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.attention import first_tokens
from models.early_exit import EarlyExitModel
from models.fused import can_fuse, fuse
from models.heads import AttentionHead, PooledHead
from models.precision import DTYPES, set_precision
from models.runs import Run
from pipeline.engine import default_token_budget
from pipeline.lane import pack
from pipeline.packing import cut_by_tokens, micro_batches, runs_of
from pipeline.rows import IntArray, TokenRows


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """What heads read of B rows, T tokens."""

    by_layer: dict[int, Tensor]
    """Branch layer -> [B, H], the first tokens, for pooled heads; [T, H], all tokens, for attention heads."""
    runs: tuple[Run, ...]
    teacher: Tensor | None
    """[B, C]: logits of the last exit, if they were asked for."""


class FrozenBackbone:
    """A copy of a model's backbone and last head in the engine's precision: heads learn on what they will judge."""

    def __init__(self, model: EarlyExitModel, *, with_last: bool) -> None:
        """On CPUs it takes as many lanes as torch has threads; `with_last` asks for the last exit's logits."""
        self.device = next(model.parameters()).device
        self.with_last = with_last
        self.budget = default_token_budget(self.device, model.shape.hidden)
        self.model = copy.deepcopy(model)
        dtype = DTYPES[set_precision(self.model, "auto", self.device, self.budget)]
        if can_fuse(self.device, dtype):
            for number in range(1, model.shape.layers + 1):
                fuse(self.model.backbone.layer(number), self.budget)
        self.dtype = dtype
        self.layers = model.shape.layers
        self.branches = [layer for layer in model.exit_layers if layer != self.layers]
        self.pooled = model.branch_head == "pooled"
        self.threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="lane")

    def run(self, rows: TokenRows) -> States:
        """Run rows, which stand in order of length, through all layers that somebody reads."""
        width = self.model.shape.hidden
        places = len(rows) if self.pooled else len(rows.token_ids)
        by_layer = {layer: torch.empty(places, width, dtype=self.dtype, device=self.device) for layer in self.branches}
        classes = self.model.shape.classes
        teacher = torch.empty(len(rows), classes, dtype=self.dtype, device=self.device) if self.with_last else None
        share = max(self.budget // 2, -(-len(rows.token_ids) // self.threads))
        parts = [np.arange(part.start, part.stop) for part in cut_by_tokens(rows.lengths, share)]
        work = [self._pool.submit(self._run_part, rows, part, by_layer, teacher) for part in parts]
        try:
            for part_done in work:
                part_done.result()
        finally:
            if self.device.type == "cpu":
                torch.set_num_threads(self.threads)
        return States(by_layer=by_layer, runs=runs_of(rows.lengths), teacher=teacher)

    def features(self, head: PooledHead | AttentionHead, states: States, layer: int) -> Tensor:
        """Make a branch head's features, with gradients: [B, W]."""
        if isinstance(head, PooledHead):
            return head.features_of_first(states.by_layer[layer])
        return head.features(states.by_layer[layer], states.runs)

    def _run_part(self, rows: TokenRows, part: IntArray, by_layer: dict[int, Tensor], teacher: Tensor | None) -> None:
        if self.device.type == "cpu":
            torch.set_num_threads(1)
        members, offset = rows.take(part), int(rows.offsets[part[0]])
        with torch.inference_mode():
            for batch in micro_batches(members.lengths, self.budget):
                taken = members.take(np.arange(batch.row_start, batch.row_stop))
                x_TH = self.model.backbone.embeddings(pack(taken, batch.runs, batch.filler, self.device))
                row_start = int(part[0]) + batch.row_start
                row_stop = int(part[0]) + batch.row_stop
                for number in range(1, self.layers):
                    x_TH = self.model.backbone.layer(number)(x_TH, batch.runs)
                    if number not in by_layer:
                        continue
                    if self.pooled:
                        by_layer[number][row_start:row_stop] = first_tokens(x_TH, batch.runs)
                    else:
                        start = offset + batch.token_start
                        by_layer[number][start : start + batch.num_tokens] = x_TH[: batch.num_tokens]
                if teacher is not None:
                    teacher[row_start:row_stop] = self._last(x_TH, batch.runs)

    def _last(self, x_TH: Tensor, runs: tuple[Run, ...]) -> Tensor:
        """Run the last layer and its head; a pooled one reads the first token only."""
        head, layer = self.model.head(self.layers), self.model.backbone.layer(self.layers)
        if isinstance(head, PooledHead):
            features = head.features_of_first(layer.first_tokens_only(x_TH, runs))
        else:
            features = head.features(layer(x_TH, runs), runs)
        logits: Tensor = head.out(features)
        return logits
