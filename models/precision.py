"""What a model's matrices are computed in: 'fp32', 'bf16', 'int8', or 'auto', which knows the device."""

import torch

from models.cpu.int8 import can_use_int8, use_int8
from models.early_exit import EarlyExitModel
from models.errors import UnsupportedPrecisionError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.bfloat16}
"""What hidden states are held in."""


def best_dtype(device: torch.device) -> str:
    """Return 'bf16' where the device multiplies it in hardware (AMX, AVX512-BF16, Ampere and later), else 'fp32'."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    # torch has no public name for these yet; both have been there, unchanged, since torch 2.4.
    return "bf16" if torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported() else "fp32"


def autocast(device: torch.device) -> torch.autocast:
    """Return a context in which training computes: matrices in `best_dtype`, weights and sums in fp32."""
    dtype = DTYPES[best_dtype(device)]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def set_precision(model: EarlyExitModel, name: str, device: torch.device, tokens: int) -> str:
    """Move a model to the device and make it compute in this precision, in place; return the precision without 'auto'.

    `tokens` is about how many rows its matrices will have. Raises UnsupportedPrecisionError.
    """
    chosen = best_dtype(device) if name == "auto" else name
    for parameter in model.parameters():  # and no buffer: those are statistics, in fp32
        parameter.data = parameter.data.to(DTYPES[chosen])
    model.eval().to(device)
    if chosen == "int8":
        if not can_use_int8(device):
            raise UnsupportedPrecisionError(
                "dtype int8 needs a CPU that multiplies bf16 and int8 in hardware, which this is not; 'auto' runs anywhere"
            )
        use_int8(model, tokens)
    return chosen
