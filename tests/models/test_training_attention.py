"""Attention with gradients: however a device runs it, values and gradients are those of one row at a time."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.attention import attend, attend_from_first
from models.length_group import LengthGroup
from models.training import attention as training

HEADS, HIDDEN = 2, 16
Groups = tuple[LengthGroup, ...]

groups = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 40)), min_size=1, max_size=4, unique_by=lambda g: g[1]
).map(lambda found: tuple(LengthGroup(*group) for group in sorted(found, key=lambda group: group[1])))


def lengths(rows: Groups) -> list[int]:
    return [group.length for group in rows for _ in range(group.rows)]


def one_by_one(qkv: Tensor, rows: Groups) -> Tensor:
    """Compute attention row by row, and zeros for padding."""
    tokens = sum(lengths(rows))
    parts = qkv[:tokens].split(lengths(rows))
    outputs = []
    for part in parts:
        q, k, v = part.view(len(part), 3, HEADS, -1).permute(1, 2, 0, 3)
        outputs.append(F.scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(len(part), HIDDEN))
    return torch.cat([*outputs, qkv.new_zeros(len(qkv) - tokens, HIDDEN)])


def mixed_one_by_one(asked: Tensor, x: Tensor, rows: Groups, scale: float) -> Tensor:
    parts = x[: sum(lengths(rows))].split(lengths(rows))
    return torch.stack([(scale * query @ part.T).softmax(-1) @ part for query, part in zip(asked, parts, strict=True)])


def values_and_gradients(compute: Callable[..., Tensor], weights: Tensor, *inputs: Tensor) -> list[Tensor]:
    """Return the output where it has weights, and the gradients of its weighted sum."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = compute(*leaves)[: len(weights)]
    (out * weights).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@given(groups, st.integers(0, 9))
def test_a_rectangle_attends_as_one_row_at_a_time(rows: Groups, padding: int) -> None:
    tokens = sum(lengths(rows))
    qkv, weights = torch.randn(tokens + padding, 3 * HIDDEN), torch.randn(tokens, HIDDEN)
    got = values_and_gradients(lambda x: training._attend_padded(x, rows, HEADS, 0.0), weights, qkv)
    by_group = values_and_gradients(lambda x: training._attend_by_group(x, rows, HEADS, 0.0), weights, qkv)
    expected = values_and_gradients(lambda x: one_by_one(x, rows), weights, qkv)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(by_group, expected)
    assert not got[1][tokens:].any()  # padding learns nothing


@given(groups, st.integers(0, 9))
def test_a_rectangle_mixes_as_one_row_at_a_time(rows: Groups, padding: int) -> None:
    tokens, count = sum(lengths(rows)), len(lengths(rows))
    asked, x = torch.randn(count, HEADS, HIDDEN), torch.randn(tokens + padding, HIDDEN)
    weights = torch.randn(count, HEADS, HIDDEN)
    got = values_and_gradients(lambda q, x: training._mix_padded(q, x, rows, 0.3), weights, asked, x)
    by_group = values_and_gradients(lambda q, x: training._mix_by_group(q, x, rows, 0.3), weights, asked, x)
    expected = values_and_gradients(lambda q, x: mixed_one_by_one(q, x, rows, 0.3), weights, asked, x)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(by_group, expected)


def test_rows_of_a_rectangle_lose_weights_to_dropout_and_keep_the_mean() -> None:
    torch.manual_seed(0)
    rows = (LengthGroup(400, 20),)
    qkv = torch.ones(8000, 3 * HIDDEN)
    out = training._attend_padded(qkv, rows, HEADS, 0.25)
    assert float(out.mean()) == pytest.approx(1.0, abs=0.01)
    assert float(out.std()) > 0.05


