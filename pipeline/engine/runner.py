"""A runner: takes rows through the model layer by layer, on one CPU thread or one GPU.

It works *layer-major*. All rows are sorted by length into one token buffer; a layer runs over all of them in micro-batches of
a fixed token budget; the exit head judges every row; rows that exit are recorded, and the next layer gathers the survivors
into micro-batches that are as full as the first ones. So the matrices stay large however few rows are left, and FLOPs saved
become time saved.

*First-token-first*: a pooled head reads one token. So an exit layer is run for the first tokens only, which takes no keys and
values of the other tokens (see `attend_from_first`), the head decides, and the layer is run for the survivors alone. The
logits are the same, and a row that exits pays next to nothing for its exit layer.

Of a runner the engine needs two methods, `run` and `free`. How it cuts micro-batches, where it keeps what it knows of active
rows, and whether it records them exit by exit or all at the end, is its own matter.
"""

from concurrent.futures import CancelledError
from dataclasses import dataclass
from threading import Event

import numpy as np
import torch
from torch import Tensor

from models.early_exit import EarlyExitModel, ExitOutput
from models.exits.criterion import Criterion
from models.exits.uncertainty import uncertainty_of
from models.heads import AttentionHead, PooledHead
from pipeline.engine.active_rows import ActiveRows, BoolArray
from pipeline.engine.memory import Workspace
from pipeline.engine.pack import pack
from pipeline.engine.packing import MicroBatch, length_groups_of, micro_batches, pad_multiple
from pipeline.engine.results import Results
from pipeline.engine.rules import ExitRule
from pipeline.rows import IntArray, TokenRows

FIRST_TOKEN_MULTIPLE = 64
"""Matrices of first tokens have a multiple of this many rows, so that few shapes occur."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerConfig:
    """How a runner takes rows through the model."""

    exits: list[int]
    """Layers after which rows are judged, ascending; the last layer included."""
    criterion: Criterion
    """How the uncertainty of a row is measured."""
    token_budget: int
    """Tokens in a micro-batch."""
    first_tokens: int
    """Rows whose features are computed at once."""
    first_token_first: bool
    """Whether a head that reads one token decides before its layer is run for all tokens."""


class ModelRunner:
    """Runs groups of rows, one after the other. Runners share the model, which they only read."""

    def __init__(self, model: EarlyExitModel, config: RunnerConfig, workspace: Workspace, cancelled: Event) -> None:
        """Keep hidden states in this workspace, which is the runner's alone while it runs; `cancelled` ends what it runs."""
        self.model, self.config, self.workspace, self.cancelled = model, config, workspace, cancelled
        self.device = workspace.device

    def run(self, rows: TokenRows, indices: IntArray, rule: ExitRule, results: Results) -> int:
        """Run the rows of these numbers, sorted by length, until all have exited; return the padding tokens computed.

        Raises CancelledError before the next layer of a micro-batch once that is asked for.
        """
        active = ActiveRows.of(rows, indices)
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
            stays = self._judge(exit_layer, self.model.exit_output(exit_layer, features_BF), active, rule, results)
            if not stays.any():
                break
            active.keep(stays, self.device, margin)
            done = whole
        return padding

    def free(self) -> None:
        """Give back the memory that is kept from call to call."""
        self.workspace.free()

    def _gather(self, batch: MicroBatch, active: ActiveRows, hidden_TH: Tensor) -> Tensor:
        """Return the hidden states of a micro-batch, and any other tokens as its padding: [T, H]."""
        if active.tokens is not None:
            members = active.tokens.take(np.arange(batch.row_start, batch.row_stop))
            embedded_TH: Tensor = self.model.backbone.embeddings(
                pack(members, batch.groups, batch.padding, self.device)
            )
            return embedded_TH
        if active.positions_T is None:
            return hidden_TH[batch.tokens_and_padding]
        return hidden_TH.index_select(0, active.positions_T[batch.tokens_and_padding])

    def _run_layers(
        self,
        layers: range,
        active: ActiveRows,
        hidden_TH: Tensor,
        head: PooledHead | AttentionHead,
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

    def _features(self, exit_layer: int, lengths: IntArray, kept_TW: Tensor, *, first: bool) -> Tensor:
        """Compute the head's features of all rows, some hundred at once: [B, F].

        With `first`, the exit's layer is still to be run, and is run for the first tokens only.
        """
        head, layer = self.model.head(exit_layer), self.model.backbone.layer(exit_layer)
        features, token = [], 0
        for start in range(0, len(lengths), self.config.first_tokens):
            part = lengths[start : start + self.config.first_tokens]
            stop = token + int(part.sum())
            groups, padding = length_groups_of(part), -len(part) % FIRST_TOKEN_MULTIPLE
            if head.reads_first_token and first:
                made = head.features_of_first(layer.first_tokens_only(kept_TW[token:stop], groups, padding))
            else:
                made = head.features_from(kept_TW[token:stop], groups, padding)
            features.append(made[: len(part)])
            token = stop
        return torch.cat(features)

    def _judge(
        self, exit_layer: int, output: ExitOutput, active: ActiveRows, rule: ExitRule, results: Results
    ) -> BoolArray:
        """Record the rows that exit after this layer; return which rows stay: [B]."""
        logits_BC, criterion = output.logits, self.config.criterion
        streak_B = active.streaks.extend(logits_BC, criterion.tolerance) if criterion.name == "patience" else None
        uncertainty_B = uncertainty_of(criterion, logits_BC, output.lte, streak_B)
        if exit_layer == self.model.shape.layers:
            exiting = torch.ones(len(logits_BC), dtype=torch.bool)
        else:
            rows_B = torch.from_numpy(active.indices).to(self.device)
            exiting = rule.exits(exit_layer, uncertainty_B, rows_B).cpu()  # the one synchronization of an exit
        results.record(active.indices[exiting.numpy()], exit_layer, logits_BC[exiting], uncertainty_B[exiting])
        stays: BoolArray = ~exiting.numpy()
        return stays
