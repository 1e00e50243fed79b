"""A BERT-family encoder as explicit steps over packed tokens.

Rows are laid one after the other in one `[tokens, hidden]` matrix. There is no padding inside a row and no attention
mask: rows of equal length stand together in *runs*, and attention sees each run as a dense rectangle. Linear layers,
which are nearly all of the work, see only the token axis. Training, the engine and the tests run this one code.

Legend of suffixes: T tokens, Q tokens or rows, B rows, L length of a row, N attention heads,
D width of a head, H hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from models.families import Shape
from models.runs import Run

KEY_TILE = 16
"""Keys are padded, in attention alone, to a multiple of this on CPUs: torch's flash kernel there handles the rest of a row one
by one. 2 cores with AMX, bf16, 12 heads of 32, 2,048 tokens: 2.67 ms with rows of 31 tokens, 1.07 ms with rows of 32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedTokens:
    """A batch of rows without padding inside.

    Tokens past the last run are filler, which lets the caller keep to a few matrix sizes: no row reads them.
    """

    token_ids: Tensor
    """[T] int64."""
    segments: Tensor
    """[B] int64: the position in its row at which the second text of a pair starts; the row's length if there is none."""
    runs: Sequence[Run]

    @property
    def rows(self) -> int:
        return sum(run.rows for run in self.runs)


def first_tokens(x_TH: Tensor, runs: Sequence[Run]) -> Tensor:
    """Gather the first token of every row: [T, H] -> [B, H]."""
    firsts, start = [], 0
    for run in runs:
        firsts.append(x_TH[start : start + run.tokens : run.length])
        start += run.tokens
    return firsts[0] if len(firsts) == 1 else torch.cat(firsts)


