"""Embeddings in one pass: word, position, token type and task type summed and normalized, in fp32.

A program takes some tokens of one row, so it knows their positions. In the RoBERTa line a pad token inside a text (it can be
typed) gets no number of its own: there a program counts the others before its first token.

Legend of suffixes: E embedding width, R tokens of a program, C columns of a program (the next power of 2).
"""

import triton
import triton.language as tl
from torch import Tensor

from models.backbone import Embeddings
from models.gpu import plain
from models.gpu.kernels.layer_norm import layer_norm
from models.gpu.rows import RaggedRows

TOKENS, WARPS = 4, 4
"""Tokens and warps of a program."""
COUNTED = tl.constexpr(128)
"""Tokens that are counted at once where pad tokens have no position."""


@triton.jit(do_not_specialize_on_alignment=["ids", "segments"])
def _embed(
    ids: tl.tensor,
    segments: tl.tensor,
    bounds: tl.tensor,
    words: tl.tensor,
    positions: tl.tensor,
    types: tl.tensor,
    tasks: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    eps: tl.tensor,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
    FIRST_POSITION: tl.constexpr,
    PAD: tl.constexpr,
    TYPES: tl.constexpr,
    TASKS: tl.constexpr,
) -> None:
    row, first = tl.program_id(0), tl.program_id(1) * TOKENS
    start = tl.load(bounds + row)
    length = tl.load(bounds + row + 1) - start
    if first < length:
        ids += start
        offset_R = first + tl.arange(0, TOKENS)
        real_R = offset_R < length
        id_R = tl.load(ids + offset_R, real_R, 0)
        position_R = offset_R
        if FIRST_POSITION > 0:
            before = 0
            for counted in range(0, first, COUNTED):
                earlier = counted + tl.arange(0, COUNTED)
                earlier_id = tl.load(ids + earlier, earlier < first, PAD)
                before += tl.sum((earlier_id != PAD).to(tl.int32), 0)
            numbered_R = (real_R & (id_R != PAD)).to(tl.int32)
            number_R = before + tl.cumsum(numbered_R, 0) + FIRST_POSITION - 1
            position_R = tl.where(numbered_R == 1, number_R, PAD)
        column_1C = tl.arange(0, COLUMNS)[None, :]
        mask_RC = real_R[:, None] & (column_1C < WIDTH)
        word_RC = id_R.to(tl.int64)[:, None] * WIDTH + column_1C
        y_RC = tl.load(words + word_RC, mask_RC, 0.0).to(tl.float32)
        y_RC += tl.load(positions + position_R[:, None] * WIDTH + column_1C, mask_RC, 0.0).to(tl.float32)
        if TYPES > 0:
            type_R = tl.minimum((offset_R >= tl.load(segments + row)).to(tl.int32), TYPES - 1)
            y_RC += tl.load(types + type_R[:, None] * WIDTH + column_1C, mask_RC, 0.0).to(tl.float32)
        if TASKS > 0:
            y_RC += tl.load(tasks + column_1C, column_1C < WIDTH, 0.0).to(tl.float32)
        y_RC = layer_norm(y_RC, weight, bias, eps, column_1C, WIDTH)
        out_R1 = (start + offset_R).to(tl.int64)[:, None] * WIDTH
        tl.store(out + out_R1 + column_1C, y_RC.to(out.dtype.element_ty), mask_RC)


def embed(embeddings: Embeddings, ids_T: Tensor, segments_B: Tensor, rows: RaggedRows, out_TE: Tensor) -> None:
    """Write the normalized sum of all tables' entries to `out`; ids and segments are int32.

    `segments` has the position in its row at which the second text of a pair starts; the row's length if there is none.
    """
    shape, words = embeddings.shape, embeddings.word_embeddings.weight
    if not shape.position_table or not shape.norm_bias:
        plain.embed(embeddings, ids_T, segments_B, rows, out_TE)
        return
    types = embeddings.token_type_embeddings.weight if shape.token_types else words
    tasks = embeddings.task_type_embeddings.weight if shape.task_types else words
    _embed[(len(rows), triton.cdiv(rows.longest, TOKENS))](
        ids_T,
        segments_B,
        rows.bounds,
        words,
        embeddings.position_embeddings.weight,
        types,
        tasks,
        embeddings.norm.weight,
        embeddings.norm.bias,
        out_TE,
        embeddings.norm.eps,
        WIDTH=shape.embedding,
        COLUMNS=triton.next_power_of_2(shape.embedding),
        TOKENS=TOKENS,
        FIRST_POSITION=shape.first_position,
        PAD=shape.pad_id,
        TYPES=shape.token_types,
        TASKS=shape.task_types,
        num_warps=WARPS,
    )
