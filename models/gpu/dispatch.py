"""The choice between Triton's kernels and torch's own operators."""

import importlib.util
import subprocess
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.backbone import Embeddings
from models.gpu import plain
from models.gpu.rows import RaggedRows

LEAST_CAPABILITY = (8, 0)
"""Ampere: Triton supports no GPU before it."""


class Kernels(NamedTuple):
    """Operators over ragged rows that torch has not, or not in one pass over memory."""

    embed: Callable[[Embeddings, Tensor, Tensor, RaggedRows, Tensor], None]
    attend: Callable[[Tensor, RaggedRows, int], Tensor]
    add_norm: Callable[[Tensor, Tensor, nn.LayerNorm, Tensor], None]
    pool: Callable[[Tensor, Tensor, RaggedRows, float], Tensor]


def plain_kernels() -> Kernels:
    """Return the operators in plain torch, for any device."""
    return Kernels(plain.embed, plain.attend, plain.add_norm, plain.pool)


def triton_kernels() -> Kernels:
    """Return Triton's kernels; raise ImportError where it is not installed."""
    from models.gpu.kernels.attention import attend
    from models.gpu.kernels.embed import embed
    from models.gpu.kernels.layer_norm import add_norm
    from models.gpu.kernels.pool import pool

    return Kernels(embed, attend, add_norm, pool)


def kernels_for(device: torch.device) -> Kernels:
    """Return Triton's kernels for GPUs on which they run, else the operators in plain torch.

    Warns where a GPU could run them and this machine cannot build them: that is slower, and easily mended.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return plain_kernels()
    problem = what_triton_lacks()
    if problem is None:
        return triton_kernels()
    warnings.warn(f"slower operators take the place of Triton's kernels: {problem}", RuntimeWarning, stacklevel=2)
    return plain_kernels()


def what_triton_lacks() -> str | None:
    """Return what keeps Triton from launching kernels here, or None.

    It needs a C compiler and Python's headers, with which it builds what launches them when a process first asks.
    """
    if importlib.util.find_spec("triton") is None:
        return "it is not installed"
    from triton.runtime import driver

    try:
        driver.active.get_current_device()
    except (AssertionError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        return f"it needs a C compiler and Python's headers ({error})"
    return None
