"""Where a training runs: in this process, or in many Ray Train workers that keep step. The same function in both cases."""

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline.cluster.connect import join_or_start
from pipeline.cluster.resources import check_free, plan_actors
from pipeline.training.process_group import ProcessGroup

RETRIES = 3
"""A training's workers that die are started again this often: machines fail, but not for ever."""

Work = Callable[[ProcessGroup, str, Callable[[str], None]], None]
"""What every worker does: its place in the group, its device, and how to say something."""
POLL_SECONDS = 0.5


def run_workers(work: Work, workers: int, folder: Path, say: Callable[[str], None] = print) -> None:
    """Run `work` in this process, or in `workers` processes of a Ray cluster that is joined or started.

    `folder` must be visible to all of them. A worker that dies is started again, with all others; they go on from the last
    checkpoint. Raises DoesNotFitError if the cluster has not the resources.
    """
    if workers == 1:
        work(ProcessGroup(), "cuda" if torch.cuda.is_available() else "cpu", say)
        return
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    join_or_start()
    plan = plan_actors(workers)
    check_free(plan)
    folder.mkdir(parents=True, exist_ok=True)
    said = folder / "said.txt"
    said.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"work": work, "threads": plan.threads, "device": plan.device, "said": str(said)},
            torch_config=TorchConfig(backend="nccl" if plan.gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=bool(plan.gpus), resources_per_worker={"CPU": plan.cpus, **plan.resources}
            ),
            run_config=RunConfig(storage_path=scratch, failure_config=FailureConfig(max_failures=RETRIES)),
        )
        with LogRelay(said, say):
            trainer.fit()


def _worker(config: dict[str, Any]) -> None:
    from ray import train

    context = train.get_context()
    rank, said = context.get_world_rank(), Path(config["said"])
    torch.set_num_threads(config["threads"])

    def say(line: str) -> None:
        with open(said, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    config["work"](ProcessGroup(rank, context.get_world_size()), config["device"], say)


class LogRelay:
    """While this is open, pass on what the workers say: Ray's own forwarding would bring its whole log along."""

    def __init__(self, file: Path, say: Callable[[str], None]) -> None:
        self.file, self.say, self.seen = file, say, 0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()
        self._pass_on()

    def _follow(self) -> None:
        while not self.stop.is_set():
            self._pass_on()
            time.sleep(POLL_SECONDS)

    def _pass_on(self) -> None:
        if not self.file.exists():
            return
        lines = self.file.read_text(encoding="utf-8").split("\n")
        for line in lines[self.seen : -1]:
            self.say(line)
        self.seen = len(lines) - 1
