"""A lane: runs rows through the model layer by layer, on one CPU thread or one GPU, with memory of its own.

It works *layer-major*. All rows are sorted by length into one token buffer; a layer runs over all of them in micro-batches of
a fixed token budget; the exit head judges every row; rows that leave are written down, and the next layer gathers the
survivors into micro-batches that are as full as the first ones. So the matrices stay large however few rows are left, and
FLOPs saved become time saved.

*First-token-first*: a pooled head reads one token. So an exit layer is run for the first tokens only, which takes no keys and
values of the other tokens (see `attend_from_first`), the head decides, and the layer is run for the survivors alone. The
answers are the same, and a row that leaves pays next to nothing for its exit layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from models.attention import first_tokens
from models.backbone import EncoderLayer
from models.early_exit import EarlyExitModel, ExitOutput
from models.exits.criterion import Criterion
from models.exits.uncertainty import exits_at, extend_streak, should_exit, uncertainty_of
from models.heads import ATTENTION_HEAD_WIDTH, AttentionHead, PooledHead
from models.length_group import LengthGroup
from pipeline.engine.pack import pack
from pipeline.engine.packing import MicroBatch, length_groups_of, micro_batches, pad_multiple
from pipeline.rows import IntArray, TokenRows

FIRST_TOKEN_MULTIPLE = 64
"""Matrices of first tokens have a multiple of this many rows, so that few shapes occur."""


@dataclass(slots=True)
class Results:
    """Predictions under way, in the order of the input."""

    logits: Tensor
    exit_layers: Tensor
    uncertainty: Tensor
    exit_plan: IntArray | None
    thresholds: Tensor | None
    """[B, L] on the lane's device: thresholds of every row, by layer, in place of the criterion's."""

    def record(self, rows: IntArray, layer: int, logits: Tensor, uncertainty: Tensor) -> None:
        where = torch.from_numpy(rows)
        self.logits[where] = logits.float().cpu()
        self.uncertainty[where] = uncertainty.cpu()
        self.exit_layers[where] = layer


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerConfig:
    """What a lane needs to know beside the model."""

    exits: list[int]
    """Layers after which rows are looked at, ascending; the last layer included."""
    criterion: Criterion
    token_budget: int
    first_tokens: int
    """Rows whose first tokens are worked on at once."""
    first_token_first: bool


Featurise = Callable[[Tensor, Sequence[LengthGroup], int], Tensor]
"""Tokens [T, W] of some rows, their runs, padding rows to add -> features [B + padding, W]."""


def _features_of(head: PooledHead | AttentionHead, layer: EncoderLayer | None) -> Featurise:
    """Return what makes a head's features of rows; with a layer, one that is still to be run, for their first tokens."""
    if isinstance(head, AttentionHead):
        return head.features_of_narrowed
    if layer is not None:
        return lambda x_TH, groups, padding: head.features_of_first(layer.first_tokens_only(x_TH, groups, padding))
    return lambda x_TH, groups, padding: head.features_of_first(F.pad(first_tokens(x_TH, groups), (0, 0, 0, padding)))


class Streaks:
    """How often in a row the exits agreed on each active row: what patience remembers between exits."""

    def __init__(self) -> None:
        self._before_BC: Tensor | None = None
        self._streak_B: Tensor | None = None

    def extend(self, logits_BC: Tensor, tolerance: float) -> Tensor:
        """Take in what the next exit says of the active rows; return their streaks: [B]."""
        if self._before_BC is None or self._streak_B is None:
            self._streak_B = torch.zeros(len(logits_BC), dtype=torch.int64, device=logits_BC.device)
        else:
            self._streak_B = extend_streak(self._streak_B, self._before_BC, logits_BC, tolerance)
        self._before_BC = logits_BC
        return self._streak_B

    def keep(self, stays_B: Tensor) -> None:
        """Forget the rows that left."""
        if self._before_BC is not None and self._streak_B is not None:
            self._before_BC, self._streak_B = self._before_BC[stays_B], self._streak_B[stays_B]


