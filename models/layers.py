"""What layers are made of: activations by their Hugging Face names, dropout that is fast on CPUs, modules that others share.

Beside these, copies that a GPU makes while the host goes on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.errors import UnsupportedModelError

USUAL: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "tanh": torch.tanh}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """Return the activation of this name, torch's own or else transformers'.

    Raises UnsupportedModelError if neither has it, or if it has weights of its own, which no checkpoint of ours has.
    """
    if name in USUAL:
        return USUAL[name]
    from transformers.activations import ACT2FN  # takes seconds to import

    if name not in ACT2FN:
        raise UnsupportedModelError(f"activation '{name}' is none that transformers has")
    found: nn.Module = ACT2FN[name]
    if any(True for _ in found.parameters()):
        raise UnsupportedModelError(f"activation '{name}' has weights of its own, which offramp does not read")
    return found


def to_device(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Return an array as a tensor on the device; on CPUs it keeps its memory.

    A GPU gets it from pinned memory: a copy from any other waits until all that was asked of the GPU before is done.
    """
    tensor = torch.from_numpy(values)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, slots=True, eq=False)
class Shared(Generic[M]):
    """A module that another one uses and does not own: its owner saves it, moves it and trains it."""

    module: M


class Dropout(nn.Module):
    """Takes the place of nn.Dropout (Srivastava et al. 2014); on CPUs the probability is rounded to a 256th."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p if self.training else 0.0)


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero a fraction `p` of the elements at random and scale the others so that the mean stays."""
    if p == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    dropped = round(p * 256)
    words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
    return x * kept.to(x.dtype).mul_(256 / (256 - dropped))
