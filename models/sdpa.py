"""torch's `scaled_dot_product_attention`, for all of this repository."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

WITHOUT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""cuDNN builds a plan for every new shape, and ragged rows bring new shapes in every batch."""


def without_cudnn(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which torch chooses another kernel than cuDNN's on this device."""
    return sdpa_kernel(WITHOUT_CUDNN) if device.type == "cuda" else nullcontext()


def sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Compute `F.scaled_dot_product_attention` of [..., L, D] tensors; on CUDA by a kernel of torch, never by cuDNN."""
    with without_cudnn(query.device):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale)
