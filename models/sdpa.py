"""torch's scaled_dot_product_attention, kept away from cuDNN."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

WITHOUT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Kernels that torch may choose on CUDA. cuDNN builds a plan for every new shape, and ragged rows always bring new ones."""


class ScoreBias(Protocol):
    """What is added to the scores of attention by where a query and a key are in their row."""

    @property
    def nothing_up_to(self) -> int:
        """The longest row in which nothing is added."""
        ...

    def of(self, length: int, padding: int, like: Tensor) -> Tensor | None:
        """Return the biases of a row's L queries for its keys and for so many keys of padding, in the dtype of `like`.

        They are [1, N or 1, L, L + padding], and -inf where a query does not see a key, as none sees padding; None is 0
        everywhere, with padding left to the caller.
        """
        ...

    def of_first(self, length: int, like: Tensor) -> Tensor | None:
        """Return the biases of a row's first query for its keys, [N or 1, L], or None for 0 everywhere."""
        ...


def without_cudnn(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which torch's attention is never computed by cuDNN."""
    return sdpa_kernel(WITHOUT_CUDNN) if device.type == "cuda" else nullcontext()


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, dropout: float = 0.0, scale: float | None = None
) -> Tensor:
    """Compute torch's `scaled_dot_product_attention`, by any of its kernels but cuDNN's; nothing else here calls it."""
    with without_cudnn(q.device):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
