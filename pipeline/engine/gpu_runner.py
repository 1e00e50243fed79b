"""The runner for GPUs: takes all its rows through a layer at once, and asks the GPU for nothing but which rows stay.

A GPU is fast where it is given much at a time and never waits for the host. So token ids travel once a call, indices are made
on the device from the bounds of rows, and an exit costs one synchronization: the host learns which rows stay, since it chooses
blocks and micro-batches by their lengths. Logits, exit layers and uncertainties stay on the device until all rows have exited.

Hidden states are in two buffers; a layer reads one and writes the other, and so does re-packing. Micro-batches, of some hundred
thousand tokens, only bound the memory of what a layer computes on its way.

It runs on CPUs too, slowly: that is how its tests compare it with the runner for CPUs.
"""

from concurrent.futures import CancelledError
from threading import Event

import numpy as np
import torch
from torch import Tensor

from models.early_exit import EarlyExitModel
from models.gpu.dispatch import Kernels
from models.gpu.encoder import embed, head_features, run_layer, run_layer_for_first_tokens
from models.gpu.rows import RaggedRows, send
from models.heads import PooledHead
from pipeline.engine.memory import Workspace
from pipeline.engine.packing import cut_by_tokens
from pipeline.engine.results import Results
from pipeline.engine.rules import ExitRule
from pipeline.engine.runner import BoolArray, Judge, RunnerConfig
from pipeline.rows import IntArray, TokenRows


class HiddenStates:
    """The hidden states of the active rows, one after the other in one of two buffers."""

    def __init__(self, workspace: Workspace, tokens: int, hidden: int) -> None:
        self._buffers = [workspace.take(f"hidden {number}", tokens, hidden) for number in (0, 1)]

    def current(self, rows: RaggedRows) -> Tensor:
        """Return the states of all active rows: [T, H]."""
        return self._buffers[0][: rows.num_tokens]

    def next(self, rows: RaggedRows) -> Tensor:
        """Return the room for what takes their place once it is written: [T, H]."""
        return self._buffers[1][: rows.num_tokens]

    def swap(self) -> None:
        """Make current what was written to `next`."""
        self._buffers.reverse()

    def keep(self, rows: RaggedRows, stays: BoolArray) -> tuple[RaggedRows, Tensor]:
        """Move the rows that stay together; return them, and which of the rows they were: [B] int32."""
        kept, kept_B = rows.keep(stays)
        index_T = kept.index_from(rows.starts.index_select(0, kept_B))
        torch.index_select(self.current(rows), 0, index_T, out=self.next(kept))
        self.swap()
        return kept, kept_B


class Recorded:
    """The predictions of a call's rows on the device; at every exit all active rows are written, so their last exit stands."""

    def __init__(self, rows: int, classes: int, device: torch.device) -> None:
        self.logits = torch.zeros(rows, classes, device=device)
        self.exit_layers = torch.zeros(rows, dtype=torch.int16, device=device)
        self.uncertainty = torch.zeros(rows, device=device)

    def write(self, numbers_B: Tensor, exit_layer: int, logits_BC: Tensor, uncertainty_B: Tensor) -> None:
        """Write what an exit says of the rows of these numbers."""
        self.logits.index_copy_(0, numbers_B, logits_BC.float())
        self.exit_layers.index_fill_(0, numbers_B, exit_layer)
        self.uncertainty.index_copy_(0, numbers_B, uncertainty_B)

    def move_to(self, results: Results, indices: IntArray, numbers_B: Tensor) -> None:
        """Move the predictions of these rows to the host, and wait for them."""
        layers_B, logits_BC = self.exit_layers[numbers_B], self.logits[numbers_B]
        results.record(indices, layers_B, logits_BC, self.uncertainty[numbers_B])


