"""What the kernels shall compute, one row, one head and one token at a time, in float64.

Legend of suffixes: T tokens, B rows, H hidden, L tokens of a row, D width of a head, N queries of a row.
"""

import numpy as np
import torch
from torch import Tensor

from models.gpu.rows import RaggedRows
from tests.support.triton_kernels import DEVICE

POISON = torch.nan
MARGIN = 150
"""Tokens of poison before and after the rows of a buffer: more than any kernel could read by mistake in one block."""


def rows_of(lengths: list[int]) -> RaggedRows:
    return RaggedRows.of(np.array(lengths, np.int64), DEVICE)


def poisoned(values: Tensor) -> Tensor:
    """Return the same matrix in the midst of memory full of NaN."""
    buffer = values.new_full((len(values) + 2 * MARGIN, *values.shape[1:]), POISON)
    buffer[MARGIN:-MARGIN] = values
    return buffer[MARGIN:-MARGIN]


def random(shape: tuple[int, ...], dtype: torch.dtype, seed: int, spread: float = 1.0) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * spread
    return drawn.to(DEVICE, dtype)


def softmax(scores_L: Tensor) -> Tensor:
    powers = (scores_L - scores_L.max()).exp()
    return powers / powers.sum()


def attention(qkv_T3H: Tensor, lengths: list[int], heads: int, *, scale: float | None = None, keys: int = 0) -> Tensor:
    """Compute attention inside every row; `keys` more or fewer keys than the row has make it wrong."""
    qkv_T3H = qkv_T3H.cpu().double()
    hidden = qkv_T3H.shape[1] // 3
    width = hidden // heads
    out_TH = torch.empty(len(qkv_T3H), hidden, dtype=torch.float64)
    start = 0
    for length in lengths:
        seen = slice(start, max(start + length + keys, start + 1))
        for head in range(heads):
            q, k, v = (qkv_T3H[:, part * hidden + head * width :][:, :width] for part in range(3))
            for token in range(start, start + length):
                weights_L = softmax((k[seen] @ q[token]) * (width**-0.5 if scale is None else scale))
                out_TH[token, head * width : (head + 1) * width] = weights_L @ v[seen]
        start += length
    return out_TH


def pool(asked_NBH: Tensor, x_TH: Tensor, lengths: list[int], scale: float, *, keys: int = 0) -> Tensor:
    """Mix the tokens of every row as its queries weigh them; `keys` more or fewer tokens make it wrong."""
    asked_NBH, x_TH = asked_NBH.cpu().double(), x_TH.cpu().double()
    out_NBH = torch.empty_like(asked_NBH)
    start = 0
    for row, length in enumerate(lengths):
        tokens_LH = x_TH[start : max(start + length + keys, start + 1)]
        for query in range(len(asked_NBH)):
            out_NBH[query, row] = softmax((tokens_LH @ asked_NBH[query, row]) * scale) @ tokens_LH
        start += length
    return out_NBH


def add_norm(x_TH: Tensor, residual_TH: Tensor, norm: torch.nn.LayerNorm, *, eps: float | None = None) -> Tensor:
    """Normalize the sum of both, token by token."""
    weight = norm.weight.detach().cpu().double()
    bias = torch.zeros_like(weight) if norm.bias is None else norm.bias.detach().cpu().double()
    out = []
    for y_H in x_TH.cpu().double() + residual_TH.cpu().double():
        centered_H = y_H - y_H.mean()
        variance = (centered_H**2).mean() + (norm.eps if eps is None else eps)
        out.append(centered_H / variance.sqrt() * weight + bias)
    return torch.stack(out)


def differs(got: Tensor, expected: Tensor) -> float:
    """Return the largest difference; NaN, which nothing equals, is infinite."""
    difference = (got.cpu().double() - expected.cpu().double()).abs()
    return float(difference.nan_to_num(torch.inf).max())
