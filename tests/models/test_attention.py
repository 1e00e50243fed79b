"""Attention over packed rows against one row at a time, and the bookkeeping of the kernel for ragged rows."""

import pytest
import torch
import torch.nn.functional as F

from models.attention import attend, lengths_of
from models.length_group import LengthGroup

RUNS = (LengthGroup(3, 5), LengthGroup(1, 16), LengthGroup(2, 37))
TOKENS = sum(group.tokens for group in RUNS)
HEADS, HIDDEN = 2, 32


def one_by_one(qkv_T3H: torch.Tensor) -> torch.Tensor:
    rows = torch.split(qkv_T3H, [*lengths_of(RUNS, torch.device("cpu")).tolist(), len(qkv_T3H) - TOKENS])
    outputs = []
    for row in rows[:-1]:
        q, k, v = row.view(len(row), 3, HEADS, -1).permute(1, 2, 0, 3)
        outputs.append(F.scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(len(row), HIDDEN))
    return torch.cat(outputs)


@pytest.mark.parametrize("padding", [0, 7])
@pytest.mark.parametrize("learning", [False, True])
def test_no_row_sees_another(padding: int, learning: bool) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(TOKENS + padding, 3 * HIDDEN)
    with torch.set_grad_enabled(learning):
        got = attend(qkv, RUNS, HEADS)
    assert got.shape == (TOKENS + padding, HIDDEN)
    torch.testing.assert_close(got[:TOKENS], one_by_one(qkv), atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_kernel_for_ragged_rows_gives_the_same() -> None:
    torch.manual_seed(0)
    qkv = torch.randn(TOKENS + 7, 3 * HIDDEN)
    with torch.no_grad():
        got = attend(qkv.to("cuda", torch.bfloat16), RUNS, HEADS).float().cpu()
    torch.testing.assert_close(got[:TOKENS], one_by_one(qkv), atol=3e-2, rtol=3e-2)