def flash_forward(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, bounds_k: Tensor, longest: int, longest_k: int, dropout: float,
    is_causal: bool, return_debug_mask: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Compute what FlashAttention's kernel does, sequence by sequence, on a CPU."""
    assert (bounds.dtype, is_causal, dropout) == (torch.int32, False, 0.0)
    assert longest == longest_k == int(bounds.diff().max())
    assert torch.equal(bounds, bounds_k)
    assert (int(bounds[0]), int(bounds[-1])) == (0, len(q))
    out, nothing = torch.empty_like(q), q.new_empty(0)
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        query, key, value = (x[start:end].transpose(0, 1) for x in (q, k, v))
        out[start:end] = F.scaled_dot_product_attention(query, key, value).transpose(0, 1)
    return out, nothing, nothing, nothing, nothing


def flash_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bounds: Tensor, *_: object
) -> tuple[Tensor, ...]:
    """Compute the gradients of `flash_forward` by hand: below an operator there is no autograd."""
    gradients = [torch.empty_like(x) for x in (q, k, v)]
    scale = q.shape[-1] ** -0.5
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        of_out, query, key, value = (x[start:end].transpose(0, 1) for x in (gradient, q, k, v))
        weights = (scale * query @ key.mT).softmax(-1)
        of_weights = of_out @ value.mT
        of_scores = scale * weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True))
        for found, made in zip((of_scores @ key, of_scores.mT @ query, weights.mT @ of_out), gradients, strict=True):
            made[start:end] = found.transpose(0, 1)
    return tuple(gradients)


@pytest.fixture
def flash_on_cpu() -> Iterator[None]:
    """Give the operator, which torch has on GPUs alone, a slow body for CPUs; its derivative stays torch's."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", flash_forward, "CPU")
    library.impl("_flash_attention_backward", flash_backward, "CPU")
    yield
    library._destroy()


@pytest.mark.parametrize("padding", [0, 3, 100])
@pytest.mark.parametrize("rows", [(LengthGroup(3, 5), LengthGroup(1, 16), LengthGroup(2, 37)), (LengthGroup(1, 1),)])
def test_ragged_rows_attend_as_one_row_at_a_time(rows: Groups, padding: int, flash_on_cpu: None) -> None:
    torch.manual_seed(0)
    tokens = sum(lengths(rows))
    qkv, weights = torch.randn(tokens + padding, 3 * HIDDEN), torch.randn(tokens, HIDDEN)
    got = values_and_gradients(lambda x: training._attend_ragged(x, rows, HEADS, 0.0), weights, qkv)
    expected = values_and_gradients(lambda x: one_by_one(x, rows), weights, qkv)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("head_width", [32, 64, 192])
def test_the_kernel_for_ragged_rows_has_gradients_and_dropout(head_width: int) -> None:
    rows = (LengthGroup(3, 5), LengthGroup(1, 16))
    qkv = torch.empty(40, 3 * 2 * head_width, dtype=torch.bfloat16, device="meta", requires_grad=True)
    out = training._attend_ragged(qkv, rows, 2, 0.1)
    out.sum().backward()
    assert out.shape == (40, 2 * head_width)
    assert qkv.grad is not None
    assert qkv.grad.shape == qkv.shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_gpu_attends_and_mixes_as_a_cpu(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rows = (LengthGroup(3, 5), LengthGroup(1, 16), LengthGroup(2, 37))
    tokens, device = sum(lengths(rows)), torch.device("cuda")
    qkv, weights = torch.randn(tokens + 7, 3 * HIDDEN), torch.randn(tokens, HIDDEN)
    close = 5e-2 if dtype == torch.bfloat16 else 1e-4
    expected = values_and_gradients(lambda x: attend(x, rows, HEADS), weights, qkv)
    on_gpu = (weights.to(device, dtype), qkv.to(device, dtype))
    got = values_and_gradients(lambda x: attend(x, rows, HEADS), *on_gpu)
    torch.testing.assert_close([x.float().cpu() for x in got], expected, atol=close, rtol=close)
    q, kv, bias = torch.randn(6, HIDDEN), torch.randn(2 * HIDDEN, HIDDEN), torch.randn(2 * HIDDEN)
    inputs = (q, qkv[:, :HIDDEN], kv, bias)
    from_first = lambda q, x, kv, bias: attend_from_first(q, x, rows, HEADS, kv, bias)  # noqa: E731
    expected = values_and_gradients(from_first, weights[:6], *inputs)
    got = values_and_gradients(from_first, *(x.to(device, dtype) for x in (weights[:6], *inputs)))
    torch.testing.assert_close([x.float().cpu() for x in got], expected, atol=0.1, rtol=0.1)
