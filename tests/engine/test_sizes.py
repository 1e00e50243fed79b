"""How much a device works on at once follows from its memory."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.early_exit import EarlyExitModel
from models.families.shape import Shape
from pipeline.engine.config import EngineConfig
from pipeline.engine.loaded import LoadedModel
from pipeline.engine.memory import MAX_GPU_BUDGET, cpu_sizes, gpu_sizes
from tests.support.samples import SHAPE

BASE = dataclasses.replace(SHAPE, layers=12, hidden=768, intermediate=3072, attention_heads=12)
GB = 10**9


def planned_bytes(shape: Shape, dtype: torch.dtype, free: int) -> int:
    """Add up what is held at once: hidden states in two buffers with their spare, and what a micro-batch makes on its way."""
    sizes = gpu_sizes(free, shape, dtype)
    states = sizes.resident_tokens * 2 * shape.hidden * dtype.itemsize * 9 // 8
    layer = sizes.token_budget * (6 * shape.hidden + shape.intermediate) * dtype.itemsize
    first = sizes.first_tokens * 2 * shape.attention_heads * shape.hidden * dtype.itemsize
    return states + max(layer, first)


def test_bert_base_by_hand() -> None:
    sizes = gpu_sizes(78 * GB, BASE, torch.bfloat16)
    assert sizes.token_budget == MAX_GPU_BUDGET == 262_144
    assert 16_000_000 < sizes.resident_tokens < 17_000_000
    assert 65_536 < sizes.first_tokens < 131_072
    small = gpu_sizes(6 * GB, BASE, torch.bfloat16)
    assert 50_000 < small.token_budget < 100_000
    assert 1_000_000 < small.resident_tokens < 1_100_000


@given(
    free=st.integers(2 * GB, 192 * GB),
    hidden=st.sampled_from([312, 384, 768, 1024, 2560]),
    heads=st.sampled_from([6, 12, 16, 32]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_what_is_planned_fits_with_something_to_spare(free: int, hidden: int, heads: int, dtype: torch.dtype) -> None:
    shape = dataclasses.replace(BASE, hidden=hidden, intermediate=4 * hidden, attention_heads=heads)
    sizes, larger = gpu_sizes(free, shape, dtype), gpu_sizes(2 * free, shape, dtype)
    assert 0.5 * free < planned_bytes(shape, dtype, free) < 0.81 * free
    assert sizes.token_budget <= larger.token_budget <= MAX_GPU_BUDGET
    assert sizes.resident_tokens < larger.resident_tokens


@pytest.mark.parametrize("free", [0, 1, 10**6])
def test_a_device_without_memory_is_tried_with_one_row_at_a_time(free: int) -> None:
    assert min(gpu_sizes(free, BASE, torch.float32)) >= 1


def test_settings_come_before_what_the_device_has(exit_model: EarlyExitModel) -> None:
    assert LoadedModel(exit_model, EngineConfig(dtype="fp32")).sizes == cpu_sizes(exit_model.shape.hidden)
    assert cpu_sizes(768)[:2] == (1024, 1 << 20)
    loaded = LoadedModel(exit_model, EngineConfig(dtype="fp32", token_budget=128))
    assert (loaded.token_budget, loaded.sizes.resident_tokens) == (128, 1 << 20)
