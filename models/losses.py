"""Training losses as pure functions."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def self_distillation(student_logits: Sequence[Tensor], teacher_logits_BC: Tensor) -> Tensor:
    """Return the sum over exits of KL(teacher || student), each the mean over rows; logits [B, C], result a scalar.

    FastBERT's section 3.3 writes KL(p_s || p_t); its released code, which the published numbers come from, calls
    KLDivLoss(log p_s, p_t), that is KL(p_t || p_s): the usual direction of distillation. We do what the code does.
    """
    teacher_BC = torch.log_softmax(teacher_logits_BC.detach().float(), dim=-1)
    losses = [
        F.kl_div(torch.log_softmax(s.float(), dim=-1), teacher_BC, reduction="batchmean", log_target=True)
        for s in student_logits
    ]
    return torch.stack(losses).sum()
