"""Which matrix products this CPU computes in hardware.

torch has no public names for these yet; the private ones have been there, unchanged, since torch 2.4, and are named here alone.
"""

import torch


def multiplies_bf16() -> bool:
    """Return whether the CPU has instructions for products of bf16: AMX or AVX512-BF16."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def multiplies_int8() -> bool:
    """Return whether the CPU has instructions for products of int8: VNNI."""
    return torch.cpu._is_vnni_supported()
