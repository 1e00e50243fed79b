"""A frozen backbone that hands every exit its input: the engine's layers and lanes, without re-packing, for training heads."""

import copy
import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.attention import first_tokens
from models.cpu.fused import can_fuse, fuse
from models.early_exit import EarlyExitModel
from models.heads import AttentionHead, PooledHead
from models.length_group import LengthGroup
from models.precision import DTYPES, set_precision
from pipeline.corpus.chunks import Chunk
from pipeline.engine.engine import default_token_budget
from pipeline.engine.pack import pack
from pipeline.engine.packing import length_groups_of, micro_batches, sort_by_length
from pipeline.rows import TokenRows

STANDARD_ROWS = 1000
"""Rows that mean and deviation are taken from, at most."""
FEWEST_ROWS = 32
"""With fewer, many deviations come out near 0, and a head would read nothing but extremes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """What heads read of B rows, T tokens."""

    by_layer: dict[int, Tensor]
    """Branch layer -> [B, H], the first tokens, for pooled heads; [T, H], all tokens, for attention heads."""
    groups: tuple[LengthGroup, ...]
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
        self.layers = model.shape.layers
        self.branches = [layer for layer in model.exit_layers if layer != self.layers]
        self.pooled = model.branch_head == "pooled"
        self.threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="lane")

    def prefetch(self, batches: Iterable[Chunk]) -> Iterator[tuple[Chunk, States]]:
        """Run batches, whose rows stand in order of length, on the lanes, some ahead of the one that is handed out."""
        waiting: deque[tuple[Chunk, Future[States]]] = deque()
        left = iter(batches)
        try:
            if self.device.type == "cpu":
                torch.set_num_threads(1)  # the lanes have the cores; heads take turns with them
            while True:
                for batch in itertools.islice(left, self.threads + 1 - len(waiting)):
                    waiting.append((batch, self._pool.submit(self.run, batch.rows)))
                if not waiting:
                    return
                batch, states = waiting.popleft()
                yield batch, states.result()
        finally:
            if self.device.type == "cpu":
                torch.set_num_threads(self.threads)

    def run(self, rows: TokenRows) -> States:
        """Run rows, which stand in order of length, through all layers that somebody reads."""
        if self.device.type == "cpu":
            torch.set_num_threads(1)
        with torch.no_grad():  # not inference_mode: what heads read with gradients may not come out of that
            return self._run(rows)

    def features(self, head: PooledHead | AttentionHead, states: States, layer: int) -> Tensor:
        """Make a branch head's features, with gradients: [B, W]."""
        if isinstance(head, PooledHead):
            return head.features_of_first(states.by_layer[layer])
        return head.features(states.by_layer[layer], states.groups)

    def _run(self, rows: TokenRows) -> States:
        by_layer: dict[int, list[Tensor]] = {layer: [] for layer in self.branches}
        teacher = []
        for batch in micro_batches(rows.lengths, self.budget):
            members = rows.take(np.arange(batch.row_start, batch.row_stop))
            x_TH = self.model.backbone.embeddings(pack(members, batch.groups, batch.padding, self.device))
            for number in range(1, self.layers):
                x_TH = self.model.backbone.layer(number)(x_TH, batch.groups)
                if number in by_layer:
                    read = first_tokens(x_TH, batch.groups) if self.pooled else x_TH[: batch.num_tokens]
                    by_layer[number].append(read)
            if self.with_last:
                teacher.append(self._last(x_TH, batch.groups))
        states = {layer: torch.cat(parts) for layer, parts in by_layer.items()}
        return States(
            by_layer=states, groups=length_groups_of(rows.lengths), teacher=torch.cat(teacher) if teacher else None
        )

    def _last(self, x_TH: Tensor, groups: tuple[LengthGroup, ...]) -> Tensor:
        """Run the last layer and its head; a pooled one reads the first token only."""
        head, layer = self.model.head(self.layers), self.model.backbone.layer(self.layers)
        if isinstance(head, PooledHead):
            features = head.features_of_first(layer.first_tokens_only(x_TH, groups))
        else:
            features = head.features(layer(x_TH, groups), groups)
        logits: Tensor = head.out(features)
        return logits


def standardize_heads(model: EarlyExitModel, rows: TokenRows) -> None:
    """Give pooled branch heads mean and deviation of what they read of some rows, as their backbone is now.

    The same rows give the same numbers, in every worker and after a restart. Heads that predict values read on as they did:
    they overfit more than they gain (docs/results/papers.md). So do all where there are too few rows to know a deviation by.
    """
    if model.branch_head != "pooled" or model.regression or len(rows) < FEWEST_ROWS:
        return
    some = rows.take(np.unique(np.linspace(0, len(rows) - 1, STANDARD_ROWS).astype(np.int64)))
    backbone = FrozenBackbone(model, with_last=False)
    states = backbone.run(some.take(sort_by_length(some.lengths)))
    for layer in backbone.branches:
        head = model.head(layer)
        assert isinstance(head, PooledHead)
        head.standardize(states.by_layer[layer])
