"""Kernels for attention inside rows, and from a few queries over their row, against slow oracles; and that they could fail."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.gpu import oracles
from tests.models.gpu.oracles import differs, poisoned, random, rows_of
from tests.support.triton_kernels import DEVICE, KERNELS, SIXTEEN_BITS

TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
DTYPES = [torch.float32, SIXTEEN_BITS]
EDGES = [1, 15, 16, 17, 33, 64, 128, 129]
"""Rows of one token, of exactly a block, of one more, and of more than any block."""
LENGTHS = st.lists(st.integers(1, 140) | st.sampled_from([1, 16, 32, 64, 128, 300]), min_size=1, max_size=3).map(sorted)


def attend(qkv_T3H: torch.Tensor, lengths: list[int], heads: int) -> torch.Tensor:
    return KERNELS.attend(qkv_T3H, rows_of(lengths), heads)


@given(lengths=LENGTHS, heads=st.integers(1, 2), width=st.sampled_from([8, 16, 24, 33]), seed=st.integers(0, 9))
@settings(max_examples=6)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_equals_one_token_at_a_time(
    dtype: torch.dtype, lengths: list[int], heads: int, width: int, seed: int
) -> None:
    qkv_T3H = random((sum(lengths), 3 * heads * width), dtype, seed)
    got = attend(poisoned(qkv_T3H), lengths, heads)
    assert got.shape == (sum(lengths), heads * width)
    assert differs(got, oracles.attention(qkv_T3H, lengths, heads)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_at_the_edges_of_blocks(dtype: torch.dtype) -> None:
    qkv_T3H = random((sum(EDGES), 3 * 16), dtype, seed=1)
    got = attend(poisoned(qkv_T3H), EDGES, 1)
    assert differs(got, oracles.attention(qkv_T3H, EDGES, 1)) < TOLERANCE[dtype]
    wrong: list[dict[str, Any]] = [{"scale": 0.26}, {"scale": 1.0}, {"keys": -1}, {"keys": 1}]
    for mistake in wrong:
        assert differs(got, oracles.attention(qkv_T3H, EDGES, 1, **mistake)) > 2 * TOLERANCE[dtype], mistake


@pytest.mark.parametrize("spread", [30.0, 1e-3])
def test_attention_of_large_and_of_small_values(spread: float) -> None:
    lengths = [3, 40]
    qkv_T3H = random((43, 3 * 16), torch.float32, 2, spread)
    assert differs(attend(qkv_T3H, lengths, 2), oracles.attention(qkv_T3H, lengths, 2)) < 1e-4 * spread


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, of NaN in other rows
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_of_a_row_is_the_same_whatever_its_neighbours_are(dtype: torch.dtype) -> None:
    length, heads, width = 21, 2, 16
    row = random((length, 3 * heads * width), dtype, seed=3)
    alone = attend(row, [length], heads)
    for before, after in [([2, 20], [21, 70, 129]), ([1], [])]:
        ahead, behind = sum(before), sum(after)
        qkv_T3H = torch.full((ahead + length + behind, 3 * heads * width), torch.nan, dtype=dtype, device=DEVICE)
        qkv_T3H[ahead : ahead + length] = row
        got = attend(qkv_T3H, [*before, length, *after], heads)[ahead : ahead + length]
        assert torch.equal(got, alone)


def test_heads_that_fit_into_no_program_are_left_to_torch() -> None:
    qkv_T3H = random((25, 3 * 160), torch.float32, seed=4)
    assert differs(attend(qkv_T3H, [5, 20], 1), oracles.attention(qkv_T3H, [5, 20], 1)) < 1e-5


@given(
    lengths=LENGTHS,
    queries=st.integers(1, 3) | st.just(17),
    hidden=st.sampled_from([8, 24, 48, 96, 100, 128]),
    seed=st.integers(0, 9),
)
@settings(max_examples=6)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pooling_equals_one_query_at_a_time(
    dtype: torch.dtype, lengths: list[int], queries: int, hidden: int, seed: int
) -> None:
    asked_NBH = random((queries, len(lengths), hidden), dtype, seed)
    x_TH = random((sum(lengths), hidden), dtype, seed + 1)
    got = KERNELS.pool(asked_NBH, poisoned(x_TH), rows_of(lengths), hidden**-0.5)
    assert differs(got, oracles.pool(asked_NBH, x_TH, lengths, hidden**-0.5)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("queries", "hidden"), [(12, 384), (12, 768), (16, 1024), (2, 1100)])
def test_pooling_in_the_widths_of_models(queries: int, hidden: int, dtype: torch.dtype) -> None:
    lengths = [1, 18]
    asked_NBH = random((queries, len(lengths), hidden), dtype, seed=5)
    x_TH = random((sum(lengths), hidden), dtype, seed=6)
    got = KERNELS.pool(asked_NBH, poisoned(x_TH), rows_of(lengths), 0.05)
    assert differs(got, oracles.pool(asked_NBH, x_TH, lengths, 0.05)) < 2 * TOLERANCE[dtype]
    for scale, keys in [(0.06, 0), (0.05, -1), (0.05, 1)]:
        wrong = oracles.pool(asked_NBH, x_TH, lengths, scale, keys=keys)
        assert differs(got, wrong) > 4 * TOLERANCE[dtype]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, of NaN in other rows
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pooling_a_row_is_the_same_whatever_its_neighbours_are(dtype: torch.dtype) -> None:
    length, hidden = 19, 48
    asked_N1H, row = random((2, 1, hidden), dtype, seed=7), random((length, hidden), dtype, seed=8)
    alone = KERNELS.pool(asked_N1H, row, rows_of([length]), 0.2)
    lengths = [3, length, 40]
    asked_NBH = torch.full((2, 3, hidden), torch.nan, dtype=dtype, device=DEVICE)
    x_TH = torch.full((sum(lengths), hidden), torch.nan, dtype=dtype, device=DEVICE)
    asked_NBH[:, 1:2], x_TH[3 : 3 + length] = asked_N1H, row
    assert torch.equal(KERNELS.pool(asked_NBH, x_TH, rows_of(lengths), 0.2)[:, 1:2], alone)
