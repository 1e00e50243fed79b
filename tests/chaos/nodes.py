"""A Ray cluster of three unequal nodes on this machine, whose processes can be killed one by one."""

import contextlib
import os
import random
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from tests.support.jobs import REPOSITORY

NODE_CPUS = (0, 1, 2)
"""Of the head, which is never killed, and of the other two."""
WORKER, ACTOR = "ray::Map", "ray::MapWorker"
"""How Ray calls the processes that run stages, and actors among them; other processes of its own are left alone."""
FIND_SECONDS = 2.0
"""Tasks of such small shards are over at once: so long is one waited for."""
HEALTH: dict[str, Any] = {
    "health_check_initial_delay_ms": 2000,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 5,
}
"""A lost node is found out in seconds, not in half a minute, so that a round is short."""


class Nodes:
    """The cluster. Its head outlives all rounds; other nodes are replaced when they were killed."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))  # Ray's socket paths must be short
        poison = str(REPOSITORY / "tests" / "support" / "poison")  # does nothing to other rows
        os.environ["PYTHONPATH"] = os.pathsep.join([poison, os.environ.get("PYTHONPATH", "")])
        os.environ |= {"RAY_TMPDIR": str(self.folder), "RAY_AUTH_MODE": "disabled", "RAY_BACKEND_LOG_LEVEL": "fatal"}
        from ray.cluster_utils import Cluster  # reads these variables when it is imported

        head = {"num_cpus": NODE_CPUS[0], "include_dashboard": False, "_system_config": HEALTH}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self._others: dict[Any, int] = {self._add(cpus): cpus for cpus in NODE_CPUS[1:]}

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def _add(self, cpus: int) -> Any:
        return self.cluster.add_node(num_cpus=cpus)

    def repair(self) -> int:
        """Put new nodes in the place of dead ones; return how many."""
        dead = [node for node in self._others if _raylet(node).poll() is not None]
        for node in dead:
            self.cluster.remove_node(node, allow_graceful=False)
            cpus = self._others.pop(node)
            self._others[self._add(cpus)] = cpus
        return len(dead)

    def kill(self, victim: str, draw: random.Random) -> bool:
        """Kill an actor, the worker of a task, all workers or a raylet; False if there is none."""
        if victim == "raylet":
            raylet = _raylet(draw.choice([*self._others]))
            raylet.kill()
            raylet.wait()
            return True
        deadline = time.monotonic() + FIND_SECONDS
        while not (found := self._workers(victim)) and time.monotonic() < deadline:
            time.sleep(0.01)
        for process in found if victim == "workers" else [draw.choice(found)] if found else []:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return bool(found)

    def _workers(self, victim: str) -> list[psutil.Process]:
        """Return processes at work: of actors, of tasks, or all."""
        found = []
        for node in [self.cluster.head_node, *self._others]:
            with contextlib.suppress(psutil.NoSuchProcess):
                titles = [(child, _title(child)) for child in psutil.Process(_raylet(node).pid).children()]
                found += [child for child, title in titles if title.startswith(WORKER) and _fits(victim, title)]
        return found

    def wait_until_free(self, seconds: float = 60) -> None:
        """Wait until no worker of an earlier run is left."""
        deadline = time.monotonic() + seconds
        while self._workers("workers") and time.monotonic() < deadline:
            time.sleep(0.1)

    def close(self) -> None:
        self.cluster.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)


def _raylet(node: Any) -> "subprocess.Popen[bytes]":
    process: subprocess.Popen[bytes] = node.all_processes["raylet"][0].process
    return process


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _fits(victim: str, title: str) -> bool:
    return victim == "workers" or (victim == "actor") == title.startswith(ACTOR)
