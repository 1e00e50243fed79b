"""Group: this worker's place among those that train one model together."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """`workers` processes in step, of which this is number `rank`; a process on its own is a group of one."""

    rank: int = 0
    workers: int = 1

    @property
    def first(self) -> bool:
        """Whether this worker speaks and writes for all."""
        return self.rank == 0

    def average_gradients(self, parameters: list[nn.Parameter], rows: int) -> None:
        """Replace gradients by their mean over all rows of all workers, of which `rows` were this one's.

        By hand and not by DistributedDataParallel: heads on a frozen backbone are small, alternating steps leave out the
        branches, and a worker may have no row left while the others still have one.
        """
        if self.workers == 1:
            return
        flat = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
        used = torch.tensor([float(p.grad is not None) for p in parameters], device=flat[0].device)
        total = torch.cat([*flat, used]).mul_(rows)
        total = torch.cat([total, total.new_tensor([float(rows)])])
        dist.all_reduce(total)
        mean, used_by = total[: -len(parameters) - 1].div_(total[-1]), total[-len(parameters) - 1 : -1]
        for parameter, gradient, users in zip(
            parameters, mean.split([p.numel() for p in parameters]), used_by, strict=True
        ):
            parameter.grad = gradient.view_as(parameter) if users > 0 else None
