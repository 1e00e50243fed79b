"""An encoder as explicit steps over packed tokens.

Rows are laid one after the other in one `[tokens, hidden]` matrix. There is no padding inside a row and no attention
mask: rows of equal length stand together in *length groups*, and attention sees each group as a dense rectangle. Linear
layers, which are nearly all of the work, see only the token axis. Training, the engine and the tests run this one code.

Legend of suffixes: T tokens, Q tokens or rows, B rows, L length of a row, N attention heads,
D width of a head, H hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import first_tokens, lengths_of
from models.families.shape import Shape
from models.layers import Dropout, activation
from models.length_group import LengthGroup
from models.positions.relative import RelativeBias
from models.positions.self_attention import SelfAttention, Shared


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedTokens:
    """A batch of rows without padding inside.

    Tokens past the last group are padding, which lets the caller keep to a few matrix sizes: no row reads them.
    """

    token_ids: Tensor
    """[T] int64, padding included."""
    segments: Tensor
    """[B] int64: the position in its row at which the second text of a pair starts; the row's length if there is none."""
    groups: Sequence[LengthGroup]
    """Lengths of the rows, in their order: `(LengthGroup(2, 3), LengthGroup(1, 5))` is rows of 3, 3 and 5 tokens."""

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.groups)


def _table(rows: int, width: int) -> nn.Embedding:
    """Make an embedding with torch's own initial weights; on the meta device torch imports its compiler to draw them."""
    return nn.Embedding.from_pretrained(torch.randn(rows, width), freeze=False)


class Embeddings(nn.Module):
    """Word, position, token-type and task-type tables, LayerNorm, and ELECTRA's projection."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.word_embeddings = _table(shape.vocabulary, shape.embedding)
        self.position_embeddings = _table(shape.positions, shape.embedding)
        if shape.token_types:
            self.token_type_embeddings = _table(shape.token_types, shape.embedding)
        if shape.task_types:
            self.task_type_embeddings = _table(shape.task_types, shape.embedding)
        self.norm = nn.LayerNorm(shape.embedding, eps=shape.norm_eps)
        self.dropout = Dropout(shape.dropout)
        self.project = nn.Linear(shape.embedding, shape.hidden) if shape.embedding != shape.hidden else nn.Identity()

    def forward(self, packed: PackedTokens) -> Tensor:
        lengths_B = lengths_of(packed.groups, packed.token_ids.device)
        tokens = sum(group.tokens for group in packed.groups)
        summed_TE = self.summed(packed.token_ids, packed.segments, lengths_B, tokens)
        x_TH: Tensor = self.project(self.dropout(self.norm(summed_TE)))
        return x_TH

    def summed(self, ids_T: Tensor, segments_B: Tensor, lengths_B: Tensor, tokens: int) -> Tensor:
        """Sum the tables' entries of rows of these lengths, which have so many tokens together: [T, E].

        Further ids are padding.
        """
        positions_T, types_T = self._positions_and_types(ids_T, segments_B, lengths_B, tokens)
        x_TE = self.word_embeddings(ids_T) + self.position_embeddings(positions_T)
        if self.shape.token_types:
            x_TE = x_TE + self.token_type_embeddings(types_T)
        if self.shape.task_types:
            x_TE = x_TE + self.task_type_embeddings.weight[0]
        return x_TE

    def _positions_and_types(
        self, ids_T: Tensor, segments_B: Tensor, lengths_B: Tensor, tokens: int
    ) -> tuple[Tensor, Tensor]:
        """Return the position of every token in its row, and 1 for tokens of second texts: [T], [T]; padding gets zeros."""
        starts_B = lengths_B.cumsum(0) - lengths_B
        starts_T = starts_B.repeat_interleave(lengths_B, output_size=tokens)
        offsets_T = torch.arange(tokens, device=ids_T.device) - starts_T
        types_T = (offsets_T >= segments_B.repeat_interleave(lengths_B, output_size=tokens)).long()
        positions_T = offsets_T
        if self.shape.first_position:
            # As RoBERTa does: a pad token inside a text (it can be typed) gets no number of its own.
            real_T = ids_T[:tokens] != self.shape.pad_id
            counted_T = real_T.cumsum(0)
            before_T = (counted_T - real_T.long()).index_select(0, starts_T)
            positions_T = torch.where(real_T, counted_T - before_T + self.shape.first_position - 1, self.shape.pad_id)
        padding = (0, len(ids_T) - tokens)
        return F.pad(positions_T, padding), F.pad(types_T, padding).clamp_(max=max(self.shape.token_types - 1, 0))


class ResidualLinear(nn.Linear):
    """A linear layer whose output, after dropout, is added to the residual."""

    def __init__(self, width_in: int, width_out: int, dropout: float) -> None:
        super().__init__(width_in, width_out)
        self.dropout = Dropout(dropout)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return residual + dropout(linear(x))."""
        added: Tensor = residual + self.dropout(self(x))
        return added


