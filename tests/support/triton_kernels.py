"""Triton's kernels for tests: compiled where there is a GPU, else interpreted, which is slow."""

import pytest
import torch

from models.gpu.dispatch import triton_kernels

pytest.importorskip("triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KERNELS = triton_kernels()
SIXTEEN_BITS = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16
"""The interpreter multiplies bf16 as if its bits were whole numbers; fp16 takes the same path through the kernels."""
