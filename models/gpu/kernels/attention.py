"""Attention inside rows of up to 128 tokens, whose whole length fits into one block.

A block of 16, 32, 64 or 128 tokens is chosen by the row's own length: a row is computed in the same way whatever its neighbours
are, and a short one is not padded to the block of a kernel for long ones. In 16 bits one program holds a row and head; in fp32,
which has no matrix instructions, that would not fit into registers, so programs take the block in steps.

Legend of suffixes: T tokens, H hidden, Q queries of a step, K keys of a step, D width of a head.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.gpu import plain
from models.gpu.kernels.softmax import add_keys
from models.gpu.rows import RaggedRows, Span

MAX_WIDTH = 128
"""Widest heads: the registers and shared memory of a program hold no wider ones."""
FP32_STEP, FP32_WARPS = 32, 4
"""Tokens and warps of a step in fp32."""
WARPS = {16: 1, 32: 2, 64: 4, 128: 4}
"""Warps of a program in 16 bits, by its block; heads wider than WIDE have twice as many."""
WIDE = 64


@triton.jit(do_not_specialize=["first_row"])
def _attend(
    qkv: tl.tensor,
    out: tl.tensor,
    bounds: tl.tensor,
    first_row: tl.tensor,
    scale: tl.tensor,
    HIDDEN: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    row, head = first_row + tl.program_id(0), tl.program_id(1)
    start = tl.load(bounds + row)
    length = tl.load(bounds + row + 1) - start
    qkv += start.to(tl.int64) * (3 * HIDDEN) + head * WIDTH
    out += start.to(tl.int64) * HIDDEN + head * WIDTH
    column_1D = tl.arange(0, COLUMNS)[None, :]
    query_Q1 = (tl.program_id(2) * STEP + tl.arange(0, STEP))[:, None]
    mask_QD = (query_Q1 < length) & (column_1D < WIDTH)
    q_QD = tl.load(qkv + query_Q1 * (3 * HIDDEN) + column_1D, mask_QD, 0.0)
    best_Q = tl.full([STEP], float("-inf"), tl.float32)
    sum_Q = tl.zeros([STEP], tl.float32)
    mixed_QD = tl.zeros([STEP, COLUMNS], tl.float32)
    for first in range(0, BLOCK, STEP):  # once, where a step is the block
        key_K = first + tl.arange(0, STEP)
        mask_KD = (key_K < length)[:, None] & (column_1D < WIDTH)
        k_KD_pointer = qkv + HIDDEN + key_K[:, None] * (3 * HIDDEN) + column_1D
        k_KD = tl.load(k_KD_pointer, mask_KD, 0.0)
        v_KD = tl.load(k_KD_pointer + HIDDEN, mask_KD, 0.0)
        scores_QK = tl.dot(q_QD, tl.trans(k_KD), input_precision="ieee") * scale
        weights_QK, shrink_Q, best_Q, sum_Q = add_keys(scores_QK, (key_K < length)[None, :], best_Q, sum_Q)
        mixed_QD = mixed_QD * shrink_Q[:, None]
        mixed_QD += tl.dot(weights_QK.to(v_KD.dtype), v_KD, input_precision="ieee")
    mixed_QD /= sum_Q[:, None]
    tl.store(out + query_Q1 * HIDDEN + column_1D, mixed_QD.to(out.dtype.element_ty), mask_QD)


def attend(qkv_T3H: Tensor, rows: RaggedRows, heads: int) -> Tensor:
    """Compute multi-head attention inside every row, [T, 3H] -> [T, H]; rows that fit into no block are left to torch."""
    width = qkv_T3H.shape[1] // (3 * heads)
    if width > MAX_WIDTH:
        return plain.attend(qkv_T3H, rows, heads)
    out_TH = qkv_T3H.new_empty(len(qkv_T3H), heads * width)
    for span in rows.spans:
        _attend_span(qkv_T3H, rows, span, heads, out_TH)
    if rows.longer is not None:
        out_TH[rows.longer.tokens] = plain.attend(qkv_T3H[rows.longer.tokens], rows.longer, heads)
    return out_TH


def _attend_span(qkv_T3H: Tensor, rows: RaggedRows, span: Span, heads: int, out_TH: Tensor) -> None:
    hidden = out_TH.shape[1]
    width, fp32 = hidden // heads, qkv_T3H.dtype == torch.float32
    step = min(span.block, FP32_STEP) if fp32 else span.block
    _attend[(span.stop - span.start, heads, span.block // step)](
        qkv_T3H,
        out_TH,
        rows.bounds,
        span.start,
        width**-0.5,
        HIDDEN=hidden,
        WIDTH=width,
        BLOCK=span.block,
        STEP=step,
        COLUMNS=max(16, triton.next_power_of_2(width)),  # a matrix instruction takes no fewer
        num_warps=FP32_WARPS if fp32 else WARPS[span.block] * (2 if width > WIDE else 1),
        num_stages=1,
    )