class GpuRunner:
    """Runs groups of rows on one GPU."""

    def __init__(
        self, model: EarlyExitModel, config: RunnerConfig, workspace: Workspace, cancelled: Event, kernels: Kernels
    ) -> None:
        """Keep hidden states in this workspace, which is the runner's alone while it runs; `cancelled` ends what it runs."""
        self.model, self.config, self.workspace, self.cancelled = model, config, workspace, cancelled
        self.kernels = kernels

    def run(self, rows: TokenRows, indices: IntArray, rule: ExitRule, results: Results) -> int:
        """Run the rows of these numbers, sorted by length, until all have exited; see Runner. There is no padding."""
        shape, device = self.model.shape, self.workspace.device
        judge, recorded = Judge(self.config, rule, device), Recorded(len(rows), shape.classes, device)
        active, all_B, hidden = self._embed(rows, indices)
        numbers_B, done = all_B, 0
        for exit_layer in self.config.exits:
            first = self.model.head(exit_layer).reads_first_token and self.config.first_token_first
            whole = exit_layer - 1 if first else exit_layer
            self._run_layers(range(done + 1, whole + 1), active, hidden)
            features_BF = self._features(exit_layer, active, hidden.current(active), first=first)
            output = self.model.exit_output(exit_layer, features_BF)
            uncertainty_B, exiting_B = judge.judge(exit_layer, output, numbers_B)
            recorded.write(numbers_B, exit_layer, output.logits, uncertainty_B)
            if exit_layer == shape.layers:
                break
            stays = ~exiting_B.cpu().numpy()  # the one synchronization of an exit
            if not stays.any():
                break
            if not stays.all():
                active, kept_B = hidden.keep(active, stays)
                numbers_B = numbers_B[kept_B]
                judge.keep(kept_B)
            done = whole
        recorded.move_to(results, indices, all_B)
        return 0

    def free(self) -> None:
        """Give back the memory that is kept from call to call."""
        self.workspace.free()

    def _embed(self, rows: TokenRows, indices: IntArray) -> tuple[RaggedRows, Tensor, HiddenStates]:
        """Send the rows of these numbers; return where they lie, their numbers on the device, and their embeddings."""
        device, numbers = self.workspace.device, indices
        if len(indices) < len(rows):  # a part of the call; for a whole one the device does what this does
            rows, indices = rows.take(indices), np.arange(len(indices))
        active = RaggedRows.of(rows.lengths[indices], device)
        per_row = np.concatenate([rows.offsets[indices], rows.segments[indices], numbers])
        starts_B, segments_B, numbers_B = send(per_row, device).view(3, -1)
        ids_T = send(rows.token_ids, device).index_select(0, active.index_from(starts_B))
        hidden = HiddenStates(self.workspace, active.num_tokens, self.model.shape.hidden)
        for part in cut_by_tokens(active.host_lengths, self.config.token_budget):
            batch = active.part(part)
            out_TH = hidden.next(active)[batch.tokens]
            embed(self.model.backbone.embeddings, ids_T[batch.tokens], segments_B[part], batch, out_TH, self.kernels)
        hidden.swap()
        return active, numbers_B.long(), hidden

    def _run_layers(self, layers: range, active: RaggedRows, hidden: HiddenStates) -> None:
        """Run whole layers over the active rows."""
        batches = [active.part(part) for part in cut_by_tokens(active.host_lengths, self.config.token_budget)]
        for number in layers:
            x_TH, out_TH = hidden.current(active), hidden.next(active)
            for batch in batches:
                if self.cancelled.is_set():
                    raise CancelledError
                layer = self.model.backbone.layer(number)
                run_layer(layer, x_TH[batch.tokens], batch, out_TH[batch.tokens], self.kernels)
            hidden.swap()

    def _features(self, exit_layer: int, active: RaggedRows, x_TH: Tensor, *, first: bool) -> Tensor:
        """Compute the head's features of all rows: [B, F].

        With `first`, the exit's layer is still to be run, and is run for the first tokens only.
        """
        head, layer = self.model.head(exit_layer), self.model.backbone.layer(exit_layer)
        attention = layer.attention
        if not head.reads_first_token or attention.keeps_tokens or attention.bias is not None:
            parts = cut_by_tokens(active.host_lengths, self.config.token_budget)
        else:
            step = self.config.first_tokens
            parts = [slice(start, start + step) for start in range(0, len(active), step)]
        features = []
        for batch in map(active.part, parts):
            x = x_TH[batch.tokens]
            if first and isinstance(head, PooledHead):
                features.append(head.features_of_first(run_layer_for_first_tokens(layer, x, batch, self.kernels)))
            else:
                features.append(head_features(head, x, batch, self.kernels))
        return torch.cat(features)
