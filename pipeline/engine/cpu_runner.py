"""The runner for CPUs: takes rows through the model layer by layer on one thread, in micro-batches that its cache holds.

oneDNN builds a kernel for every new matrix shape, and a core's cache holds the hidden states of some hundred tokens. So
micro-batches are small, padded to few sizes, and gone through one after the other, several layers at a time if no exit is
between them. Survivors are gathered straight into the next micro-batch.
"""

from collections.abc import Iterator
from concurrent.futures import CancelledError
from threading import Event
from typing import Self

import numpy as np
import torch
from torch import Tensor

from models.backbone import EncoderLayer
from models.early_exit import EarlyExitModel
from models.heads import Head
from pipeline.engine.memory import Workspace
from pipeline.engine.pack import pack
from pipeline.engine.packing import MicroBatch, cut_by_tokens, length_groups_of, micro_batches, pad_multiple
from pipeline.engine.results import Results
from pipeline.engine.rules import ExitRule
from pipeline.engine.runner import BoolArray, Judge, RunnerConfig
from pipeline.rows import IntArray, TokenRows

FIRST_TOKEN_MULTIPLE = 64
"""Matrices of first tokens have a multiple of this many rows, so that few shapes occur."""
PART_BATCHES = 4
"""Tokens that first tokens attend to at once, in micro-batches, where attention makes something of each of them."""


class ActiveRows:
    """Rows that have not exited, in order of length, one after the other in the runner's buffer of hidden states.

    Example: rows of 2, 3 and 3 tokens fill buffer[0:8]. When the second exits, `keep` notes that the tokens of the others are
    at [0, 1, 5, 6, 7]; once they are gathered from there and written back they fill buffer[0:5], and `compacted` says so.
    """

    def __init__(self, indices: IntArray, tokens: TokenRows) -> None:
        self.indices = indices
        """[B]: their numbers in the call."""
        self.lengths: IntArray = tokens.lengths
        """[B]: their tokens."""
        self.tokens: TokenRows | None = tokens
        """Their token ids, until these are embedded."""
        self.positions_T: Tensor | None = None
        """[T]: where their tokens are in the buffer; None if they fill it from its start."""

    @classmethod
    def of(cls, rows: TokenRows, indices: IntArray) -> Self:
        """Start with the rows of these numbers, which are in order of length."""
        return cls(indices, rows.take(indices))

    def compacted(self) -> None:
        """Note that their hidden states now fill the buffer from its start."""
        self.tokens = self.positions_T = None

    def keep(self, stays: BoolArray, padding: int) -> None:
        """Drop the rows that exited; positions are followed by this many of any token, which serve as padding."""
        if not stays.all():
            positions = np.pad(np.flatnonzero(np.repeat(stays, self.lengths)), (0, padding))
            self.positions_T = torch.from_numpy(positions)
        self.indices, self.lengths = self.indices[stays], self.lengths[stays]


