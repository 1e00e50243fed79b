"""Softmax over keys that come some at a time (Milakov and Gimelshein 2018), shared by the kernels for attention.

Legend of suffixes: Q queries, K keys of a step.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
"""Turns a power of e into one of 2, for which GPUs have an instruction."""


@triton.jit
def add_keys(
    scores_QK: tl.tensor, real_1K: tl.tensor, best_Q: tl.tensor, sum_Q: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Add some keys to a softmax whose highest score so far is `best` and whose denominator is `sum`.

    Return their weights before division, by how much earlier sums shrink, and the two with these keys. The first step has a
    real key, or all would be NaN.
    """
    scores_QK = tl.where(real_1K, scores_QK * LOG2_E, float("-inf"))
    new_Q = tl.maximum(best_Q, tl.max(scores_QK, 1))
    weights_QK = tl.exp2(scores_QK - new_Q[:, None])
    shrink_Q = tl.exp2(best_Q - new_Q)
    return weights_QK, shrink_Q, new_Q, sum_Q * shrink_Q + tl.sum(weights_QK, 1)
