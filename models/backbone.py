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
from models.layers import Dropout, Shared, activation
from models.length_group import LengthGroup
from models.positions.convolution import Convolution
from models.positions.disentangled import DisentangledAttention, Distances
from models.positions.relative import RelativeBias
from models.positions.rotary import Rotary
from models.positions.self_attention import SelfAttention
from models.positions.window import Window


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
        if shape.position_table:
            self.position_embeddings = _table(shape.positions, shape.embedding)
        if shape.token_types:
            self.token_type_embeddings = _table(shape.token_types, shape.embedding)
        if shape.task_types:
            self.task_type_embeddings = _table(shape.task_types, shape.embedding)
        self.norm = nn.LayerNorm(shape.embedding, eps=shape.norm_eps, bias=shape.norm_bias)
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
        x_TE: Tensor = self.word_embeddings(ids_T)
        if not self.shape.position_table and not self.shape.token_types:
            return x_TE
        positions_T, types_T = self._positions_and_types(ids_T, segments_B, lengths_B, tokens)
        if self.shape.position_table:
            x_TE = x_TE + self.position_embeddings(positions_T)
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

    def __init__(self, width_in: int, width_out: int, dropout: float, *, bias: bool = True) -> None:
        super().__init__(width_in, width_out, bias=bias)
        self.dropout = Dropout(dropout)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return residual + dropout(linear(x))."""
        added: Tensor = residual + self.dropout(self(x))
        return added


class FeedForward(nn.Module):
    """Expand, activate, contract, and add the input."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.expand = nn.Linear(shape.hidden, shape.intermediate, bias=shape.ffn_bias)
        self.contract = ResidualLinear(shape.intermediate, shape.hidden, shape.dropout, bias=shape.ffn_bias)
        self.activation_name = shape.activation
        self.activation = activation(shape.activation)

    def forward(self, x_QH: Tensor) -> Tensor:
        return self.plus(x_QH, x_QH)

    def plus(self, x_QH: Tensor, residual_QH: Tensor) -> Tensor:
        """Return residual + block(x)."""
        return self.contract.plus(self.inner(x_QH), residual_QH)

    def inner(self, x_QH: Tensor) -> Tensor:
        """Compute the input of the second product: [Q, H] -> [Q, inner width]."""
        return self.activation(self.expand(x_QH))


