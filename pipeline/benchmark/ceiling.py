"""The speed limit of a device: the FLOPs a second that it reaches on a model's matrix products alone."""

import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from models.cpu.fused import FusedLinear, can_fuse
from models.families import Shape

CEILING_TOKENS = {"cpu": (512, 1024, 2048), "cuda": (8192, 16384, 32768)}
"""The numbers of tokens that are tried in one matrix product, by device."""
CEILING_PASSES = 5
"""Passes over the model's matrices for every way to run them, the fastest of which counts."""


def matmul_ceiling(shape: Shape, device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOPs a second that the device reaches on this model's matrix products alone, layer by layer.

    Several ways are tried (tokens at once; all threads in one product, or a product for each thread; weights packed or not),
    and the fastest pass of the best one counts: neighbours on a shared machine slow passes down and never speed them up.
    """
    hidden, inner = shape.hidden, shape.intermediate
    sizes = [(hidden, 3 * hidden), (hidden, hidden), (hidden, inner), (inner, hidden)]
    weights = [torch.randn(out, into, device=device, dtype=dtype) * 0.02 for into, out in sizes * shape.layers]
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    products: list[Sequence[Callable[[Tensor], Tensor]]] = [[partial(F.linear, weight=weight) for weight in weights]]
    if can_fuse(device, dtype):
        products.append([FusedLinear(weight, None, 1024) for weight in weights])
    best = 0.0
    for tokens, ways, runners in itertools.product(CEILING_TOKENS[device.type], products, {1, threads}):
        inputs = {width: torch.randn(tokens, width, device=device, dtype=dtype) for width in (hidden, inner)}
        one_pass = partial(_pass, ways, [inputs[weight.shape[1]] for weight in weights], threads // runners, device)
        flops = 2.0 * tokens * runners * sum(weight.numel() for weight in weights)
        best = max(best, flops / _fastest(one_pass, runners))
    if device.type == "cpu":
        torch.set_num_threads(threads)
    return best


def _fastest(one_pass: Callable[[], None], runners: int) -> float:
    """Return the least seconds in which this many threads each make a pass."""
    seconds = []
    with ThreadPoolExecutor(runners) as pool:
        for _ in range(CEILING_PASSES):
            started = time.perf_counter()
            list(pool.map(lambda _runner: one_pass(), range(runners)))
            seconds.append(time.perf_counter() - started)
    return min(seconds)


def _pass(
    products: Sequence[Callable[[Tensor], Tensor]], inputs: Sequence[Tensor], threads: int, device: torch.device
) -> None:
    """Compute every product once, on this many threads, and wait until they are done."""
    if device.type == "cpu":
        torch.set_num_threads(threads)
    with torch.inference_mode():
        for product, x in zip(products, inputs, strict=True):
            product(x)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
