"""The speed limit of a device: the FLOPs a second that it reaches on a model's matrix products alone."""

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from models.cpu.fused import FusedLinear, can_fuse
from models.families.shape import Shape

CPU_TOKENS = (512, 1024, 2048)
"""The numbers of tokens that are tried in one matrix product on a CPU."""
GPU_TOKENS = (8_192, 32_768, 131_072, 262_144)
"""The numbers of tokens that are tried on a GPU, where small products leave a part of the multiprocessors without work."""
CEILING_PASSES = 5
"""Passes over the model's matrices for every way to run them."""
Product = Callable[[Tensor], Tensor]


def matmul_ceiling(shape: Shape, device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOPs a second that the device reaches on this model's matrix products alone, layer by layer.

    Several ways are tried, and the best one counts. On CPUs: tokens at once; all threads in one product, or a product for each
    thread; weights packed or not; the fastest pass counts, since neighbours on a shared machine slow passes down and never
    speed them up. On a GPU: tokens at once; the median pass counts.
    """
    hidden, inner = shape.hidden, shape.intermediate
    wide = 2 * inner if shape.pre_norm else inner  # with a gate
    sizes = [(hidden, 3 * hidden), (hidden, hidden), (hidden, wide), (inner, hidden)]
    weights = [torch.randn(out, into, device=device, dtype=dtype) * 0.02 for into, out in sizes * shape.layers]
    flops_per_token = 2.0 * sum(weight.numel() for weight in weights)
    plain = [partial(F.linear, weight=weight) for weight in weights]
    if device.type == "cuda":
        rates = _gpu_rates(plain, [weight.shape[1] for weight in weights], device, dtype)
    else:
        packed = [FusedLinear(weight, None, 1024) for weight in weights] if can_fuse(device, dtype) else None
        ways: list[Sequence[Product]] = [plain, packed] if packed else [plain]
        rates = _cpu_rates(ways, [weight.shape[1] for weight in weights], dtype)
    return flops_per_token * max(rates)


def _gpu_rates(
    products: Sequence[Product], widths: Sequence[int], device: torch.device, dtype: torch.dtype
) -> list[float]:
    """Return tokens a second for every number of tokens that fits into the device's memory."""
    rates = []
    with contextlib.suppress(torch.OutOfMemoryError):
        for tokens in GPU_TOKENS:
            inputs = _inputs(tokens, widths, device, dtype)
            _pass(products, inputs)  # the warm-up: cuBLAS chooses its kernels and takes its workspace
            rates.append(tokens / statistics.median(_event_seconds(partial(_pass, products, inputs))))
    return rates


def _event_seconds(one_pass: Callable[[], None]) -> list[float]:
    """Return the device's own time of each of some passes, which follow each other without a gap."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(CEILING_PASSES + 1)]
    events[0].record()
    for event in events[1:]:
        one_pass()
        event.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1000 for before, after in itertools.pairwise(events)]


def _cpu_rates(ways: Sequence[Sequence[Product]], widths: Sequence[int], dtype: torch.dtype) -> list[float]:
    """Return tokens a second for every way, number of tokens and number of products at a time."""
    threads = torch.get_num_threads()
    rates = []
    for tokens, products, runners in itertools.product(CPU_TOKENS, ways, {1, threads}):
        inputs = _inputs(tokens, widths, torch.device("cpu"), dtype)
        rates.append(tokens * runners / _fastest(partial(_pass, products, inputs), runners, threads // runners))
    torch.set_num_threads(threads)
    return rates


def _fastest(one_pass: Callable[[], None], runners: int, threads: int) -> float:
    """Return the least seconds in which this many runners, of some threads each, all make a pass."""

    def run(_runner: int) -> None:
        torch.set_num_threads(threads)
        one_pass()

    seconds = []
    with ThreadPoolExecutor(runners) as pool:
        for _ in range(CEILING_PASSES):
            started = time.perf_counter()
            list(pool.map(run, range(runners)))
            seconds.append(time.perf_counter() - started)
    return min(seconds)


def _inputs(tokens: int, widths: Sequence[int], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Return the input of every product; those of the same width are one tensor."""
    by_width = {width: torch.randn(tokens, width, device=device, dtype=dtype) for width in set(widths)}
    return [by_width[width] for width in widths]


@torch.inference_mode()
def _pass(products: Sequence[Product], inputs: Sequence[Tensor]) -> None:
    """Compute every product once."""
    for product, x in zip(products, inputs, strict=True):
        product(x)
