"""Runners: what the engine needs of them, and what those for CPUs and for GPUs have in common.

A runner works *layer-major*. All rows are sorted by length into one token buffer; a layer runs over all of them in
micro-batches of a fixed token budget; the exit head judges every row; rows that exit are recorded, and the survivors are
re-packed into micro-batches that are as full as the first ones. So the matrices stay large however few rows are left, and FLOPs
saved become time saved.

*First-token-first*: a pooled head reads one token. So an exit layer is run for the first tokens only, which takes no keys and
values of the other tokens (see `attend_from_first`), the head decides, and the layer is run for the survivors alone. The
logits are the same, and a row that exits pays next to nothing for its exit layer.

How micro-batches are cut, what is known of active rows and when results are recorded is each runner's own matter:
pipeline.engine.cpu_runner, pipeline.engine.gpu_runner.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.early_exit import ExitOutput
from models.exits.criterion import Criterion
from models.exits.uncertainty import extend_streak, uncertainty_of
from pipeline.engine.results import Results
from pipeline.engine.rules import ExitRule, RecordedExits
from pipeline.rows import IntArray, TokenRows

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerConfig:
    """How a runner takes rows through the model."""

    exits: list[int]
    """Layers after which rows are judged, ascending; the last layer included."""
    criterion: Criterion
    """How the uncertainty of a row is measured."""
    boundaries: tuple[float, ...] | None
    """The logits above which labels are predicted: C of them; None for a model that predicts no label sets."""
    token_budget: int
    """Tokens in a micro-batch."""
    first_tokens: int
    """Rows whose features are computed from their first tokens at once."""
    first_token_first: bool
    """Whether a head that reads one token decides before its layer is run for all tokens."""


class Runner(Protocol):
    """Runs groups of rows, one after the other."""

    def run(self, rows: TokenRows, indices: IntArray, rule: ExitRule, results: Results) -> int:
        """Run the rows of these numbers, sorted by length, until all have exited; return the padding tokens computed.

        Raises CancelledError before the next layer of a micro-batch once that is asked for.
        """
        ...

    def free(self) -> None:
        """Give back the memory that is kept from call to call."""
        ...


class Verdict(NamedTuple):
    """What an exit says of B rows."""

    uncertainty: Tensor
    """[B] float32."""
    exiting: Tensor
    """[B] bool: which rows exit."""


class Judge:
    """Decides after each exit which active rows exit, and remembers for them how long the exits have agreed."""

    def __init__(self, config: RunnerConfig, rule: ExitRule, device: torch.device) -> None:
        self.criterion, self.rule, self.last_layer = config.criterion, rule, config.exits[-1]
        self._boundaries_C = None if config.boundaries is None else torch.tensor(config.boundaries, device=device)
        self._before_BC: Tensor | None = None
        self._streak_B: Tensor | None = None

    def judge(self, exit_layer: int, output: ExitOutput, rows_B: Tensor) -> Verdict:
        """Judge the active rows, which have these numbers in the call, by an exit's output."""
        if isinstance(self.rule, RecordedExits):
            self.rule.record(exit_layer, output, rows_B)
        patient = self.criterion.name == "patience"
        streak_B = self._extend_streaks(output.logits) if patient else None
        uncertainty_B = uncertainty_of(self.criterion, output.logits, output.lte, streak_B, self._boundaries_C)
        if exit_layer == self.last_layer:
            return Verdict(uncertainty_B, torch.ones_like(uncertainty_B, dtype=torch.bool))
        return Verdict(uncertainty_B, self.rule.exits(exit_layer, uncertainty_B, rows_B))

    def keep(self, kept_B: Tensor) -> None:
        """Forget all active rows but these, given by their indices or by a mask."""
        if self._before_BC is not None and self._streak_B is not None:
            self._before_BC, self._streak_B = self._before_BC[kept_B], self._streak_B[kept_B]

    def _extend_streaks(self, logits_BC: Tensor) -> Tensor:
        """Add the next exit's logits; return the number of consecutive exits that have agreed on each row: [B] int64."""
        if self._before_BC is None or self._streak_B is None:
            self._streak_B = torch.zeros(len(logits_BC), dtype=torch.int64, device=logits_BC.device)
        else:
            tolerance, boundaries_C = self.criterion.tolerance, self._boundaries_C
            self._streak_B = extend_streak(self._streak_B, self._before_BC, logits_BC, tolerance, boundaries_C)
        self._before_BC = logits_BC
        return self._streak_B
