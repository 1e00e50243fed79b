"""Attention of a layer over packed rows: from queries, keys and values to what each token, or each first one, reads.

Legend of suffixes: T tokens, Q tokens or rows, B rows, H hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor, nn

from models.attention import attend, attend_from_first
from models.length_group import LengthGroup
from models.positions.relative import RelativeBias

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, slots=True, eq=False)
class Shared(Generic[M]):
    """A module that belongs to another one, which saves it, moves it and trains it."""

    module: M


class SelfAttention(nn.Module):
    """Multi-head attention inside every row; it knows positions by a bias, where the family has one."""

    def __init__(self, heads: int, dropout: float, *, bias: Shared[RelativeBias] | None = None) -> None:
        super().__init__()
        self.heads, self.dropout, self._bias = heads, dropout, bias

    @property
    def bias(self) -> RelativeBias | None:
        """What is added to the scores by where query and key are."""
        return None if self._bias is None else self._bias.module

    def forward(self, qkv_T3H: Tensor, groups: Sequence[LengthGroup]) -> Tensor:
        """Compute what every token reads of its row: queries, keys and values side by side, [T, 3H] -> [T, H]."""
        dropout = self.dropout if self.training else 0.0
        return attend(qkv_T3H, groups, self.heads, dropout=dropout, bias=self.bias)

    def from_first(
        self, q_QH: Tensor, x_TH: Tensor, groups: Sequence[LengthGroup], kv_2HH: Tensor, bias_2H: Tensor
    ) -> Tensor:
        """Compute what the first token of every row reads, from their queries and the layer's input: [Q, H].

        Queries past the last row are padding. `kv` and `bias` are weight and bias of the keys and values.
        """
        return attend_from_first(q_QH, x_TH, groups, self.heads, kv_2HH, bias_2H, score_bias=self.bias)