def attend(qkv_T3H: Tensor, runs: Sequence[Run], heads: int, *, dropout: float = 0.0) -> Tensor:
    """Multi-head attention inside every row: queries, keys and values side by side [T, 3H] -> [T, H]."""
    hidden = qkv_T3H.shape[1] // 3
    pad = qkv_T3H.device.type == "cpu" and not torch.is_grad_enabled()
    outputs, token = [], 0
    for run in runs:
        span = slice(token, token + run.tokens)
        q_BLH, kv_BL2H = qkv_T3H[span].view(run.rows, run.length, -1).split((hidden, 2 * hidden), dim=2)
        q_BNLD = q_BLH.unflatten(2, (heads, -1)).transpose(1, 2)
        mask_LL = None
        filler = -run.length % KEY_TILE if pad else 0
        if filler:
            kv_BL2H = F.pad(kv_BL2H, (0, 0, 0, filler))
            mask_LL = _hide_filler(run.length, filler, qkv_T3H.dtype)
        k_BNLD, v_BNLD = kv_BL2H.unflatten(2, (2, heads, -1)).permute(2, 0, 3, 1, 4)
        out_BNLD = F.scaled_dot_product_attention(q_BNLD, k_BNLD, v_BNLD, attn_mask=mask_LL, dropout_p=dropout)
        outputs.append(out_BNLD.transpose(1, 2).reshape(run.tokens, hidden))
        token += run.tokens
    if token < len(qkv_T3H):
        outputs.append(qkv_T3H.new_zeros(len(qkv_T3H) - token, hidden))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def attend_from_first(
    q_BH: Tensor, x_TH: Tensor, runs: Sequence[Run], heads: int, kv_2HH: Tensor, bias_2H: Tensor, dropout: float = 0.0
) -> Tensor:
    """What `attend` gives the first token of every row, without keys and values of the others: [B, H].

    With one query a row, q . (K x) is better computed as (K^T q) . x, and sum_l a_l (V x_l) as V (sum_l a_l x_l): two small
    products a row in place of two a token. The keys' bias moves all scores of a query alike, so softmax drops it; the values'
    bias is added once, since the weights a_l sum to 1. Queries past the last row are filler.

    The same re-ordering serves the latent attention of DeepSeek-V2 (Liu et al. 2024, section 2.1.2).
    """
    width = q_BH.shape[1] // heads
    key_NDH, value_NDH = kv_2HH.view(2, heads, width, -1)
    asked_BNH = torch.matmul(q_BH.view(-1, heads, width).transpose(0, 1), key_NDH).transpose(0, 1)
    mixed, row, token = [], 0, 0
    for run in runs:
        x_B1LH = x_TH[token : token + run.tokens].view(run.rows, 1, run.length, -1)
        asked_B1NH = asked_BNH[row : row + run.rows, None]
        scale = width**-0.5
        mixed.append(F.scaled_dot_product_attention(asked_B1NH, x_B1LH, x_B1LH, dropout_p=dropout, scale=scale)[:, 0])
        row, token = row + run.rows, token + run.tokens
    if row < len(q_BH):
        mixed.append(x_TH.new_zeros(len(q_BH) - row, heads, x_TH.shape[1]))
    mixed_NBH = torch.cat(mixed).transpose(0, 1)
    return torch.matmul(mixed_NBH, value_NDH.mT).transpose(0, 1).reshape(q_BH.shape) + bias_2H[len(bias_2H) // 2 :]


@lru_cache(maxsize=2048)
def _hide_filler(length: int, filler: int, dtype: torch.dtype) -> Tensor:
    """Mask [length, length + filler] that lets queries see the real keys only."""
    mask = torch.zeros(length, length + filler, dtype=dtype)
    mask[:, length:] = -torch.inf
    return mask


class Embeddings(nn.Module):
    """Word, position, token-type and task-type tables, LayerNorm, and ELECTRA's projection."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.word_embeddings = nn.Embedding(shape.vocabulary, shape.embedding)
        self.position_embeddings = nn.Embedding(shape.positions, shape.embedding)
        if shape.token_types:
            self.token_type_embeddings = nn.Embedding(shape.token_types, shape.embedding)
        if shape.task_types:
            self.task_type_embeddings = nn.Embedding(shape.task_types, shape.embedding)
        self.norm = nn.LayerNorm(shape.embedding, eps=shape.norm_eps)
        self.dropout = nn.Dropout(shape.dropout)
        self.project = nn.Linear(shape.embedding, shape.hidden) if shape.embedding != shape.hidden else nn.Identity()

    def forward(self, packed: PackedTokens) -> Tensor:
        positions_T, types_T = self._positions_and_types(packed)
        x = self.word_embeddings(packed.token_ids) + self.position_embeddings(positions_T)
        if self.shape.token_types:
            x = x + self.token_type_embeddings(types_T)
        if self.shape.task_types:
            x = x + self.task_type_embeddings.weight[0]
        x_TH: Tensor = self.project(self.dropout(self.norm(x)))
        return x_TH

    def _positions_and_types(self, packed: PackedTokens) -> tuple[Tensor, Tensor]:
        ids_T = packed.token_ids
        positions, types = torch.zeros_like(ids_T), torch.zeros_like(ids_T)
        token = row = 0
        for run in packed.runs:
            span = slice(token, token + run.tokens)
            offsets_L = torch.arange(run.length, device=ids_T.device)
            starts_B1 = packed.segments[row : row + run.rows, None]
            if self.shape.first_position:
                positions[span] = self._roberta_positions(ids_T[span].view(run.rows, run.length)).flatten()
            else:
                positions[span] = offsets_L.repeat(run.rows)
            types[span] = (offsets_L >= starts_B1).flatten()
            token, row = token + run.tokens, row + run.rows
        return positions, types.clamp_(max=max(self.shape.token_types - 1, 0))

    def _roberta_positions(self, ids_BL: Tensor) -> Tensor:
        """Number the tokens as RoBERTa does: a pad token inside a text (it can be typed) gets no number of its own."""
        real = ids_BL != self.shape.pad_id
        return torch.where(real, real.cumsum(1) + self.shape.first_position - 1, self.shape.pad_id)


class ResidualLinear(nn.Linear):
    """A linear layer whose output, after dropout, is added to what went round it."""

    def __init__(self, width_in: int, width_out: int, dropout: float) -> None:
        super().__init__(width_in, width_out)
        self.dropout = nn.Dropout(dropout)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        added: Tensor = residual + self.dropout(self(x))
        return added


class FeedForward(nn.Module):
    """Expand, activate, contract, and add the input."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.expand = nn.Linear(shape.hidden, shape.intermediate)
        self.contract = ResidualLinear(shape.intermediate, shape.hidden, shape.dropout)
        self.activation_name = shape.activation
        self.activation = ACT2FN[shape.activation]

    def forward(self, x_QH: Tensor) -> Tensor:
        return self.contract.plus(self.activation(self.expand(x_QH)), x_QH)


class EncoderLayer(nn.Module):
    """One post-LayerNorm transformer layer (Devlin et al. 2019)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.attention_dropout = shape.attention_heads, shape.attention_dropout
        self.query_key_value = nn.Linear(shape.hidden, 3 * shape.hidden)
        self.attention_out = ResidualLinear(shape.hidden, shape.hidden, shape.dropout)
        self.attention_norm = nn.LayerNorm(shape.hidden, eps=shape.norm_eps)
        self.ffn = FeedForward(shape)
        self.ffn_norm = nn.LayerNorm(shape.hidden, eps=shape.norm_eps)

    def forward(self, x_TH: Tensor, runs: Sequence[Run]) -> Tensor:
        dropout = self.attention_dropout if self.training else 0.0
        mixed_TH = attend(self.query_key_value(x_TH), runs, self.heads, dropout=dropout)
        return self._after_attention(x_TH, mixed_TH)

    def first_tokens_only(self, x_TH: Tensor, runs: Sequence[Run], filler: int = 0) -> Tensor:
        """What `forward` gives the first token of every row, at a small part of the cost: [B + filler, H]."""
        first_BH = F.pad(first_tokens(x_TH, runs), (0, 0, 0, filler))
        query, key_value = self._query_and_key_value()
        mixed_BH = attend_from_first(F.linear(first_BH, *query), x_TH, runs, self.heads, *key_value)
        return self._after_attention(first_BH, mixed_BH)

    def _query_and_key_value(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Weight and bias of the queries [H, H], [H], and those of keys and values, stacked [2H, H], [2H]."""
        weight, bias = self.query_key_value.weight, self.query_key_value.bias
        hidden = weight.shape[1]
        return (weight[:hidden], bias[:hidden]), (weight[hidden:], bias[hidden:])

    def _after_attention(self, x_QH: Tensor, mixed_QH: Tensor) -> Tensor:
        x_QH = self.attention_norm(self.attention_out.plus(mixed_QH, x_QH))
        y_QH: Tensor = self.ffn_norm(self.ffn(x_QH))
        return y_QH


class Backbone(nn.Module):
    """Embeddings and layers; the caller drives them, since only it knows who is still active."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embeddings = Embeddings(shape)
        self.layers = nn.ModuleList(EncoderLayer(shape) for _ in range(shape.layers))

    def layer(self, number: int) -> EncoderLayer:
        """Return a layer by its number, 1 to L."""
        found = self.layers[number - 1]
        assert isinstance(found, EncoderLayer)
        return found
