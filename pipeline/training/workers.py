"""Where a training runs: in this process, or in many Ray Train workers that take every step together. The work is the same."""

import contextlib
import tempfile
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError, RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster.connect import join_or_start
from pipeline.cluster.resources import check_free, plan_actors, wait_for_nodes
from pipeline.training.process_group import ProcessGroup
from pipeline.training.progress import Log

RETRIES = 3
"""Restarts of the workers after one of them died: machines fail, but not for ever."""
LAST_LINES_SECONDS = 10.0
"""Longest wait for the lines that are still in the queue at the end; they take milliseconds if the queue lives."""

Work = Callable[[ProcessGroup, str, Log], None]
"""What every worker does, given the group, its device, and where lines for the user go."""


def run_workers(
    work: Work, workers: int, log: Log = print, *, wait_for: Mapping[str, float] = MappingProxyType({})
) -> None:
    """Run `work` in this process, or in `workers` processes of a Ray cluster that is joined or started.

    It begins once the cluster has the resources of `wait_for`, such as {"GPU": 8}. If a worker dies, all are started again;
    they go on from the last checkpoint. Raises DoesNotFitError if the cluster has not the resources.
    """
    if workers > 1 or wait_for:
        join_or_start()
        wait_for_nodes(wait_for, log)
    if workers == 1:
        work(ProcessGroup(), "cuda" if torch.cuda.is_available() else "cpu", log)
        return
    plan = plan_actors(workers)
    check_free(plan)
    with tempfile.TemporaryDirectory() as scratch, LogRelay(log) as queue:
        TorchTrainer(
            _worker,
            train_loop_config={"work": work, "threads": plan.threads, "device": plan.device, "queue": queue},
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if plan.gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=bool(plan.gpus), resources_per_worker={"CPU": plan.cpus, **plan.resources}
            ),
            run_config=RunConfig(storage_path=scratch, failure_config=FailureConfig(max_failures=RETRIES)),
        ).fit()


def _worker(config: dict[str, Any]) -> None:
    """Run the work in a process of Ray Train's."""
    context = get_context()
    torch.set_num_threads(config["threads"])
    group = ProcessGroup(context.get_world_rank(), context.get_world_size())
    config["work"](group, config["device"], lambda line: send(config["queue"], line))


def send(queue: Queue, line: str) -> None:
    """Put a line into the queue, and return when it is there: nothing that this process does or suffers next can lose it."""
    with contextlib.suppress(RayActorError):  # training goes on without its reader
        queue.put(line)


class LogRelay:
    """Logs in the driver what workers send, while it is open: `with LogRelay(print) as queue`.

    The queue is an actor on the driver's node, so workers may die and start again, and it does not end before the driver. Ray's
    own forwarding of output would bring the whole log of its workers along.
    """

    def __init__(self, log: Log) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self.log, self.queue = log, Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        self.thread = threading.Thread(target=self._pass_on, daemon=True)

    def __enter__(self) -> Queue:
        self.thread.start()
        return self.queue

    def __exit__(self, *_: object) -> None:
        """Wait until all lines are logged, but not for a queue that has died with its cluster."""
        self.queue.actor.put.remote(None)  # Queue.put would wait for the answer
        self.thread.join(LAST_LINES_SECONDS)

    def _pass_on(self) -> None:
        with contextlib.suppress(RayError):  # the queue has died
            while (line := self.queue.get()) is not None:
                self.log(line)
