"""Time torch's operators for int8 products against fp32 at the sizes of BERT-base's feed-forward block, 768 -> 3072 -> 768.

python docs/results/speed/int8_operators.py --threads 1 --tokens 512 1024 4096
"""

import argparse
import time
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

HIDDEN, INNER = 768, 3072
ROUNDS = 5
SLOW_SECONDS = 0.5
"""An operator that takes longer at once is not repeated, nor measured with more tokens."""


def operators(tokens: int, with_int8_input: bool) -> dict[str, Callable[[], Tensor]]:
    """Return the products to time, by name; those of a first product have GELU inside where the operator can do it."""
    x, weight, back = torch.randn(tokens, HIDDEN), torch.randn(INNER, HIDDEN) / 28, torch.randn(HIDDEN, INNER) / 55
    inner, bias, bias_back = F.gelu(x @ weight.T), torch.zeros(INNER), torch.zeros(HIDDEN)
    (whole, scales), (whole_back, scales_back) = rounded(weight), rounded(back)
    scale, step = float(x.abs().max()) / 127, float(inner.max()) / 200
    x_int8 = (x / scale).round().to(torch.int8)
    x_uint8, inner_uint8 = x_int8.view(torch.uint8).bitwise_xor(128), (inner / step + 20).round().to(torch.uint8)
    packed = torch.ops.onednn.qlinear_prepack(whole, [tokens, HIDDEN]), scales, torch.zeros(INNER, dtype=torch.int64)
    packed_back = torch.ops.onednn.qlinear_prepack(whole_back, [tokens, INNER]), scales_back, torch.zeros(HIDDEN).long()
    fbgemm = torch.ops.quantized.linear_prepack(quantized(whole, scales), bias)
    x_quint8 = torch.quantize_per_tensor(x, scale, 128, torch.quint8)
    onednn, transposed = torch.ops.onednn.qlinear_pointwise, whole.T.contiguous()
    to_uint8: tuple[object, ...] = (step, 20, torch.uint8, "gelu", [], "none")
    found: dict[str, Callable[[], Tensor]] = {
        "first: fp32, GELU apart": lambda: F.gelu(F.linear(x, weight, bias)),
        "first: onednn uint8 x int8": lambda: onednn(x_uint8, scale, 128, *packed, bias, *to_uint8),
        "first: quantized.linear, no GELU": lambda: torch.ops.quantized.linear(x_quint8, fbgemm, step, 20),
        "first: quantized.linear_dynamic, no GELU": lambda: torch.ops.quantized.linear_dynamic(x, fbgemm),
        "first: _int_mm, sums in int32": lambda: torch._int_mm(x_int8, transposed),
        "second: fp32": lambda: F.linear(inner, back, bias_back).add_(x),
        "second: onednn uint8 x int8": lambda: onednn.binary(
            inner_uint8, step, 20, *packed_back, x, bias_back, 1.0, 0, torch.float32, 1.0, 0, "add", 1.0, "none", [], ""
        ),
    }
    if with_int8_input:
        found["first: onednn int8 x int8"] = lambda: onednn(x_int8, scale, 0, *packed, bias, *to_uint8)
        found["first: _weight_int8pack_mm"] = lambda: torch.ops.aten._weight_int8pack_mm(x, whole, scales)
    return found


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a weight as int8, and the scale of each of its outputs."""
    scales = weight.abs().amax(1) / 127
    return (weight / scales[:, None]).round().to(torch.int8), scales


def quantized(whole: Tensor, scales: Tensor) -> Tensor:
    """Return a rounded weight as fbgemm wants it."""
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    return torch.quantize_per_channel(whole * scales[:, None], scales.double(), zeros, 0, torch.qint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 512, 1024, 4096])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")  # quantized tensors are deprecated
    slow = False
    for tokens in args.tokens:
        found = operators(tokens, with_int8_input=not slow)
        fastest = dict.fromkeys(found, float("inf"))
        for _ in range(ROUNDS):
            for name, product in found.items():
                if fastest[name] == float("inf") or fastest[name] < SLOW_SECONDS:
                    started = time.perf_counter()
                    product()
                    fastest[name] = min(fastest[name], time.perf_counter() - started)
        slow = True
        print(f"{tokens} tokens, {args.threads} threads")
        for name, seconds in fastest.items():
            print(f"  {name:42} {1000 * seconds:10.2f} ms {2e-9 * tokens * HIDDEN * INNER / seconds:8.1f} GOP/s")


if __name__ == "__main__":
    main()
