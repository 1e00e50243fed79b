"""A frozen backbone that computes the input of every exit, for training heads: a loaded model, run without re-packing.

What heads read of a row is small, if they are pooled: the first token after every layer. So it is computed for the rows of many
training batches in one call, in micro-batches as large as the device likes them, and the heads' steps pick their rows from it.
`FrozenBackbone.encode` is all of a call that depends on the device.
"""

import copy
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from torch import Tensor

from models.attention import first_tokens
from models.early_exit import EarlyExitModel
from models.gpu.dispatch import Kernels, kernels_for
from models.gpu.encoder import head_features, hidden_states, run_layer, run_layer_for_first_tokens
from models.gpu.rows import RaggedRows, send
from models.heads import PooledHead
from models.layers import to_device
from models.length_group import LengthGroup
from pipeline.corpus.chunks import Chunk
from pipeline.engine.config import EngineConfig
from pipeline.engine.loaded import LoadedModel
from pipeline.engine.memory import run_within_memory
from pipeline.engine.pack import pack
from pipeline.engine.packing import cut_by_tokens, micro_batches, sort_by_length
from pipeline.rows import IntArray, TokenRows, offsets_of, spans
from pipeline.training.process_group import ProcessGroup

STATE_BYTES = {"cpu": 16 << 20, "cuda": 1 << 30}
"""Hidden states of a call, unless one training batch has more: on CPUs some thousand rows of pooled heads, since the steps that
follow the last call of a chunk have the cores for themselves and leave one idle; on a GPU all rows of a chunk."""
CALLS_AHEAD = 2
"""Calls under way beside the one whose batches are trained on: the states of three are in memory."""
STANDARD_ROWS = 1000
"""Largest number of rows that mean and deviation are computed from."""
FEWEST_ROWS = 32
"""Least number of them: with fewer, many deviations are near 0, and a head would read nothing but extremes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """Inputs of all heads for B rows of T tokens, on the device."""

    inputs: Tensor
    """After E branch layers, lowest first: the first tokens [E, B, H] for pooled heads, all tokens [E, T, H] for attention."""
    lengths: IntArray
    """Tokens of the rows: [B]."""
    teacher: Tensor | None
    """[B, C], fp32: logits of the last exit, if the backbone was made `with_last`."""

    @classmethod
    def join(cls, parts: list[Self]) -> Self:
        """Put the states of rows one after the other."""
        if len(parts) == 1:
            return parts[0]
        teachers = [part.teacher for part in parts if part.teacher is not None]
        return cls(
            inputs=torch.cat([part.inputs for part in parts], dim=1),
            lengths=np.concatenate([part.lengths for part in parts]),
            teacher=torch.cat(teachers) if teachers else None,
        )

    def take(self, rows: IntArray, *, by_token: bool) -> Self:
        """Return the states of these rows; `by_token` if inputs are of all tokens."""
        index = to_device(rows, self.inputs.device)
        entries = index
        if by_token:
            starts = offsets_of(self.lengths)[:-1]
            entries = to_device(spans(starts[rows], self.lengths[rows]), index.device)
        return type(self)(
            inputs=self.inputs.index_select(1, entries),
            lengths=self.lengths[rows],
            teacher=None if self.teacher is None else self.teacher.index_select(0, index),
        )


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
        """Yield batches with their states, which are computed for many batches at once, some calls ahead of what is yielded."""
        waiting: deque[tuple[list[Chunk], IntArray, list[Future[States]]]] = deque()
        with self.loaded.single_threaded():  # the workers have the cores; the heads' steps take turns with them
            for call in self._calls(batches):
                waiting.append((call, *self._start(TokenRows.join([batch.rows for batch in call]))))
                if len(waiting) > CALLS_AHEAD:
                    yield from self._deal(*waiting.popleft())
            while waiting:
                yield from self._deal(*waiting.popleft())

    def run(self, rows: TokenRows) -> States:
        """Compute the states of rows, which are in order of length."""
        with self.loaded.single_threaded():
            return self.encode(rows)

    @torch.no_grad()  # not inference_mode: what heads read with gradients may not come out of that
    def encode(self, rows: TokenRows) -> States:
        """Compute the states of rows, which are in order of length, in micro-batches of the loaded model's token budget.

        On a GPU these are all rows of a call, and micro-batches get smaller where memory runs out; on CPUs a worker's part.
        Raises MemoryError if a row does not fit even alone.
        """
        loaded, entries = self.loaded, len(rows) if self.pooled else len(rows.token_ids)
        size = (len(self.branches), entries, loaded.model.shape.hidden)
        classes = loaded.model.shape.classes
        states = States(
            inputs=torch.empty(size, dtype=loaded.dtype, device=loaded.device),
            lengths=rows.lengths,
            teacher=torch.empty(len(rows), classes, device=loaded.device) if self.with_last else None,
        )
        encode = self._encode_on_gpu if loaded.device.type == "cuda" else self._encode_on_cpu
        encode(rows, states)
        return states

    def _encode_on_cpu(self, rows: TokenRows, states: States) -> None:
        """Write what heads read after every layer, and the last exit's logits if they are wanted."""
        backbone = self.loaded.model.backbone
        for batch in micro_batches(rows.lengths, self.loaded.token_budget):
            part = slice(batch.row_start, batch.row_stop)
            members = rows.slice(range(part.start, part.stop))
            inputs = states.inputs[:, self._entries(rows, part)]
            x_TH = backbone.embeddings(pack(members, batch.groups, batch.padding, self.loaded.device))
            for number in range(1, self.layers):
                x_TH = backbone.layer(number)(x_TH, batch.groups)
                if number in self.branches:
                    read = first_tokens(x_TH, batch.groups) if self.pooled else x_TH[: batch.num_tokens]
                    inputs[self.branches.index(number)] = read
            if states.teacher is not None:
                states.teacher[part] = self._last(x_TH, batch.groups)

    def _encode_on_gpu(self, rows: TokenRows, states: States) -> None:
        """Do what `_encode_on_cpu` does by the operators of the engine's runner for GPUs, without padding."""
        encode = partial(self._encode_part_on_gpu, rows, states)
        run_within_memory(encode, torch.cuda.empty_cache, rows.lengths, self.loaded.token_budget)

    def _encode_part_on_gpu(self, rows: TokenRows, states: States, part: slice) -> int:
        device, kernels = self.loaded.device, kernels_for(self.loaded.device)
        members, inputs = rows.slice(range(part.start, part.stop)), states.inputs[:, self._entries(rows, part)]
        ids_T, segments_B = send(members.token_ids, device), send(members.segments, device)
        ragged = RaggedRows.of(members.lengths, device)
        for number, _, x_TH in hidden_states(self.loaded.model.backbone, ids_T, segments_B, ragged, kernels):
            if number in self.branches:
                read = x_TH.index_select(0, ragged.starts) if self.pooled else x_TH
                inputs[self.branches.index(number)] = read
            if number == self.layers - 1:
                break
        if states.teacher is not None:
            states.teacher[part] = self._last_on_gpu(x_TH, ragged, kernels)
        return 0

    def _entries(self, rows: TokenRows, part: slice) -> slice:
        """Return which entries of the inputs are of these rows: rows, or their tokens."""
        return part if self.pooled else slice(int(rows.offsets[part.start]), int(rows.offsets[part.stop]))

    def _calls(self, batches: Iterable[Chunk]) -> Iterator[list[Chunk]]:
        """Put neighbouring batches together while their states take no more than STATE_BYTES, but at least one."""
        call: list[Chunk] = []
        size, limit = 0, STATE_BYTES[self.loaded.device.type]
        for batch in batches:
            entries = len(batch) if self.pooled else len(batch.rows.token_ids)
            more = entries * len(self.branches) * self.loaded.model.shape.hidden * self.loaded.dtype.itemsize
            if call and size + more > limit:
                yield call
                call, size = [], 0
            call.append(batch)
            size += more
        if call:
            yield call

    def _start(self, rows: TokenRows) -> tuple[IntArray, list[Future[States]]]:
        """Let the workers encode rows, each some micro-batches; return the order by length in which they do, and the parts."""
        order = sort_by_length(rows.lengths)
        rows = rows.take(order)
        edges = [0, *(part.stop for part in cut_by_tokens(rows.lengths, self.loaded.token_budget))]
        ends = np.unique(np.arange(self.loaded.threads + 1) * (len(edges) - 1) // self.loaded.threads)
        parts = [rows.slice(range(edges[first], edges[end])) for first, end in pairwise(ends.tolist())]
        return order, [self.loaded.pool.submit(self.encode, part) for part in parts]

    def _deal(self, call: list[Chunk], order: IntArray, parts: list[Future[States]]) -> Iterator[tuple[Chunk, States]]:
        """Yield the batches of a call with the states of their rows."""
        states = States.join([part.result() for part in parts])
        if len(call) == 1:  # its rows are in order of length already
            yield call[0], states
            return
        positions = np.argsort(order)
        for batch, end in zip(call, np.cumsum([len(batch) for batch in call]), strict=True):
            yield batch, states.take(positions[end - len(batch) : end], by_token=not self.pooled)

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

    def _last_on_gpu(self, x_TH: Tensor, rows: RaggedRows, kernels: Kernels) -> Tensor:
        """Do what `_last` does."""
        model = self.loaded.model
        head, layer = model.head(self.layers), model.backbone.layer(self.layers)
        if head.reads_first_token:
            features_BF = head.features_of_first(run_layer_for_first_tokens(layer, x_TH, rows, kernels))
        else:
            y_TH = torch.empty_like(x_TH)
            run_layer(layer, x_TH, rows, y_TH, kernels)
            features_BF = head_features(head, y_TH, rows, kernels)
        logits: Tensor = head.out(features_BF)
        return logits


def standardize_heads(model: EarlyExitModel, rows: TokenRows, group: ProcessGroup) -> None:
    """Set mean and deviation of pooled branch heads to those of their inputs for some rows, with the backbone as it is now.

    All workers take those of rank 0: other devices round otherwise. Heads that predict values are left as they are:
    they overfit more than they gain (docs/results/papers/README.md). So are all where there are too few rows to
    estimate a deviation. A row of which a layer makes no finite numbers does not count.
    """
    if model.branch_head != "pooled" or model.regression or len(rows) < FEWEST_ROWS:
        return
    some = rows.take(np.unique(np.linspace(0, len(rows) - 1, STANDARD_ROWS).astype(np.int64)))
    backbone = FrozenBackbone(model, with_last=False)
    states = backbone.run(some.take(sort_by_length(some.lengths)))
    backbone.loaded.close()
    finite_B = states.inputs.isfinite().all(-1).all(0)
    if int(finite_B.sum()) < FEWEST_ROWS:
        return
    for layer, first_BH in zip(backbone.branches, states.inputs[:, finite_B], strict=True):
        head = model.head(layer)
        assert isinstance(head, PooledHead)
        head.standardize(first_BH)
        for buffer_H in head.buffers():
            group.broadcast(buffer_H)
