"""Attention of a layer over packed rows: from queries, keys and values to what each token, or each first one, reads.

Legend of suffixes: T tokens, Q tokens or rows, B rows, H hidden.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from models.attention import attend, attend_from_first
from models.layers import Shared
from models.length_group import LengthGroup
from models.positions.relative import RelativeBias
from models.positions.rotary import Rotary, attend_from_first_turned, positions_of
from models.positions.window import Window


class SelfAttention(nn.Module):
    """Multi-head attention inside every row; it knows positions by a bias or by rotations, where the family has them."""

    def __init__(
        self,
        heads: int,
        dropout: float,
        *,
        bias: Shared[RelativeBias] | Window | None = None,
        rotary: Rotary | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.dropout, self.rotary, self._bias = heads, dropout, rotary, bias

    @property
    def bias(self) -> RelativeBias | Window | None:
        """What is added to the scores by where query and key are."""
        return self._bias.module if isinstance(self._bias, Shared) else self._bias

    def forward(self, qkv_T3H: Tensor, groups: Sequence[LengthGroup]) -> Tensor:
        """Compute what every token reads of its row: queries, keys and values side by side, [T, 3H] -> [T, H]."""
        if self.rotary is not None:
            qkv_T3H = self.turned(qkv_T3H, positions_of(tuple(groups), len(qkv_T3H), qkv_T3H.device))
        return self.mix(qkv_T3H, groups)

    def turned(self, qkv_T3H: Tensor, positions_T: Tensor) -> Tensor:
        """Turn queries and keys by the tokens' positions, where the family does: [T, 3H]."""
        if self.rotary is None:
            return qkv_T3H
        return self.rotary.turn_queries_and_keys(qkv_T3H, self.heads, positions_T)

    def mix(self, qkv_T3H: Tensor, groups: Sequence[LengthGroup]) -> Tensor:
        """Do what `forward` does once queries and keys are turned."""
        dropout = self.dropout if self.training else 0.0
        return attend(qkv_T3H, groups, self.heads, dropout=dropout, bias=self.bias)

    def from_first(
        self, q_QH: Tensor, x_TH: Tensor, groups: Sequence[LengthGroup], kv_2HH: Tensor, bias_2H: Tensor | None
    ) -> Tensor:
        """Compute what the first token of every row reads, from their queries and what all queries are made of: [Q, H].

        Queries past the last row are padding. `kv` and `bias` are weight and bias of the keys and values.
        """
        if self.rotary is not None:
            return attend_from_first_turned(self.rotary, q_QH, x_TH, groups, self.heads, kv_2HH, bias_2H, self.bias)
        return attend_from_first(q_QH, x_TH, groups, self.heads, kv_2HH, bias_2H, score_bias=self.bias)
