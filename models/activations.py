"""Activations by the names that Hugging Face gives them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

USUAL: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "tanh": torch.tanh}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """Return the function of this name: torch's own, or else what transformers has; raise KeyError if neither has it."""
    if name in USUAL:
        return USUAL[name]
    from transformers.activations import ACT2FN  # takes seconds to import

    found: Callable[[Tensor], Tensor] = ACT2FN[name]
    return found
