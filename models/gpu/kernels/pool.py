"""Attention of a few queries over the tokens of their row, as first tokens need it: one program a row, any length.

The tokens serve as keys and as values, so a program reads them once. It holds a row's queries and sums whole where they fit,
as one chunk of columns or as three (768 is three times 256: Triton's blocks are powers of 2). Wider or fp32 ones it takes chunk
by chunk, a program for each chunk of the output.

Legend of suffixes: N queries of a row, B rows, T tokens, H hidden, L tokens of a block, C columns of a chunk.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.gpu.kernels.softmax import add_keys
from models.gpu.rows import RaggedRows

QUERIES, TOKENS = 16, 16
"""Queries and tokens of a block: the least that a matrix instruction takes."""
MAX_HELD = 1024
"""Columns that a program holds whole in 16 bits; more do not fit into its registers."""
LOOPED_CHUNK = 128
"""Columns of a chunk where a program does not hold them all."""


@triton.jit(do_not_specialize=["rows"])
def _pool(
    asked: tl.tensor,
    x: tl.tensor,
    out: tl.tensor,
    bounds: tl.tensor,
    rows: tl.tensor,
    scale: tl.tensor,
    HEADS: tl.constexpr,
    HIDDEN: tl.constexpr,
    CHUNK: tl.constexpr,
    HELD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
) -> None:
    row, heads_N = tl.program_id(0), tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    start = tl.load(bounds + row)
    length = tl.load(bounds + row + 1) - start
    x += start.to(tl.int64) * HIDDEN
    first_N1 = ((heads_N.to(tl.int64) * rows + row) * HIDDEN)[:, None]
    real_N1 = (heads_N < HEADS)[:, None]
    columns_1C = tl.arange(0, CHUNK)[None, :]
    if HELD == 0:  # this program's chunk of the output; it goes through all of the input
        columns_1C += tl.program_id(1) * CHUNK
    second_1C, third_1C = columns_1C + CHUNK, columns_1C + 2 * CHUNK
    q0_NC = tl.load(asked + first_N1 + columns_1C, real_N1 & (columns_1C < HIDDEN), 0.0)
    mixed0_NC = tl.zeros([BLOCK_N, CHUNK], tl.float32)
    if HELD == 3:
        q1_NC = tl.load(asked + first_N1 + second_1C, real_N1 & (second_1C < HIDDEN), 0.0)
        q2_NC = tl.load(asked + first_N1 + third_1C, real_N1 & (third_1C < HIDDEN), 0.0)
        mixed1_NC = tl.zeros([BLOCK_N, CHUNK], tl.float32)
        mixed2_NC = tl.zeros([BLOCK_N, CHUNK], tl.float32)
    best_N = tl.full([BLOCK_N], float("-inf"), tl.float32)
    sum_N = tl.zeros([BLOCK_N], tl.float32)
    for first in range(0, length, BLOCK_L):
        tokens_L1 = (first + tl.arange(0, BLOCK_L))[:, None]
        real_L1 = tokens_L1 < length
        x0_LC = tl.load(x + tokens_L1 * HIDDEN + columns_1C, real_L1 & (columns_1C < HIDDEN), 0.0)
        if HELD == 0:
            scores_NL = tl.zeros([BLOCK_N, BLOCK_L], tl.float32)
            for column in range(0, HIDDEN, CHUNK):
                at_1C = (column + tl.arange(0, CHUNK))[None, :]
                q_NC = tl.load(asked + first_N1 + at_1C, real_N1 & (at_1C < HIDDEN), 0.0)
                x_LC = tl.load(x + tokens_L1 * HIDDEN + at_1C, real_L1 & (at_1C < HIDDEN), 0.0)
                scores_NL += tl.dot(q_NC, tl.trans(x_LC), input_precision="ieee")
        else:
            scores_NL = tl.dot(q0_NC, tl.trans(x0_LC), input_precision="ieee")
        if HELD == 3:
            x1_LC = tl.load(x + tokens_L1 * HIDDEN + second_1C, real_L1 & (second_1C < HIDDEN), 0.0)
            x2_LC = tl.load(x + tokens_L1 * HIDDEN + third_1C, real_L1 & (third_1C < HIDDEN), 0.0)
            scores_NL += tl.dot(q1_NC, tl.trans(x1_LC), input_precision="ieee")
            scores_NL += tl.dot(q2_NC, tl.trans(x2_LC), input_precision="ieee")
        real_1L = (first + tl.arange(0, BLOCK_L) < length)[None, :]
        weights_NL, shrink_N, best_N, sum_N = add_keys(scores_NL * scale, real_1L, best_N, sum_N)
        weights_NL = weights_NL.to(x0_LC.dtype)
        mixed0_NC = mixed0_NC * shrink_N[:, None] + tl.dot(weights_NL, x0_LC, input_precision="ieee")
        if HELD == 3:
            mixed1_NC = mixed1_NC * shrink_N[:, None] + tl.dot(weights_NL, x1_LC, input_precision="ieee")
            mixed2_NC = mixed2_NC * shrink_N[:, None] + tl.dot(weights_NL, x2_LC, input_precision="ieee")
    out += first_N1
    inverse_N1 = (1.0 / sum_N)[:, None]
    tl.store(out + columns_1C, (mixed0_NC * inverse_N1).to(out.dtype.element_ty), real_N1 & (columns_1C < HIDDEN))
    if HELD == 3:
        tl.store(out + second_1C, (mixed1_NC * inverse_N1).to(out.dtype.element_ty), real_N1 & (second_1C < HIDDEN))
        tl.store(out + third_1C, (mixed2_NC * inverse_N1).to(out.dtype.element_ty), real_N1 & (third_1C < HIDDEN))


def pool(asked_NBH: Tensor, x_TH: Tensor, rows: RaggedRows, scale: float) -> Tensor:
    """Mix the tokens of every row as each of its N queries weighs them, softmax(scale x asked . x) x: [N, B, H]."""
    heads, count, hidden = asked_NBH.shape
    held, chunk = _chunks(hidden, asked_NBH.dtype)
    out_NBH = torch.empty_like(asked_NBH)
    _pool[(count, 1 if held else triton.cdiv(hidden, chunk), triton.cdiv(heads, QUERIES))](
        asked_NBH,
        x_TH,
        out_NBH,
        rows.bounds,
        count,
        scale,
        HEADS=heads,
        HIDDEN=hidden,
        CHUNK=chunk,
        HELD=held,
        BLOCK_N=QUERIES,
        BLOCK_L=TOKENS,
        num_warps=4,
        num_stages=3 if held else 1,
    )
    return out_NBH


def _chunks(hidden: int, dtype: torch.dtype) -> tuple[int, int]:
    """Return how many chunks of columns a program holds, 1 or 3, or 0 where it goes through them; and the columns of one."""
    if dtype == torch.float32 or hidden > MAX_HELD:
        return 0, LOOPED_CHUNK
    one, three = (max(16, triton.next_power_of_2(triton.cdiv(hidden, held))) for held in (1, 3))
    return (3, three) if 3 * three < one else (1, one)
