"""Add and LayerNorm in one pass over memory; statistics and sums are in fp32.

Legend of suffixes: T tokens, H hidden, R tokens of a program, C columns of a program (the next power of 2).
"""

import triton
import triton.language as tl
from torch import Tensor, nn

TOKENS, WARPS = 4, 4
"""Tokens and warps of a program."""


@triton.jit(do_not_specialize=["tokens"])
def _add_norm(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    tokens: tl.tensor,
    eps: tl.tensor,
    HIDDEN: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
) -> None:
    token_R1 = (tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS))[:, None]
    column_1C = tl.arange(0, COLUMNS)[None, :]
    mask_RC = (token_R1 < tokens) & (column_1C < HIDDEN)
    at_RC = token_R1 * HIDDEN + column_1C
    y_RC = tl.load(x + at_RC, mask_RC, 0.0).to(tl.float32) + tl.load(residual + at_RC, mask_RC, 0.0).to(tl.float32)
    y_RC = layer_norm(y_RC, weight, bias, eps, column_1C, HIDDEN)
    tl.store(out + at_RC, y_RC.to(out.dtype.element_ty), mask_RC)


@triton.jit
def layer_norm(
    y_RC: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    eps: tl.tensor,
    column_1C: tl.tensor,
    HIDDEN: tl.constexpr,
) -> tl.tensor:
    """Normalize rows of HIDDEN columns, which further columns follow that are zero: [R, C] float32."""
    mean_R = tl.sum(y_RC, 1) / HIDDEN
    centered_RC = tl.where(column_1C < HIDDEN, y_RC - mean_R[:, None], 0.0)
    inverse_R = tl.rsqrt(tl.sum(centered_RC * centered_RC, 1) / HIDDEN + eps)
    weight_1C = tl.load(weight + column_1C, column_1C < HIDDEN, 0.0).to(tl.float32)
    bias_1C = tl.load(bias + column_1C, column_1C < HIDDEN, 0.0).to(tl.float32)
    return centered_RC * inverse_R[:, None] * weight_1C + bias_1C


def add_norm(x_TH: Tensor, residual_TH: Tensor, norm: nn.LayerNorm, out_TH: Tensor) -> None:
    """Write LayerNorm(x + residual) to `out`, which may be either of the two; all are contiguous."""
    tokens, hidden = x_TH.shape
    _add_norm[(triton.cdiv(tokens, TOKENS),)](
        x_TH,
        residual_TH,
        norm.weight,
        norm.bias,
        out_TH,
        tokens,
        norm.eps,
        HIDDEN=hidden,
        COLUMNS=triton.next_power_of_2(hidden),
        TOKENS=TOKENS,
        num_warps=WARPS,
    )
