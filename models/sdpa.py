"""torch's scaled_dot_product_attention, kept away from cuDNN."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

WITHOUT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Kernels that torch may choose on CUDA. cuDNN builds a plan for every new shape, and ragged rows always bring new ones."""


def without_cudnn(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which torch's attention is never computed by cuDNN."""
    return sdpa_kernel(WITHOUT_CUDNN) if device.type == "cuda" else nullcontext()


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, dropout: float = 0.0, scale: float | None = None
) -> Tensor:
    """Compute torch's `scaled_dot_product_attention`, by any of its kernels but cuDNN's; nothing else here calls it."""
    with without_cudnn(q.device):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