class FeedForward(nn.Module):
    """Expand, activate, contract, and add the input."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.expand = nn.Linear(shape.hidden, shape.intermediate)
        self.contract = ResidualLinear(shape.intermediate, shape.hidden, shape.dropout)
        self.activation_name = shape.activation
        self.activation = activation(shape.activation)

    def forward(self, x_QH: Tensor) -> Tensor:
        return self.contract.plus(self.activation(self.expand(x_QH)), x_QH)


class EncoderLayer(nn.Module):
    """One post-LayerNorm transformer layer (Devlin et al. 2019)."""

    def __init__(self, shape: Shape, attention: SelfAttention) -> None:
        super().__init__()
        self.attention = attention
        self.query_key_value = nn.Linear(shape.hidden, 3 * shape.hidden)
        self.attention_out = ResidualLinear(shape.hidden, shape.hidden, shape.dropout)
        self.attention_norm = nn.LayerNorm(shape.hidden, eps=shape.norm_eps)
        self.ffn = FeedForward(shape)
        self.ffn_norm = nn.LayerNorm(shape.hidden, eps=shape.norm_eps)

    def forward(self, x_TH: Tensor, groups: Sequence[LengthGroup]) -> Tensor:
        mixed_TH = self.attention(self.query_key_value(x_TH), groups)
        return self._after_attention(x_TH, mixed_TH)

    def first_tokens_only(self, x_TH: Tensor, groups: Sequence[LengthGroup], padding: int = 0) -> Tensor:
        """Compute what `forward` returns for the first token of every row, at a small part of the cost: [B + padding, H]."""
        first_BH = F.pad(first_tokens(x_TH, groups), (0, 0, 0, padding))
        query, key_value = self.query_and_key_value()
        mixed_BH = self.attention.from_first(F.linear(first_BH, *query), x_TH, groups, *key_value)
        return self._after_attention(first_BH, mixed_BH)

    def query_and_key_value(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return weight and bias of the queries, [H, H] and [H], and those of keys and values, stacked: [2H, H] and [2H]."""
        weight, bias = self.query_key_value.weight, self.query_key_value.bias
        hidden = weight.shape[1]
        return (weight[:hidden], bias[:hidden]), (weight[hidden:], bias[hidden:])

    def _after_attention(self, x_QH: Tensor, mixed_QH: Tensor) -> Tensor:
        x_QH = self.attention_norm(self.attention_out.plus(mixed_QH, x_QH))
        y_QH: Tensor = self.ffn_norm(self.ffn(x_QH))
        return y_QH


class Backbone(nn.Module):
    """Embeddings and layers; the caller drives them, since only it knows which rows are still active."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embeddings = Embeddings(shape)
        if shape.relative_buckets:
            self.relative_bias = RelativeBias(shape.relative_buckets, shape.attention_heads)
        self.layers = nn.ModuleList(EncoderLayer(shape, self._new_attention(shape)) for _ in range(shape.layers))

    def layer(self, number: int) -> EncoderLayer:
        """Return a layer by its number, 1 to L."""
        found = self.layers[number - 1]
        assert isinstance(found, EncoderLayer)
        return found

    def shared_modules(self) -> list[nn.Module]:
        """Return the modules with weights that layers share, in the order in which layers first use them."""
        return [module for name, module in self.named_children() if name not in ("embeddings", "layers")]

    def freeze(self) -> None:
        """Keep from call to call what follows from the weights alone; their values, dtype and device are final from now on."""
        for module in self.modules():
            if isinstance(module, RelativeBias):
                module.freeze()

    def _new_attention(self, shape: Shape) -> SelfAttention:
        bias = Shared(self.relative_bias) if shape.relative_buckets else None
        return SelfAttention(shape.attention_heads, shape.attention_dropout, bias=bias)
