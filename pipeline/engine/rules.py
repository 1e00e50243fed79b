"""Exit rules: which rows exit after a layer, given their uncertainty there.

How the uncertainty is measured is up to the engine's criterion. What is compared with it is a matter of the call:

    CriterionRule      the criterion's own thresholds, the same for all rows; the default
    PerRowThresholds   thresholds of every row, for a server whose callers differ
    RecordedExits      none: what every exit says is kept, for calibrations
    ForcedPlan         no threshold at all but a given layer (pipeline.benchmark.workload)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from models.early_exit import ExitOutput
from models.exits.criterion import Criterion
from models.exits.uncertainty import exits_at, should_exit
from pipeline.rows import Thresholds


class ExitRule(Protocol):
    """Decides which rows exit. One object serves all runners of a call at once, so it keeps no state between exits."""

    def to(self, device: torch.device) -> Self:
        """Return the rule with its tensors on this device."""
        ...

    def exits(self, layer: int, uncertainty_B: Tensor, rows_B: Tensor) -> Tensor:
        """Return which of the rows numbered `rows_B` in the call exit after this layer: [B] bool.

        It is not asked about the last layer, after which every row exits.
        """
        ...


@dataclass(frozen=True, slots=True)
class CriterionRule:
    """Rows exit at the criterion's own thresholds; with patience, after a streak of exits that agree."""

    criterion: Criterion

    def to(self, device: torch.device) -> Self:
        return self

    def exits(self, layer: int, uncertainty_B: Tensor, rows_B: Tensor) -> Tensor:
        return exits_at(self.criterion, layer, uncertainty_B)


class PerRowThresholds:
    """Every row exits at thresholds of its own.

    Example: `PerRowThresholds(criterion, np.array([[0.1, 0.3, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]], np.float32))` for two rows in a
    model of four layers: the first may exit after layers 1 and 2, the second exits after layer 1 in any case.
    """

    def __init__(self, criterion: Criterion, thresholds: Thresholds | Tensor) -> None:
        """Take thresholds [B, L] of this criterion's uncertainty; raise ValueError if it has none."""
        if criterion.name == "patience":
            raise ValueError("criterion patience has no thresholds")
        self.criterion = criterion
        self.thresholds_BL = torch.as_tensor(thresholds)

    def to(self, device: torch.device) -> Self:
        return type(self)(self.criterion, self.thresholds_BL.to(device))

    def exits(self, layer: int, uncertainty_B: Tensor, rows_B: Tensor) -> Tensor:
        return should_exit(uncertainty_B, self.thresholds_BL[rows_B, layer - 1])


class RecordedExits:
    """No row exits before the last layer, and what every exit says of each is kept.

    It is of one call of rows that are numbered from 0 on; runners fill in disjoint rows, and a group that is run once more the
    same ones.
    """

    def __init__(self, layers: Sequence[int], rows: int, classes: int, *, learned: bool) -> None:
        """Make room for E exit layers, the last one included, and B rows of C classes; `learned` if exits predict certainty."""
        self.layers = tuple(layers)
        self.logits_BEC = torch.zeros(rows, len(layers), classes)
        self.lte_BE = torch.zeros(rows, len(layers)) if learned else None
        """Logits of the learned certainty; the last exit has none, and zeros here."""

    def to(self, device: torch.device) -> Self:
        return self

    def exits(self, layer: int, uncertainty_B: Tensor, rows_B: Tensor) -> Tensor:
        return torch.zeros_like(uncertainty_B, dtype=torch.bool)

    def record(self, layer: int, output: ExitOutput, rows_B: Tensor) -> None:
        """Keep what an exit says of the rows of these numbers."""
        index, rows_B = self.layers.index(layer), rows_B.cpu()
        self.logits_BEC[rows_B, index] = output.logits.float().cpu()
        if self.lte_BE is not None and output.lte is not None:
            self.lte_BE[rows_B, index] = output.lte.float().cpu()
