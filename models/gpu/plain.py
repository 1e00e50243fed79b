"""What the kernels compute, in torch's own operators: for rows longer than a block, and where Triton cannot run.

Legend of suffixes: T tokens, B rows, H hidden, E embedding width, N queries of a row or attention heads, D width of a head.
"""

import torch
from torch import Tensor, nn

from models.attention import attend as attend_by_group
from models.attention import attend_ragged, mix_by_group, takes_ragged_rows
from models.backbone import Embeddings
from models.gpu.rows import RaggedRows


def embed(embeddings: Embeddings, ids_T: Tensor, segments_B: Tensor, rows: RaggedRows, out_TE: Tensor) -> None:
    """Write the normalized sum of all tables' entries to `out`; see models.gpu.kernels.embed."""
    out_TE.copy_(embeddings.norm(embeddings.summed(ids_T, segments_B, rows.lengths, rows.num_tokens)))


def attend(qkv_T3H: Tensor, rows: RaggedRows, heads: int) -> Tensor:
    """Compute multi-head attention inside every row, [T, 3H] -> [T, H]: by FlashAttention, or length by length."""
    if takes_ragged_rows(qkv_T3H, qkv_T3H.shape[1] // (3 * heads)):
        return attend_ragged(qkv_T3H, rows.bounds, rows.longest, heads)
    return attend_by_group(qkv_T3H, rows.groups, heads)


def add_norm(x_TH: Tensor, residual_TH: Tensor, norm: nn.LayerNorm, out_TH: Tensor) -> None:
    """Write LayerNorm(x + residual) to `out`, which may be either of the two."""
    out_TH.copy_(norm(x_TH + residual_TH))


def pool(asked_NBH: Tensor, x_TH: Tensor, rows: RaggedRows, scale: float) -> Tensor:
    """Mix the tokens of every row as each of its N queries weighs them, softmax(scale x asked . x) x: [N, B, H]."""
    return torch.cat(mix_by_group(asked_NBH.transpose(0, 1), x_TH, rows.groups, scale)).transpose(0, 1)
