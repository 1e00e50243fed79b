"""The optimizer: AdamW with learning rates of their own for heads and backbone, which follow the fraction of the work done."""

from typing import Any

import torch

from pipeline.training.config import TrainingConfig
from pipeline.training.recipes import Recipe

WARMUP = 0.1
"""Fraction of the work in which the learning rate rises; it then falls linearly to 0 (Devlin et al. 2019)."""


def new_optimizer(recipe: Recipe, config: TrainingConfig) -> torch.optim.Optimizer:
    """Make the optimizer of a recipe's parameters."""
    return torch.optim.AdamW(param_groups(recipe, config), fused=True)


def param_groups(recipe: Recipe, config: TrainingConfig) -> list[dict[str, Any]]:
    """Group parameters by peak learning rate (backbone or heads) and weight decay (matrices only, as is usual for BERT)."""
    backbone = {id(parameter) for parameter in recipe.model.backbone.parameters()}
    groups = []
    for in_backbone, rate in ((True, config.learning_rate), (False, config.head_learning_rate or config.learning_rate)):
        for matrices in (True, False):
            members = [
                p for p in recipe.parameters() if (id(p) in backbone) == in_backbone and (p.dim() > 1) == matrices
            ]
            decay = config.weight_decay if matrices else 0.0
            groups.append({"params": members, "peak_lr": rate, "weight_decay": decay, "lr": rate})
    return [group for group in groups if group["params"]]


def set_learning_rates(optimizer: torch.optim.Optimizer, fraction: float) -> None:
    """Set the learning rates for a training of which this fraction is done."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * linear_warmup_decay(fraction)


def linear_warmup_decay(fraction: float) -> float:
    """Return the factor of the peak learning rate when this fraction of the work is done: 0.05 -> 0.5, 0.1 -> 1, 1 -> 0."""
    return max(fraction, 1e-3) / WARMUP if fraction < WARMUP else (1.0 - fraction) / (1.0 - WARMUP)