class GatedFeedForward(FeedForward):
    """Expand to twice the inner width, activate one half, multiply it by the other, and contract (GLU: Shazeer 2020)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.expand = nn.Linear(shape.hidden, 2 * shape.intermediate, bias=shape.ffn_bias)
        self.dropout = Dropout(shape.ffn_dropout)
        self.contract.dropout = Dropout(0.0)

    def inner(self, x_QH: Tensor) -> Tensor:
        active_QI, gate_QI = self.expand(x_QH).chunk(2, dim=-1)
        inner_QI: Tensor = self.dropout(self.activation(active_QI) * gate_QI)
        return inner_QI


class EncoderLayer(nn.Module):
    """One post-LayerNorm transformer layer (Devlin et al. 2019)."""

    def __init__(self, shape: Shape, attention: SelfAttention) -> None:
        super().__init__()
        self.attention = attention
        self.convolution: Shared[Convolution] | None = None
        """What stands beside the layer: the first one's, in some of DeBERTa-v2."""
        self.query_key_value = nn.Linear(shape.hidden, 3 * shape.hidden, bias=shape.attention_bias)
        self.attention_out = ResidualLinear(shape.hidden, shape.hidden, shape.dropout, bias=shape.attention_bias)
        self.attention_norm = nn.LayerNorm(shape.hidden, eps=shape.norm_eps, bias=shape.norm_bias)
        self.ffn = FeedForward(shape)
        self.ffn_norm = nn.LayerNorm(shape.hidden, eps=shape.norm_eps, bias=shape.norm_bias)

    def forward(self, x_TH: Tensor, groups: Sequence[LengthGroup]) -> Tensor:
        mixed_TH = self.attention(self.query_key_value(self.attention_input(x_TH)), groups)
        y_TH = self.after_attention(x_TH, mixed_TH)
        return y_TH if self.convolution is None else self.convolution.module(x_TH, y_TH, groups)

    def first_tokens_only(self, x_TH: Tensor, groups: Sequence[LengthGroup], padding: int = 0) -> Tensor:
        """Compute what `forward` returns for the first token of every row, at a small part of the cost: [B + padding, H]."""
        first_BH = F.pad(first_tokens(x_TH, groups), (0, 0, 0, padding))
        query, key_value = self.query_and_key_value()
        q_BH = F.linear(self.attention_input(first_BH), *query)
        mixed_BH = self.attention.from_first(q_BH, self.attention_input(x_TH), groups, *key_value)
        y_BH = self.after_attention(first_BH, mixed_BH)
        return y_BH if self.convolution is None else self.convolution.module.first_tokens(x_TH, y_BH, groups)

    def query_and_key_value(self) -> tuple[tuple[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]:
        """Return weight and bias of the queries, [H, H] and [H], and those of keys and values, stacked: [2H, H] and [2H]."""
        weight, bias = self.query_key_value.weight, self.query_key_value.bias
        hidden = weight.shape[1]
        if bias is None:  # its type does not say so
            return (weight[:hidden], None), (weight[hidden:], None)
        return (weight[:hidden], bias[:hidden]), (weight[hidden:], bias[hidden:])

    def attention_input(self, x_QH: Tensor) -> Tensor:
        """Return what queries, keys and values are made of."""
        return x_QH

    def after_attention(self, x_QH: Tensor, mixed_QH: Tensor) -> Tensor:
        """Return the layer's output from its input and what attention mixes."""
        x_QH = self.attention_norm(self.attention_out.plus(mixed_QH, x_QH))
        y_QH: Tensor = self.ffn_norm(self.ffn(x_QH))
        return y_QH


class PreNormLayer(EncoderLayer):
    """One pre-LayerNorm layer, as ModernBERT has it: it normalizes what attention and a gated block read, and adds up."""

    def __init__(self, shape: Shape, attention: SelfAttention, *, first: bool) -> None:
        """Make a layer; the first one reads embeddings, which are normalized already."""
        super().__init__(shape, attention)
        if first:
            self.attention_norm = nn.Identity()  # type: ignore[assignment]
        self.attention_out.dropout = Dropout(shape.attention_dropout)
        self.ffn = GatedFeedForward(shape)

    def attention_input(self, x_QH: Tensor) -> Tensor:
        normed_QH: Tensor = self.attention_norm(x_QH)
        return normed_QH

    def after_attention(self, x_QH: Tensor, mixed_QH: Tensor) -> Tensor:
        x_QH = self.attention_out.plus(mixed_QH, x_QH)
        return self.ffn.plus(self.ffn_norm(x_QH), x_QH)


class Backbone(nn.Module):
    """Embeddings and layers; the caller drives them, since only it knows which rows are still active."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embeddings = Embeddings(shape)
        if shape.relative_buckets:
            self.relative_bias = RelativeBias(shape.relative_buckets, shape.attention_heads)
        if shape.disentangled is not None:
            self.distances = Distances(shape.disentangled, shape.hidden, shape.norm_eps)
        if shape.convolution is not None:
            self.convolution = Convolution(shape.convolution, shape.hidden, shape.norm_eps, shape.dropout)
        self.layers = nn.ModuleList(self._new_layer(shape, index) for index in range(shape.layers))
        if shape.pre_norm:
            self.final_norm = nn.LayerNorm(shape.hidden, eps=shape.norm_eps, bias=shape.norm_bias)

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
            if isinstance(module, RelativeBias | DisentangledAttention):
                module.freeze()

    def exit_norm(self) -> Shared[nn.LayerNorm] | None:
        """Return the norm through which heads read hidden states; None where layers normalize what they return."""
        return Shared(self.final_norm) if hasattr(self, "final_norm") else None

    def _new_layer(self, shape: Shape, index: int) -> EncoderLayer:
        attention = self._new_attention(shape, index)
        if shape.pre_norm:
            return PreNormLayer(shape, attention, first=index == 0)
        layer = EncoderLayer(shape, attention)
        if shape.convolution is not None and index == 0:
            layer.convolution = Shared(self.convolution)
        if isinstance(attention, DisentangledAttention) and attention.shape.shared_projections:
            attention.projections = Shared(layer.query_key_value)
        return layer

    def _new_attention(self, shape: Shape, index: int) -> SelfAttention:
        if shape.disentangled is not None:
            return DisentangledAttention(
                shape.disentangled,
                shape.hidden,
                shape.attention_heads,
                dropout=shape.attention_dropout,
                distance_dropout=shape.dropout,
                distances=Shared(self.distances),
            )
        bias: Shared[RelativeBias] | Window | None = None
        if shape.relative_buckets:
            bias = Shared(self.relative_bias)
        elif shape.windows and (reach := shape.windows[index]) is not None:
            bias = Window(reach)
        rotary = Rotary(shape.rotary_bases[index], shape.max_tokens) if shape.rotary_bases else None
        return SelfAttention(shape.attention_heads, shape.attention_dropout, bias=bias, rotary=rotary)
