"""FLOPs of a row, from shapes: exact counts of the matrix products, a multiply and an add being two (as torch counts).

Element-wise work (GELU, LayerNorm, softmax) is left out, as in FastBERT's table 1 and in torch's own counter.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.families.shape import Shape
from models.heads import ATTENTION_HEAD_HEADS, ATTENTION_HEAD_WIDTH

Counts = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FlopCounter:
    """Counts FLOPs of rows that pass `exit_heads` on their way through an encoder of this shape."""

    shape: Shape
    exit_heads: dict[int, str]
    """Kind of head, 'pooled' or 'attention', by the layer after which it is evaluated."""

    def with_heads_at(self, layers: Iterable[int]) -> "FlopCounter":
        """Return a counter for rows that are judged after these layers only."""
        return FlopCounter(self.shape, {layer: self.exit_heads[layer] for layer in layers})

    def layer(self, lengths_B: Counts) -> Counts:
        """Count one layer for rows of these lengths: [B] -> [B]."""
        hidden, inner = self.shape.hidden, self.shape.intermediate
        return 2 * lengths_B * (4 * hidden * hidden + 2 * hidden * inner) + 4 * lengths_B**2 * hidden

    def head(self, kind: str, lengths_B: Counts) -> Counts:
        """Count one head for rows of these lengths: [B] -> [B]."""
        hidden, classes, width = self.shape.hidden, self.shape.classes, ATTENTION_HEAD_WIDTH
        if kind == "pooled":
            return np.full_like(lengths_B, 2 * hidden * (hidden + classes))
        # As computed: keys and values on the side of the one query (`attend_from_first`), so little is done for every token.
        per_token = 2 * hidden * width + 4 * ATTENTION_HEAD_HEADS * width
        return lengths_B * per_token + 2 * (5 * width * width + width * classes)

    def rows(self, lengths_B: npt.ArrayLike, exit_layers_B: npt.ArrayLike) -> Counts:
        """Count each row up to its exit layer, heads on the way included: [B], [B] -> [B] float64."""
        lengths = np.asarray(lengths_B, dtype=np.float64)
        exits = np.asarray(exit_layers_B)
        total = exits * self.layer(lengths)
        if self.shape.embedding != self.shape.hidden:
            total = total + 2 * lengths * self.shape.embedding * self.shape.hidden
        for layer, kind in self.exit_heads.items():
            total = total + (exits >= layer) * self.head(kind, lengths)
        return total

    def full_depth(self, lengths_B: npt.ArrayLike) -> Counts:
        """Count the plain model at full depth, with its last head only: [B] -> [B] float64."""
        last = self.shape.layers
        return self.with_heads_at([last]).rows(lengths_B, np.full(np.shape(lengths_B), last))
