"""The results of one engine call, filled in by its runners while rows exit."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from pipeline.rows import IntArray


@dataclass(slots=True)
class Results:
    """Predictions of B rows in the order of the input, on the CPU; runners write disjoint rows, each exactly once."""

    logits: Tensor
    """[B, C] float32."""
    exit_layers: Tensor
    """[B] int16; 0 until the row exits."""
    uncertainty: Tensor
    """[B] float32."""

    @classmethod
    def empty(cls, rows: int, classes: int) -> Self:
        """Make room for this many rows."""
        return cls(torch.zeros(rows, classes), torch.zeros(rows, dtype=torch.int16), torch.zeros(rows))

    def record(self, rows: IntArray, exit_layers: int | Tensor, logits: Tensor, uncertainty: Tensor) -> None:
        """Write the predictions of some rows, which exit after one layer, or each after its own."""
        index = torch.from_numpy(rows)
        self.logits[index] = logits.float().cpu()
        self.uncertainty[index] = uncertainty.cpu()
        self.exit_layers[index] = exit_layers if isinstance(exit_layers, int) else exit_layers.to("cpu", torch.int16)
