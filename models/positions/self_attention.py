"""Attention of a layer over packed rows: from queries, keys and values to what each token, or each first one, reads.

Legend of suffixes: T tokens, Q tokens or rows, B rows, H hidden.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from models.attention import attend, attend_from_first
from models.layers import Shared
from models.length_group import LengthGroup
from models.positions.from_first import attend_from_keys, keys_of
from models.positions.relative import RelativeBias
from models.positions.rotary import Rotary, positions_of
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

    @property
    def takes_kernels(self) -> bool:
        """Whether what `mix` does is attention as kernels know it, but for the bias."""
        return True

    @property
    def keeps_tokens(self) -> bool:
        """Whether attention from first tokens makes something of every token that they attend to, such as its keys."""
        return self.rotary is not None or not self.takes_kernels

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
        if self.rotary is not None:  # at the first position nothing turns
            return self._from_first_over_turned_keys(self.rotary, q_QH, x_TH, groups, kv_2HH, bias_2H)
        return attend_from_first(q_QH, x_TH, groups, self.heads, kv_2HH, bias_2H, score_bias=self.bias)

    def _from_first_over_turned_keys(
        self,
        rotary: Rotary,
        q_QH: Tensor,
        x_TH: Tensor,
        groups: Sequence[LengthGroup],
        kv_2HH: Tensor,
        bias_2H: Tensor | None,
    ) -> Tensor:
        x_TH = x_TH[: sum(group.tokens for group in groups)]
        positions_T = positions_of(tuple(groups), len(x_TH), x_TH.device)
        key_TND = rotary.turn(keys_of(x_TH, self.heads, kv_2HH, bias_2H), positions_T)
        q_QND = q_QH.unflatten(1, (self.heads, -1)) * key_TND.shape[-1] ** -0.5

        def of_window(q_BND: Tensor, key_BNLD: Tensor) -> Tensor | None:
            return None if self.bias is None else self.bias.of_first(key_BNLD.shape[2], q_BND)

        return attend_from_keys(q_QND, key_TND, x_TH, groups, kv_2HH, bias_2H, of_window)
