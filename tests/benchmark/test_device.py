"""What is measured of a device: the time that kernels cover, its ceiling, and the table's columns where there is a GPU."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.benchmark.ceiling import matmul_ceiling
from pipeline.benchmark.device_use import DeviceUse, covered, device_use
from pipeline.benchmark.measure import Timing
from pipeline.benchmark.shapes import random_model
from pipeline.benchmark.summary import summarize_use, table
from pipeline.benchmark.systems import FULL


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), max_size=12))
def test_covered_is_what_intervals_cover_together(intervals: list[tuple[int, int]]) -> None:
    starts = np.array([start for start, _ in intervals], np.float64)
    lengths = np.array([length for _, length in intervals], np.float64)
    seconds = {second for start, length in intervals for second in range(start, start + length)}
    assert covered(starts, starts + lengths) == len(seconds)


def test_the_use_of_a_device_is_a_fraction_of_the_median_round() -> None:
    timings = {"a": Timing(seconds=[1.0, 4.0, 2.0]), "b": Timing(seconds=[1.0])}
    use = {"a": DeviceUse(kernels=960, seconds=1.7), "b": DeviceUse(kernels=7, seconds=1.02)}
    assert summarize_use(timings, use) == {"a": {"busy": 0.85, "kernels": 960}, "b": {"busy": 1.0, "kernels": 7}}


def test_the_table_has_columns_for_a_gpu_where_there_is_one() -> None:
    timings = {FULL: Timing(seconds=[1.0]), "hf": Timing(seconds=[2.0])}
    result: dict[str, Any] = {"rows_per_s": {FULL: 1000.0, "hf": 500.0}, "wall_speedup": 2.5}
    assert table(timings, result).splitlines()[2:] == [
        "| full-depth | 1,000.0 | 1.00 | 1.00 |",
        "| hf | 500.0 | 0.50 | 1.00 |",
        "",
        "wall_speedup: 2.5",
    ]
    result["device_use"] = {FULL: {"busy": 0.85, "kernels": 7024}}
    assert table(timings, result).splitlines()[:4] == [
        "| system | rows/s | against full depth | slowest / fastest round | GPU busy | kernels |",
        "| --- | --- | --- | --- | --- | --- |",
        "| full-depth | 1,000.0 | 1.00 | 1.00 | 0.85 | 7,024 |",
        "| hf | 500.0 | 0.50 | 1.00 |  |  |",
    ]


def test_the_ceiling_is_a_positive_rate_and_leaves_the_threads_as_they_were() -> None:
    before = torch.get_num_threads()
    shape = random_model("1x64", "pooled").shape
    assert matmul_ceiling(shape, torch.device("cpu"), torch.float32) > 0
    assert torch.get_num_threads() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_kernels_are_counted_and_the_ceiling_is_measured_on_a_gpu() -> None:
    x_HH = torch.randn(4096, 4096, device="cuda")
    torch.mm(x_HH, x_HH)
    torch.cuda.synchronize()
    use = device_use(lambda: [torch.mm(x_HH, x_HH) for _ in range(3)])
    assert use.kernels >= 3
    assert use.seconds > 0
    assert matmul_ceiling(random_model("1x64", "pooled").shape, torch.device("cuda"), torch.float16) > 0
