"""Dropout that takes one random byte an element on CPUs.

torch draws its masks there one element after the other on one thread, which was a quarter of a training step (6x384, 2 cores).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Module):
    """Takes the place of nn.Dropout (Srivastava et al. 2014); on CPUs the probability is rounded to a 256th."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p if self.training else 0.0)


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero a share `p` of the elements at random and scale the others so that the mean stays."""
    if p == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    dropped = round(p * 256)
    words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
    return x * kept.to(x.dtype).mul_(256 / (256 - dropped))
