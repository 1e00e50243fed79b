"""ProcessGroup: which of the processes that train one model together this one is, and the mean of their gradients."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The `world_size` processes that take every step together, of which this one has number `rank`; by default one alone."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process logs and writes on behalf of all."""
        return self.rank == 0

    def average_gradients(self, parameters: list[nn.Parameter], rows: int) -> None:
        """Replace gradients by their mean over the rows of all workers, `rows` being the number of this worker's rows.

        DistributedDataParallel does not fit: heads on a frozen backbone are small, alternating steps leave out the branches,
        and a worker may have no row left while the others still have one.
        """
        if self.world_size == 1:
            return
        flat = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
        has_gradient = torch.tensor([float(p.grad is not None) for p in parameters], device=flat[0].device)
        total = torch.cat([*flat, has_gradient]).mul_(rows)
        total = torch.cat([total, total.new_tensor([float(rows)])])
        dist.all_reduce(total)
        mean, used_by = total[: -len(parameters) - 1].div_(total[-1]), total[-len(parameters) - 1 : -1]
        for parameter, gradient, users in zip(
            parameters, mean.split([p.numel() for p in parameters]), used_by, strict=True
        ):
            parameter.grad = gradient.view_as(parameter) if users > 0 else None
