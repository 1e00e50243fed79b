"""A BERT-family encoder as explicit steps over packed tokens.

Rows are laid one after the other in one `[tokens, hidden]` matrix. There is no padding inside a row and no attention
mask: rows of equal length stand together in *runs*, and attention sees each run as a dense rectangle. Linear layers,
which are nearly all of the work, see only the token axis. Training, the engine and the tests run this one code.

Legend of suffixes: T tokens, B rows, L length of a row, N attention heads, D width of a head, H hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from models.families import Shape
from models.runs import Run


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


def attend(qkv_T3H: Tensor, runs: Sequence[Run], heads: int, dropout: float = 0.0) -> Tensor:
    """Multi-head self-attention inside every row: [T, 3H] (query, key, value side by side) -> [T, H]."""
    hidden = qkv_T3H.shape[1] // 3
    outputs, start = [], 0
    for run in runs:
        qkv = qkv_T3H[start : start + run.tokens].view(run.rows, run.length, 3, heads, hidden // heads)
        q_BNLD, k_BNLD, v_BNLD = qkv.permute(2, 0, 3, 1, 4)
        out_BNLD = F.scaled_dot_product_attention(q_BNLD, k_BNLD, v_BNLD, dropout_p=dropout)
        outputs.append(out_BNLD.transpose(1, 2).reshape(run.tokens, hidden))
        start += run.tokens
    if start < len(qkv_T3H):
        outputs.append(qkv_T3H.new_zeros(len(qkv_T3H) - start, hidden))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


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


class EncoderLayer(nn.Module):
    """One post-LayerNorm transformer layer (Devlin et al. 2019)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.attention_dropout = shape.attention_heads, shape.attention_dropout
        self.qkv = nn.Linear(shape.hidden, 3 * shape.hidden)
        self.attention_out = nn.Linear(shape.hidden, shape.hidden)
        self.attention_norm = nn.LayerNorm(shape.hidden, eps=shape.norm_eps)
        self.ffn_in = nn.Linear(shape.hidden, shape.intermediate)
        self.ffn_out = nn.Linear(shape.intermediate, shape.hidden)
        self.ffn_norm = nn.LayerNorm(shape.hidden, eps=shape.norm_eps)
        self.activation = ACT2FN[shape.activation]
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x_TH: Tensor, runs: Sequence[Run]) -> Tensor:
        mixed_TH = attend(self.qkv(x_TH), runs, self.heads, self.attention_dropout if self.training else 0.0)
        x_TH = self.attention_norm(x_TH + self.dropout(self.attention_out(mixed_TH)))
        ffn_TH = self.ffn_out(self.activation(self.ffn_in(x_TH)))
        y_TH: Tensor = self.ffn_norm(x_TH + self.dropout(ffn_TH))
        return y_TH


class Backbone(nn.Module):
    """Embeddings and layers; the caller drives them, since only it knows who is still active."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embeddings = Embeddings(shape)
        self.layers = nn.ModuleList(EncoderLayer(shape) for _ in range(shape.layers))
