"""When may a row leave? Pure functions from logits to uncertainty in [0, 1]."""

import math

import torch
from torch import Tensor


def normalised_entropy(logits_BC: Tensor) -> Tensor:
    """Return the entropy of softmax(logits) over its maximum, log C: [B, C] -> [B] float32 in [0, 1].

    FastBERT (Liu et al. 2020), eq. 6: sum_i p_i log p_i / log(1/C). With one class there is nothing to be uncertain of: 0.
    """
    classes = logits_BC.shape[-1]
    if classes == 1:
        return torch.zeros(logits_BC.shape[:-1], device=logits_BC.device)
    log_p = torch.log_softmax(logits_BC.float(), dim=-1)
    return (-(log_p.exp() * log_p).sum(-1) / math.log(classes)).clamp(0.0, 1.0)


def may_exit(uncertainty_B: Tensor, speed: float) -> Tensor:
    """Say which rows leave at this exit: those whose uncertainty is at most `speed` (FastBERT's released code).

    The two ends hold exactly: speed 1 lets every row leave, speed 0 lets none, however certain.
    """
    if speed <= 0.0:
        return torch.zeros_like(uncertainty_B, dtype=torch.bool)
    return uncertainty_B <= speed