class CpuRunner:
    """Runs groups of rows on one thread. Runners share the model, which they only read."""

    def __init__(self, model: EarlyExitModel, config: RunnerConfig, workspace: Workspace, cancelled: Event) -> None:
        """Keep hidden states in this workspace, which is the runner's alone while it runs; `cancelled` ends what it runs."""
        self.model, self.config, self.workspace, self.cancelled = model, config, workspace, cancelled

    def run(self, rows: TokenRows, indices: IntArray, rule: ExitRule, results: Results) -> int:
        """Run the rows of these numbers, sorted by length, until all have exited; see Runner."""
        active = ActiveRows.of(rows, indices)
        judge = Judge(self.config, rule, torch.device("cpu"))
        margin = pad_multiple(self.config.token_budget)  # room for the last micro-batch's padding
        hidden_TH = self.workspace.take("hidden", int(active.lengths.sum()) + margin, self.model.shape.hidden)
        done = padding = 0
        for exit_layer in self.config.exits:
            head = self.model.head(exit_layer)
            first = head.reads_first_token and self.config.first_token_first
            whole = exit_layer - 1 if first else exit_layer
            kept_TW = hidden_TH
            if head.token_width is not None:
                kept_TW = self.workspace.take("per token", len(hidden_TH), head.token_width)
            padding += self._run_layers(range(done, whole), active, hidden_TH, head, kept_TW)
            features_BF = self._features(exit_layer, active.lengths, kept_TW, first=first)
            output = self.model.exit_output(exit_layer, features_BF)
            uncertainty_B, exiting_B = judge.judge(exit_layer, output, torch.from_numpy(active.indices))
            exiting = exiting_B.numpy()
            results.record(active.indices[exiting], exit_layer, output.logits[exiting_B], uncertainty_B[exiting_B])
            if exiting.all():
                break
            judge.keep(~exiting_B)
            active.keep(~exiting, margin)
            done = whole
        return padding

    def free(self) -> None:
        """Give back the memory that is kept from call to call."""
        self.workspace.free()

    def _gather(self, batch: MicroBatch, active: ActiveRows, hidden_TH: Tensor) -> Tensor:
        """Return the hidden states of a micro-batch, and any other tokens as its padding: [T, H]."""
        if active.tokens is not None:
            members = active.tokens.take(np.arange(batch.row_start, batch.row_stop))
            packed = pack(members, batch.groups, batch.padding, hidden_TH.device)
            embedded_TH: Tensor = self.model.backbone.embeddings(packed)
            return embedded_TH
        if active.positions_T is None:
            return hidden_TH[batch.tokens_and_padding]
        return hidden_TH.index_select(0, active.positions_T[batch.tokens_and_padding])

    def _run_layers(
        self,
        layers: range,
        active: ActiveRows,
        hidden_TH: Tensor,
        head: Head,
        kept_TW: Tensor,
    ) -> int:
        """Run whole layers over the active rows and write them back without gaps; return the padding tokens computed.

        What is written never overtakes what is still to be gathered. A head that keeps something else of every token than its
        hidden state writes it to `kept_TW`.
        """
        padding = 0
        for batch in micro_batches(active.lengths, self.config.token_budget):
            x_TH = self._gather(batch, active, hidden_TH)
            for index in layers:
                if self.cancelled.is_set():
                    raise CancelledError
                x_TH = self.model.backbone.layers[index](x_TH, batch.groups)
            hidden_TH[batch.tokens] = x_TH[: batch.num_tokens]
            if kept_TW is not hidden_TH:
                kept_TW[batch.tokens] = head.per_token(x_TH)[: batch.num_tokens]
            padding += batch.padding * len(layers)
        active.compacted()
        return padding

    def _parts(self, layer: EncoderLayer, lengths: IntArray) -> Iterator[IntArray]:
        """Cut rows into parts of `first_tokens` rows, and of some micro-batches where each of their tokens takes memory."""
        tokens = PART_BATCHES * self.config.token_budget if layer.attention.keeps_tokens else int(lengths.sum())
        for cut in cut_by_tokens(lengths, tokens):
            for start in range(cut.start, cut.stop, self.config.first_tokens):
                yield lengths[start : min(start + self.config.first_tokens, cut.stop)]

    def _features(self, exit_layer: int, lengths: IntArray, kept_TW: Tensor, *, first: bool) -> Tensor:
        """Compute the head's features of all rows, some hundred at once: [B, F].

        With `first`, the exit's layer is still to be run, and is run for the first tokens only.
        """
        head, layer = self.model.head(exit_layer), self.model.backbone.layer(exit_layer)
        features, token = [], 0
        for part in self._parts(layer, lengths):
            stop = token + int(part.sum())
            groups, padding = length_groups_of(part), -len(part) % FIRST_TOKEN_MULTIPLE
            if head.reads_first_token and first:
                made = head.features_of_first(layer.first_tokens_only(kept_TW[token:stop], groups, padding))
            else:
                made = head.features_from(kept_TW[token:stop], groups, padding)
            features.append(made[: len(part)])
            token = stop
        return torch.cat(features)
