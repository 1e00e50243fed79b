"""Precision of a model's matrix products: 'fp32', 'bf16', 'int8', or 'auto', which chooses by the device."""

import torch

from models.cpu.fused import POST_OPS
from models.cpu.int8 import can_use_int8, use_int8
from models.cpu.probe import Timing, is_worth_it, time_int8
from models.cpu.support import multiplies_bf16
from models.early_exit import EarlyExitModel
from models.errors import UnsupportedPrecisionError
from models.families.shape import Shape

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def best_dtype(device: torch.device) -> str:
    """Return 'bf16' where the device multiplies it in hardware (AMX, AVX512-BF16, Ampere and later), else 'fp32'."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if multiplies_bf16() else "fp32"


def precision_on(name: str, device: torch.device) -> str:
    """Name what a model computes in on a device: 'fp32', 'bf16', or 'int8 in' one of them, which is what surrounds the int8.

    `name` is one of the four that users give; `pipeline.identity.dtype_of` goes back.
    """
    if name in DTYPES:
        return name
    best = best_dtype(device)
    return best if name == "auto" else f"{name} in {best}"


def hidden_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the type of the hidden states; around products in int8 it is that of `best_dtype`."""
    return DTYPES[best_dtype(device) if precision == "int8" else precision]


def autocast(device: torch.device) -> torch.autocast:
    """Return the context in which training computes: matrix products in `best_dtype`, weights and sums in fp32."""
    dtype = DTYPES[best_dtype(device)]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def set_precision(model: EarlyExitModel, name: str, device: torch.device, tokens: int) -> str:
    """Move a model to the device and convert it to this precision, in place; return the precision that 'auto' stands for.

    `tokens` is about how many rows its matrices will have. Raises UnsupportedPrecisionError as `check_precision` does.
    """
    check_precision(name, model.shape, device)
    chosen = best_dtype(device) if name == "auto" else name
    for parameter in model.parameters():  # buffers stay as they are: those are statistics, in fp32
        parameter.data = parameter.data.to(hidden_dtype(chosen, device))
    model.eval().to(device)
    if chosen == "int8" and model.shape.activation in POST_OPS:  # with others there is little to gain
        use_int8(model, tokens)
    return chosen


def check_precision(name: str, shape: Shape, device: torch.device | None = None) -> None:
    """Raise UnsupportedPrecisionError if the device cannot compute in this precision, or is slower in int8 than without it.

    For int8 that is measured with a feed-forward block of this shape, which takes a quarter of a second for BERT-base in fp32.
    Without `device` it is this machine's GPU, if it has one, else its CPU.
    """
    if name != "int8":
        return
    if shape.pre_norm:
        raise UnsupportedPrecisionError(
            "dtype int8 is not for feed-forward blocks with a gate, which this model has; 'auto' runs anywhere"
        )
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not can_use_int8(device):
        raise UnsupportedPrecisionError(
            "dtype int8 needs a CPU that multiplies int8 in hardware (AVX512-VNNI), which this is not; 'auto' runs anywhere"
        )
    if shape.activation in POST_OPS:
        check_worth(time_int8(shape, hidden_dtype(name, device)), best_dtype(device))


def check_worth(timing: Timing, otherwise: str) -> None:
    """Raise UnsupportedPrecisionError if int8 is slower than the precision `otherwise`, which would be taken in its place."""
    if not is_worth_it(timing):
        raise UnsupportedPrecisionError(
            f"dtype int8 is slower than {otherwise} for this model on this CPU ({1000 * timing.int8:.3g} ms against "
            f"{1000 * timing.plain:.3g} ms for a feed-forward block); take 'auto', which is {otherwise} here"
        )
