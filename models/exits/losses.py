"""Training losses of one exit, or of E exits at once, as pure functions.

Labels are class indices or values, [B] with NaN for none; or label sets, [B, C] of 0 and 1, or NaN throughout a row for none.

Legend of suffixes: B rows, C classes. Logits and certainties may have an axis of exits in front, and results have it too then.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.exits.task import Task


def soft_label_losses(
    student_BC: Tensor, teacher_BC: Tensor, temperature: float = 1.0, task: Task | None = None
) -> Tensor:
    """Return KL(teacher || student) of softened probabilities, times temperature squared, of every row: [B].

    For one value it is the squared error, for label sets the mean over labels of the KL of a choice between two. Without a task
    one logit is a value, and more are classes.

    FastBERT's section 3.3 writes KL(p_s || p_t); its released code, which the published numbers come from, calls
    KLDivLoss(log p_s, p_t), that is KL(p_t || p_s): the usual direction of distillation. We do what the code does. Temperature
    and its square, which keeps the size of the gradient: Hinton et al. 2015, section 2.
    """
    if task is Task.LABELS:
        student, teacher = (
            student_BC.float() / temperature,
            teacher_BC.detach().float().expand_as(student_BC) / temperature,
        )
        p = torch.sigmoid(teacher)
        # The cross-entropy less the teacher's own entropy, which is the cross-entropy of the teacher with itself.
        apart = F.binary_cross_entropy_with_logits(student, p, reduction="none")
        return (apart - F.binary_cross_entropy_with_logits(teacher, p, reduction="none")).mean(-1) * temperature**2
    if student_BC.shape[-1] == 1:
        return (student_BC.float() - teacher_BC.float())[..., 0] ** 2
    student = torch.log_softmax(student_BC.float() / temperature, dim=-1)
    teacher = torch.log_softmax(teacher_BC.detach().float() / temperature, dim=-1).expand_as(student)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1) * temperature**2


def label_losses(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Return the cross-entropy against class indices, or for one value the squared error, of every row: [B]; 0 for label NaN.

    `labels_B` is float: indices and values travel alike. For label sets, [B, C], it is the mean over labels of the binary
    cross-entropy, as in transformers.
    """
    known_B = is_known(labels_B)
    # Weights in place of a selection: every step has the same shapes.
    safe_B = labels_B.nan_to_num()
    if labels_B.dim() == 2:
        logits, labels = logits_BC.float(), safe_B.expand_as(logits_BC)
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1) * known_B
    if logits_BC.shape[-1] == 1:
        each_B = (logits_BC.float()[..., 0] - safe_B) ** 2
    else:
        classes_B1 = safe_B.long()[:, None].expand(*logits_BC.shape[:-1], 1)
        each_B = -torch.log_softmax(logits_BC.float(), dim=-1).gather(-1, classes_B1)[..., 0]
    return each_B * known_B


def lte_losses(lte_B: Tensor, logits_BC: Tensor, target_B: Tensor) -> Tensor:
    """Return the mean squared error of the certainty against 1 where the exit is right, or 1 - tanh|error| of a value.

    BERxiT (Xin et al. 2021), section 4.2. `target_B` is a class index or value as float; rows with NaN do not count. An exit is
    right about a label set, [B, C], if it is about every label, at a threshold of 0.5. It is a scalar for one exit, [E] for E
    exits.
    """
    known_B = is_known(target_B)
    safe_B = target_B.nan_to_num()
    logits_BC = logits_BC.detach().float()
    if target_B.dim() == 2:
        certain_B = ((logits_BC > 0) == (safe_B > 0.5)).all(-1).float()
    elif logits_BC.shape[-1] == 1:
        certain_B = 1.0 - torch.tanh((logits_BC[..., 0] - safe_B).abs())
    else:
        certain_B = (logits_BC.argmax(-1) == safe_B.long()).float()
    squares_B = (torch.sigmoid(lte_B.float()) - certain_B) ** 2
    return (squares_B * known_B).sum(-1) / known_B.sum().clamp(min=1)


def is_known(labels_B: Tensor) -> Tensor:
    """Return which rows have a label, or a label set, an empty one too: [B] or [B, C] -> [B] bool."""
    return ~(labels_B[:, 0] if labels_B.dim() == 2 else labels_B).isnan()
