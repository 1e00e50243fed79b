"""The mean of gradients over workers, in real processes, against one process that sees all rows."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.training import process_group
from pipeline.training.process_group import GradientAverage, ProcessGroup
from tests.support.jobs import REPOSITORY

WORKERS, STEPS = 3, 25


class Branches(nn.Module):
    """Layers one after the other with a branch on each, of which a step may leave out some."""

    def __init__(self) -> None:
        super().__init__()
        self.never = nn.Linear(3, 3)
        self.parts = nn.ModuleList(nn.Linear(5, width) for _ in range(4) for width in (5, 2))
        self.layers = list(zip(self.parts[::2], self.parts[1::2], strict=True))

    def losses(self, x: Tensor, used: list[int]) -> Tensor:
        """Return the loss of every row."""
        total = x.new_zeros(len(x))
        for number, (layer, branch) in enumerate(self.layers):
            x = torch.tanh(layer(x))
            if number in used:
                total = total + branch(x).square().sum(1)
        return total

    def unused(self, used: list[int]) -> list[nn.Parameter]:
        """Return what `losses` does not depend on, but for what nobody would think of."""
        layers = [layer for number, (layer, _) in enumerate(self.layers) if number > max(used)]
        branches = [branch for number, (_, branch) in enumerate(self.layers) if number not in used]
        return [parameter for module in (*layers, *branches) for parameter in module.parameters()]


def gradients_that_were_not_expected(rank: str, folder: str) -> None:
    group = ProcessGroup(int(rank), WORKERS)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=group.rank, world_size=WORKERS)
    parameter = nn.Parameter(torch.ones(2))
    average = GradientAverage(group, [parameter])
    average.start(1, left_out=[parameter])
    with pytest.raises(AssertionError, match="was to be left out"):
        parameter.sum().backward()
    dist.destroy_process_group()
    print("the same")


def average_gradients(rank: str, folder: str) -> None:
    """Take steps with random rows, sometimes none, and random branches; compare each with the mean over all rows."""
    group = ProcessGroup(int(rank), WORKERS)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=group.rank, world_size=WORKERS)
    process_group.BUCKET_BYTES = 150  # several buckets, and one parameter that is a bucket alone
    torch.manual_seed(0)
    model = Branches()
    parameters = list(model.parameters())
    average = GradientAverage(group, parameters)
    assert len(average.buckets) > 3
    without_rows = launched = 0
    for step in range(STEPS):
        random = torch.Generator().manual_seed(step)
        counts = torch.randint(0, 4, (WORKERS,), generator=random).tolist()
        counts[step % WORKERS] += 1  # one of them has rows
        rows = torch.randn(sum(counts), 5, generator=random)
        used = [number for number in range(4) if torch.rand((), generator=random) < 0.6] or [3]
        mine = rows.split(counts)[group.rank]
        without_rows += len(mine) == 0
        model.zero_grad(set_to_none=True)
        average.start(len(mine), left_out=model.unused(used))
        loss = model.losses(mine, used).mean() if len(mine) else model.losses(rows[:1], used).mean() * 0
        loss.backward()
        launched += average.launched
        average.finish()
        got = [None if p.grad is None else p.grad.clone() for p in parameters]
        average.close()
        model.zero_grad(set_to_none=True)
        model.losses(rows, used).mean().backward()
        for found, parameter in zip(got, parameters, strict=True):
            assert (found is None) == (parameter.grad is None)
            if found is not None:
                torch.testing.assert_close(found, parameter.grad)
        average = GradientAverage(group, parameters)
    assert launched > 2 * STEPS  # while the backward pass runs
    assert sum(group.gather(without_rows)) > 5
    assert group.gather(f"worker {group.rank}") == [f"worker {number}" for number in range(WORKERS)]
    dist.destroy_process_group()
    print("the same")


@pytest.mark.parametrize("work", [average_gradients, gradients_that_were_not_expected])
def test_gradients_are_the_mean_over_the_rows_of_all_workers(work: Callable[[str, str], None], tmp_path: Path) -> None:
    call = f"import sys; from tests.training.test_process_group import {work.__name__} as work; work(*sys.argv[1:])"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", call, str(rank), str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
        )
        for rank in range(WORKERS)
    ]
    assert [worker.communicate(timeout=300)[0] for worker in workers] == ["the same\n"] * WORKERS


def test_a_group_of_one_leaves_gradients_alone() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    average = GradientAverage(ProcessGroup(), [parameter])
    average.start(5, left_out=[])
    (parameter * torch.arange(3.0)).sum().backward()
    average.finish()
    assert parameter.grad is not None
    assert parameter.grad.tolist() == [0.0, 1.0, 2.0]
    assert ProcessGroup().gather("alone") == ["alone"]
