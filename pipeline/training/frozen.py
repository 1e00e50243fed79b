"""A frozen backbone that computes the input of every exit, for training heads: a loaded model, run without re-packing."""

import copy
import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.attention import first_tokens
from models.early_exit import EarlyExitModel
from models.heads import AttentionHead, PooledHead
from models.length_group import LengthGroup
from pipeline.corpus.chunks import Chunk
from pipeline.engine.config import EngineConfig
from pipeline.engine.loaded import LoadedModel
from pipeline.engine.pack import pack
from pipeline.engine.packing import length_groups_of, micro_batches, sort_by_length
from pipeline.rows import TokenRows

STANDARD_ROWS = 1000
"""Largest number of rows that mean and deviation are computed from."""
FEWEST_ROWS = 32
"""Least number of them: with fewer, many deviations are near 0, and a head would read nothing but extremes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """Inputs of all heads for B rows of T tokens."""

    by_layer: dict[int, Tensor]
    """Branch layer -> its first tokens [B, H] for pooled heads, all its tokens [T, H] for attention heads."""
    groups: tuple[LengthGroup, ...]
    """Lengths of the rows."""
    teacher: Tensor | None
    """[B, C]: logits of the last exit, if the backbone was made `with_last`."""


class FrozenBackbone:
    """A copy of a model in the engine's precision, so that heads learn from the hidden states that they will judge."""

    def __init__(self, model: EarlyExitModel, *, with_last: bool) -> None:
        """Load a copy of the model; `with_last` adds the last exit's logits to what is computed."""
        device = next(model.parameters()).device
        self.loaded = LoadedModel(copy.deepcopy(model), EngineConfig(), device)
        self.with_last = with_last
        self.layers = model.shape.layers
        self.branches = [layer for layer in model.exit_layers if layer != self.layers]
        self.pooled = model.branch_head == "pooled"

    def prefetch(self, batches: Iterable[Chunk]) -> Iterator[tuple[Chunk, States]]:
        """Run batches, whose rows are in order of length, on the workers, some ahead of the one that is yielded."""
        waiting: deque[tuple[Chunk, Future[States]]] = deque()
        left = iter(batches)
        with self.loaded.single_threaded():  # the workers have the cores; the heads' steps take turns with them
            while True:
                for batch in itertools.islice(left, self.loaded.threads + 1 - len(waiting)):
                    waiting.append((batch, self.loaded.pool.submit(self._run, batch.rows)))
                if not waiting:
                    return
                batch, states = waiting.popleft()
                yield batch, states.result()

    def run(self, rows: TokenRows) -> States:
        """Run rows, which are in order of length, through all layers that a head reads."""
        with self.loaded.single_threaded():
            return self._run(rows)

    def features(self, head: PooledHead | AttentionHead, states: States, layer: int) -> Tensor:
        """Compute a branch head's features, with gradients: [B, F]."""
        if head.reads_first_token:
            return head.features_of_first(states.by_layer[layer])
        return head.features(states.by_layer[layer], states.groups)

    @torch.no_grad()  # not inference_mode: what heads read with gradients may not come out of that
    def _run(self, rows: TokenRows) -> States:
        backbone = self.loaded.model.backbone
        by_layer: dict[int, list[Tensor]] = {layer: [] for layer in self.branches}
        teacher = []
        for batch in micro_batches(rows.lengths, self.loaded.token_budget):
            members = rows.take(np.arange(batch.row_start, batch.row_stop))
            x_TH = backbone.embeddings(pack(members, batch.groups, batch.padding, self.loaded.device))
            for number in range(1, self.layers):
                x_TH = backbone.layer(number)(x_TH, batch.groups)
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
        """Run the last layer and its head, for first tokens alone if it reads no others: [B, C]."""
        model = self.loaded.model
        head, layer = model.head(self.layers), model.backbone.layer(self.layers)
        if head.reads_first_token:
            features = head.features_of_first(layer.first_tokens_only(x_TH, groups))
        else:
            features = head.features(layer(x_TH, groups), groups)
        logits: Tensor = head.out(features)
        return logits


def standardize_heads(model: EarlyExitModel, rows: TokenRows) -> None:
    """Set mean and deviation of pooled branch heads to those of their inputs for some rows, with the backbone as it is now.

    The same rows give the same numbers, in every worker and after a restart. Heads that predict values are left as they are:
    they overfit more than they gain (docs/results/papers/README.md). So are all where there are too few rows to
    estimate a deviation.
    """
    if model.branch_head != "pooled" or model.regression or len(rows) < FEWEST_ROWS:
        return
    some = rows.take(np.unique(np.linspace(0, len(rows) - 1, STANDARD_ROWS).astype(np.int64)))
    backbone = FrozenBackbone(model, with_last=False)
    states = backbone.run(some.take(sort_by_length(some.lengths)))
    backbone.loaded.close()
    for layer in backbone.branches:
        head = model.head(layer)
        assert isinstance(head, PooledHead)
        head.standardize(states.by_layer[layer])
