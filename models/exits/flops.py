"""FLOPs of a row, from shapes: exact counts of the matrix products, a multiply and an add being two (as torch counts).

Element-wise work (GELU, LayerNorm, softmax) is left out, as in FastBERT's table 1 and in torch's own counter. Of attention
in a window only the keys that a query sees are counted, whatever is computed along and thrown away.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from models.families.shape import Shape
from models.heads import ATTENTION_HEAD_HEADS, ATTENTION_HEAD_WIDTH
from models.positions.disentangled import rows_of_distances

Counts = npt.NDArray[np.float64]


def pairs_within(lengths_B: Counts, window: int) -> Counts:
    """Count the pairs of query and key that are at most `window` tokens apart, in rows of these lengths: [B] -> [B].

    Example: in a row of 4 tokens with a window of 1 they are 3 x 4 - 2 = 10.
    """
    reach_B = np.minimum(window, np.maximum(lengths_B - 1, 0))
    return lengths_B * (2 * reach_B + 1) - reach_B * (reach_B + 1)


@dataclass(frozen=True, slots=True)
class FlopCounter:
    """Counts FLOPs of rows that pass `exit_heads` on their way through an encoder of this shape."""

    shape: Shape
    exit_heads: dict[int, str]
    """Kind of head, 'pooled' or 'attention', by the layer after which it is evaluated."""

    def with_heads_at(self, layers: Iterable[int]) -> "FlopCounter":
        """Return a counter for rows that are judged after these layers only."""
        return FlopCounter(self.shape, {layer: self.exit_heads[layer] for layer in layers})

    def layers(self, lengths_B: Counts, depths_B: npt.ArrayLike) -> Counts:
        """Count the layers of rows of these lengths up to these depths, without heads: [B], [B] or one depth -> [B]."""
        if not self.shape.windows:
            first_B = (np.asarray(depths_B) >= 1) * self._convolution(lengths_B)
            return np.asarray(depths_B) * self._layer(lengths_B, None) + first_B
        total = np.zeros_like(lengths_B)
        for window in sorted(set(self.shape.windows), key=str):
            like_it = np.cumsum([0, *(other == window for other in self.shape.windows)])
            total += like_it[np.asarray(depths_B)] * self._layer(lengths_B, window)
        return total

    def _layer(self, lengths_B: Counts, window: int | None) -> Counts:
        """Count one layer whose tokens see so many others on each side, or all: [B] -> [B]."""
        hidden, inner = self.shape.hidden, self.shape.intermediate
        products = 3 if self.shape.pre_norm else 2  # a gate is one more
        seen_B = lengths_B**2 if window is None else pairs_within(lengths_B, window)
        rows_B = 2 * lengths_B * (4 * hidden * hidden + products * hidden * inner) + 4 * seen_B * hidden
        return rows_B + self._distances(lengths_B)

    def _distances(self, lengths_B: Counts) -> Counts:
        """Count what DeBERTa's layers compare with the distances that occur; keys of distances are made once for all rows."""
        shape = self.shape.disentangled
        if shape is None or not shape.relative:
            return np.zeros_like(lengths_B)
        farthest_B = torch.from_numpy(lengths_B).long() - 1
        found_B = rows_of_distances(farthest_B, shape) - rows_of_distances(-farthest_B, shape) + 1
        terms = shape.content_to_position + shape.position_to_content
        return terms * 2 * lengths_B * found_B.numpy() * self.shape.hidden

    def _convolution(self, lengths_B: Counts) -> Counts:
        """Count what stands beside DeBERTa-v2's first layer."""
        shape = self.shape.convolution
        if shape is None:
            return np.zeros_like(lengths_B)
        return 2 * lengths_B * shape.kernel * self.shape.hidden**2 / shape.groups

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
        total = self.layers(lengths, exits)
        if self.shape.embedding != self.shape.hidden:
            total = total + 2 * lengths * self.shape.embedding * self.shape.hidden
        for layer, kind in self.exit_heads.items():
            total = total + (exits >= layer) * self.head(kind, lengths)
        return total

    def full_depth(self, lengths_B: npt.ArrayLike) -> Counts:
        """Count the plain model at full depth, with its last head only: [B] -> [B] float64."""
        last = self.shape.layers
        return self.with_heads_at([last]).rows(lengths_B, np.full(np.shape(lengths_B), last))
