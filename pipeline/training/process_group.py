"""The processes that train one model together: which of them this one is, what they exchange, and the mean of their gradients.

Gradients are averaged bucket by bucket while the backward pass still runs, as DistributedDataParallel does (Li et al. 2020).
That class itself does not fit: it averages over workers, of which the last may have few rows, wants all losses to come out of
one `forward`, and would look through the graph of every step for the branches that alternating steps leave out.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 25 << 20
"""Bytes of a bucket of gradients, about: the default of DistributedDataParallel."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The `world_size` processes that take every step together, of which this one has number `rank`; by default one alone."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process logs and writes on behalf of all."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, by rank; each of them calls this at the same point of its work."""
        if self.world_size == 1:
            return [value]
        values: list[T | None] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def broadcast(self, tensor: Tensor) -> None:
        """Replace a tensor's values by those that it has in the process of rank 0; each process calls this, as `gather`."""
        if self.world_size > 1:
            dist.broadcast(tensor, src=0)


class GradientAverage:
    """Replaces the gradients of parameters by their mean over the rows of all workers, while the backward pass computes them.

        average.start(rows=len(batch), left_out=[])
        loss.backward()
        average.finish()

    In every step the parameters that have a gradient must be the same on all workers, so one without rows computes the loss of
    some other row.
    """

    def __init__(self, group: ProcessGroup, parameters: list[nn.Parameter]) -> None:
        """Watch the parameters, which are in the order in which the forward pass uses them, until `close`.

        A group of one needs no mean, so that nothing happens in it.
        """
        self.buckets = _buckets(parameters) if group.world_size > 1 else []
        self.rows = self.launched = 0
        self.total: Tensor | None = None
        """Rows of all workers in this step, once `counting` is through."""
        self.counting: dist.Work | None = None
        self.hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._take, bucket, number))
            for bucket in self.buckets
            for number, parameter in enumerate(bucket.parameters)
        ]

    def start(self, rows: int, left_out: Collection[nn.Parameter]) -> None:
        """Begin a step in which this worker has this many rows, and some parameters get no gradient on any worker."""
        if not self.buckets:
            return
        self.rows, self.launched = rows, 0
        self.total = torch.full((), float(rows), device=self.buckets[0].flat.device)
        self.counting = dist.all_reduce(self.total, async_op=True)
        absent = {id(parameter) for parameter in left_out}
        for bucket in self.buckets:
            bucket.missing = {number for number, p in enumerate(bucket.parameters) if id(p) not in absent}
            for number in set(range(len(bucket.parameters))) - bucket.missing:
                bucket.gradients[number].zero_()
        self._launch()

    def finish(self) -> None:
        """Wait until every gradient is the mean over all workers; parameters without one keep none."""
        for bucket in self.buckets:
            for number in bucket.missing:
                bucket.gradients[number].zero_()
            bucket.missing = set()
        self._launch()
        for bucket in self.buckets:
            assert self.counting is not None
            assert self.total is not None
            assert bucket.summing is not None
            self.counting.wait()
            bucket.summing.wait()
            bucket.flat.div_(self.total)

    def close(self) -> None:
        """Watch the parameters no longer."""
        for hook in self.hooks:
            hook.remove()

    def _take(self, bucket: "_Bucket", number: int, parameter: Tensor) -> None:
        """Move a gradient that has just been computed into its bucket."""
        assert parameter.grad is not None
        if number not in bucket.missing:
            raise AssertionError("a parameter that was to be left out of the step has a gradient")
        parameter.grad = torch.mul(parameter.grad, self.rows, out=bucket.gradients[number])
        bucket.missing.remove(number)
        self._launch()

    def _launch(self) -> None:
        """Sum up the buckets that are complete, in their order, which must be that of all workers."""
        while self.launched < len(self.buckets) and not self.buckets[self.launched].missing:
            bucket = self.buckets[self.launched]
            bucket.summing = dist.all_reduce(bucket.flat, async_op=True)
            self.launched += 1


class _Bucket:
    """Some parameters, and their gradients in one vector."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        sizes = [parameter.numel() for parameter in parameters]
        self.flat = torch.zeros(sum(sizes), dtype=parameters[0].dtype, device=parameters[0].device)
        """All gradients one after the other, each times the worker's rows; then their sum over workers, then the mean."""
        self.gradients = [part.view_as(p) for part, p in zip(self.flat.split(sizes), parameters, strict=True)]
        self.missing: set[int] = set()
        """Numbers of the parameters whose gradients are still to come in this step."""
        self.summing: dist.Work | None = None


def _buckets(parameters: list[nn.Parameter]) -> list[_Bucket]:
    """Put parameters into buckets, the last ones first, since that is the order in which their gradients come."""
    dealt: list[list[nn.Parameter]] = [[]]
    size = 0
    for parameter in reversed(parameters):
        if dealt[-1] and size + parameter.nbytes > BUCKET_BYTES:
            dealt.append([])
            size = 0
        dealt[-1].append(parameter)
        size += parameter.nbytes
    return [_Bucket(members) for members in dealt]
