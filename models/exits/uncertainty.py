"""When a row exits: pure functions from an exit's output to uncertainty in [0, 1], and from that to the decision.

It is one decision for all criteria: a row takes the first exit at which its uncertainty is at most the threshold.
"""

import math

import torch
from torch import Tensor

from models.exits.criterion import Criterion


def uncertainty_of(
    criterion: Criterion,
    logits_BC: Tensor,
    lte_B: Tensor | None = None,
    streak_B: Tensor | None = None,
    boundaries_C: Tensor | None = None,
) -> Tensor:
    """Return the uncertainty of rows at an exit: [B] float32 in [0, 1].

    `boundaries_C` are the logits above which labels are predicted, of a model of label sets; None is any other model.

    `lte_B` is the logit of the learned certainty; `streak_B` the number of consecutive exits that agreed with the one before
    (see `extend_streak`). Each is needed by its own criterion only. The last exit has no learned certainty: there the entropy
    is returned in its place.
    """
    if criterion.name == "patience":
        assert streak_B is not None
        return (1.0 - streak_B.float() / criterion.patience).clamp(min=0.0)
    if boundaries_C is not None:
        logits_BC = least_certain_label(logits_BC, boundaries_C)
    if criterion.name == "confidence":
        return 1.0 - torch.softmax(logits_BC.float(), dim=-1).amax(-1)
    if criterion.name == "lte" and lte_B is not None:
        return 1.0 - torch.sigmoid(lte_B.float())
    return normalized_entropy(logits_BC)


def exits_at(criterion: Criterion, layer: int, uncertainty_B: Tensor) -> Tensor:
    """Return which rows exit after this layer by the criterion's own threshold: [B] bool."""
    return (
        uncertainty_B <= 0.0 if criterion.name == "patience" else should_exit(uncertainty_B, criterion.speed_at(layer))
    )


def least_certain_label(logits_BC: Tensor, boundaries_C: Tensor) -> Tensor:
    """Return the decision on each row's least certain label as a choice between two classes: [B, C] -> [B, 2] float32.

    The least certain label is that whose logit is closest to its boundary: BinMin, the measure of multi-label active learning
    (Brinker 2006, "On Active Learning in Multi-label Classification"). Its entropy is the largest of all labels, since a label
    set differs from another if any label does. Logits [0.5, -2] with boundaries [0, 0] become [0.5, 0].
    """
    margin_B = (logits_BC.float() - boundaries_C).abs().amin(-1)
    return torch.stack([margin_B, torch.zeros_like(margin_B)], dim=-1)


def normalized_entropy(logits_BC: Tensor) -> Tensor:
    """Return the entropy of softmax(logits) over its maximum, log C: [B, C] -> [B] float32 in [0, 1].

    FastBERT (Liu et al. 2020), eq. 6: sum_i p_i log p_i / log(1/C). With one class there is nothing to be uncertain of: 0.
    """
    classes = logits_BC.shape[-1]
    if classes == 1:
        return torch.zeros(logits_BC.shape[:-1], device=logits_BC.device)
    log_p = torch.log_softmax(logits_BC.float(), dim=-1)
    return (-(log_p.exp() * log_p).sum(-1) / math.log(classes)).clamp(0.0, 1.0)


def extend_streak(
    streak_B: Tensor, before_BC: Tensor, logits_BC: Tensor, tolerance: float, boundaries_C: Tensor | None = None
) -> Tensor:
    """Return the streaks with one more exit: plus 1 where it agrees with the one before, else 0: [B] int64 -> [B] int64.

    PABEE (Zhou et al. 2020), eq. 4 and 5: the same class, or for regression (C = 1) values less than `tolerance` apart. With
    `boundaries_C`, the logits above which labels are predicted, the same label set.
    """
    if boundaries_C is not None:
        same_B = ((logits_BC.float() > boundaries_C) == (before_BC.float() > boundaries_C)).all(-1)
    elif logits_BC.shape[-1] == 1:
        same_B = (logits_BC.float() - before_BC.float()).abs()[..., 0] < tolerance
    else:
        same_B = logits_BC.argmax(-1) == before_BC.argmax(-1)
    return (streak_B + 1) * same_B


def should_exit(uncertainty_B: Tensor, speed: float | Tensor) -> Tensor:
    """Return which rows exit: those whose uncertainty is at most `speed` (FastBERT's released code): [B] bool.

    `speed` is one for all rows, or [B], one a row. The two ends hold exactly: at speed 1 every row exits, at speed 0 none does,
    however certain it is.
    """
    if isinstance(speed, Tensor):
        return (uncertainty_B <= speed) & (speed > 0.0)
    if speed <= 0.0:
        return torch.zeros_like(uncertainty_B, dtype=torch.bool)
    return uncertainty_B <= speed