class ModelRunner:
    """Runs groups of rows, one after the other. Lanes share the model, which they only read."""

    def __init__(self, model: EarlyExitModel, config: RunnerConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.model, self.config, self.device, self.dtype = model, config, device, dtype
        self._held: dict[str, Tensor] = {}

    def run(self, rows: TokenRows, active: IntArray, results: Results) -> int:
        """Run the rows numbered `active` (sorted by length) until all have left; return the padding tokens computed."""
        group = rows.take(active)
        lengths, done, padding = group.lengths, 0, 0
        margin = pad_multiple(self.config.token_budget)  # room for the last micro-batch's padding
        buffer_TH = self._memory("hidden", len(group.token_ids) + margin, self.model.shape.hidden)

        def embed(batch: MicroBatch) -> Tensor:
            members = group.take(np.arange(batch.row_start, batch.row_stop))
            embedded: Tensor = self.model.backbone.embeddings(pack(members, batch.groups, batch.padding, self.device))
            return embedded

        load: Callable[[MicroBatch], Tensor] = embed
        streaks = Streaks()
        for exit_layer in self.config.exits:
            head, layer = self.model.head(exit_layer), self.model.backbone.layer(exit_layer)
            first = isinstance(head, PooledHead) and self.config.first_token_first
            whole = exit_layer - 1 if first else exit_layer
            judged_TW, narrowing = buffer_TH, None
            if isinstance(head, AttentionHead):
                judged_TW = self._memory("narrow", len(buffer_TH), ATTENTION_HEAD_WIDTH)
                narrowing = (head, judged_TW)
            padding += self._run_layers(range(done, whole), load, lengths, buffer_TH, narrowing)
            features = self._features(_features_of(head, layer if first else None), lengths, judged_TW)
            done = whole
            stays = ~self._decide(exit_layer, self.model.exit_output(exit_layer, features), streaks, active, results)
            if not stays.any():
                break
            load = self._loader(buffer_TH, lengths, stays)
            active, lengths = active[stays], lengths[stays]
        return padding

    def free(self) -> None:
        """Give back the memory that is kept from call to call."""
        self._held.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _memory(self, name: str, tokens: int, width: int) -> Tensor:
        """Return [tokens, width]: the same memory at every call, since fresh memory costs page faults. Never NaN."""
        held = self._held.get(name)
        if held is None or len(held) < tokens:
            # The old memory goes first, or both would be held at once; an eighth more, or it would grow at every call.
            self._held.pop(name, None)
            held = torch.zeros(tokens + tokens // 8, width, dtype=self.dtype, device=self.device)
            self._held[name] = held
        return held[:tokens]

    def _run_layers(
        self,
        layers: range,
        load: Callable[[MicroBatch], Tensor],
        lengths: IntArray,
        buffer_TH: Tensor,
        narrowing: tuple[AttentionHead, Tensor] | None = None,
    ) -> int:
        """Load rows, run whole layers over them and leave them one after the other in the buffer; return the padding computed.

        What is written never overtakes what is still to be loaded. `narrowing` is a head and the memory [T, W] for what it
        makes of every token.
        """
        padding = 0
        for batch in micro_batches(lengths, self.config.token_budget):
            x_TH = load(batch)
            for index in layers:
                x_TH = self.model.backbone.layers[index](x_TH, batch.groups)
            buffer_TH[batch.tokens] = x_TH[: batch.num_tokens]
            if narrowing is not None:
                head, narrow_TW = narrowing
                narrow_TW[batch.tokens] = head.narrowed(x_TH)[: batch.num_tokens]
            padding += batch.padding * len(layers)
        return padding

    def _loader(
        self, buffer_TH: Tensor, lengths: IntArray, stays: npt.NDArray[np.bool_]
    ) -> Callable[[MicroBatch], Tensor]:
        """Return what gathers a micro-batch of the rows that stay; its padding may be any tokens."""
        if stays.all():
            return lambda batch: buffer_TH[batch.tokens_and_padding]
        places = np.pad(np.flatnonzero(np.repeat(stays, lengths)), (0, pad_multiple(self.config.token_budget)))
        places_T = torch.from_numpy(places).to(self.device)
        return lambda batch: buffer_TH.index_select(0, places_T[batch.tokens_and_padding])

    def _features(self, featurise: Featurise, lengths: IntArray, source_TW: Tensor) -> Tensor:
        """Make the head's features of all rows, some hundred at once: [B, W]."""
        features, token = [], 0
        for start in range(0, len(lengths), self.config.first_tokens):
            part = lengths[start : start + self.config.first_tokens]
            stop = token + int(part.sum())
            padding = -len(part) % FIRST_TOKEN_MULTIPLE
            features.append(featurise(source_TW[token:stop], length_groups_of(part), padding)[: len(part)])
            token = stop
        return torch.cat(features)

    def _decide(
        self, exit_layer: int, answer: ExitOutput, streaks: Streaks, active: IntArray, results: Results
    ) -> npt.NDArray[np.bool_]:
        """Write down who exiting, and return them: [B]."""
        logits, criterion = answer.logits, self.config.criterion
        streak = streaks.extend(logits, criterion.tolerance) if criterion.name == "patience" else None
        uncertainty = uncertainty_of(criterion, logits, answer.lte, streak)
        if exit_layer == self.model.shape.layers:
            exiting = torch.ones(len(active), dtype=torch.bool)
        elif results.exit_plan is not None:
            exiting = torch.from_numpy(results.exit_plan[active] <= exit_layer)
        elif results.thresholds is not None:
            exiting = should_exit(uncertainty, results.thresholds[torch.from_numpy(active), exit_layer - 1]).cpu()
        else:
            exiting = exits_at(criterion, exit_layer, uncertainty).cpu()  # the one synchronization of a block of layers
        results.record(active[exiting.numpy()], exit_layer, logits[exiting], uncertainty[exiting])
        streaks.keep(~exiting.to(self.device))
        decided: npt.NDArray[np.bool_] = exiting.numpy()
        return decided
