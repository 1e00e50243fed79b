"""Training losses of one exit, or of E exits at once, as pure functions.

Legend of suffixes: B rows, C classes. Logits and certainties may have an axis of exits in front, and results have it too then.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_label_losses(student_BC: Tensor, teacher_BC: Tensor, temperature: float = 1.0) -> Tensor:
    """Return KL(teacher || student) of softened probabilities, times temperature squared, of every row: [B].

    For one value it is the squared error.

    FastBERT's section 3.3 writes KL(p_s || p_t); its released code, which the published numbers come from, calls
    KLDivLoss(log p_s, p_t), that is KL(p_t || p_s): the usual direction of distillation. We do what the code does. Temperature
    and its square, which keeps the size of the gradient: Hinton et al. 2015, section 2.
    """
    if student_BC.shape[-1] == 1:
        return (student_BC.float() - teacher_BC.float())[..., 0] ** 2
    student = torch.log_softmax(student_BC.float() / temperature, dim=-1)
    teacher = torch.log_softmax(teacher_BC.detach().float() / temperature, dim=-1).expand_as(student)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1) * temperature**2


def label_losses(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Return the cross-entropy against class indices, or for one value the squared error, of every row: [B]; 0 for label NaN.

    `labels_B` is float: indices and values travel alike.
    """
    known_B = ~labels_B.isnan()
    # Weights in place of a selection: every step has the same shapes.
    safe_B = labels_B.nan_to_num()
    if logits_BC.shape[-1] == 1:
        each_B = (logits_BC.float()[..., 0] - safe_B) ** 2
    else:
        classes_B1 = safe_B.long()[:, None].expand(*logits_BC.shape[:-1], 1)
        each_B = -torch.log_softmax(logits_BC.float(), dim=-1).gather(-1, classes_B1)[..., 0]
    return each_B * known_B


def lte_losses(lte_B: Tensor, logits_BC: Tensor, target_B: Tensor) -> Tensor:
    """Return the mean squared error of the certainty against 1 where the exit is right, or 1 - tanh|error| of a value.

    BERxiT (Xin et al. 2021), section 4.2. `target_B` is a class index or value as float; rows with NaN do not count. It is a
    scalar for one exit, [E] for E exits.
    """
    known_B = ~target_B.isnan()
    safe_B = target_B.nan_to_num()
    logits_BC = logits_BC.detach().float()
    if logits_BC.shape[-1] == 1:
        certain_B = 1.0 - torch.tanh((logits_BC[..., 0] - safe_B).abs())
    else:
        certain_B = (logits_BC.argmax(-1) == safe_B.long()).float()
    squares_B = (torch.sigmoid(lte_B.float()) - certain_B) ** 2
    return (squares_B * known_B).sum(-1) / known_B.sum().clamp(min=1)
