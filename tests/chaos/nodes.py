"""A Ray cluster of three unequal nodes on this machine, whose processes can be killed one by one."""

import contextlib
import os
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

NODE_CPUS = (1, 1, 2)
"""Of the head, which is never killed, and of the other two."""
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
        dead = [node for node in self._others if not _raylet(node).is_running() or _is_zombie(_raylet(node))]
        for node in dead:
            self.cluster.remove_node(node, allow_graceful=False)
            cpus = self._others.pop(node)
            self._others[self._add(cpus)] = cpus
        return len(dead)

    def kill(self, victim: str, draw: random.Random) -> bool:
        """Kill an actor, a task's worker, all workers or a raylet; False if there is none."""
        if victim == "raylet":
            found = [_raylet(node) for node in self._others]
            chosen = [draw.choice(found)]
        else:
            workers = [*self.workers()]
            wanted = {"actor": ["ClassifyActor"], "task": ["_map_task", "MapBatches(_"]}.get(victim, [""])
            found = [p for p, title in workers if any(word in title for word in wanted)]
            if victim == "task":
                found = [p for p, title in workers if p in found and "ClassifyActor" not in title]
            chosen = found if victim == "workers" else [draw.choice(found)] if found else []
        for process in chosen:
            _kill(process)
        return bool(chosen)

    def workers(self) -> list[tuple[psutil.Process, str]]:
        """Return workers of the run, by what they are at; Ray's own actors, which are the driver's, are left out."""
        found = []
        for node in [self.cluster.head_node, *self._others]:
            try:
                children = _raylet(node).children()
            except psutil.NoSuchProcess:
                continue
            for child in children:
                title = _title(child)
                if title.startswith("ray::") and "IDLE" not in title and not title.startswith("ray::_"):
                    found.append((child, title))
        return found

    def wait_until_free(self, seconds: float = 60) -> None:
        """Wait until no worker of an earlier run is left, and all nodes are known to be alive."""
        deadline = time.monotonic() + seconds
        while self.workers() and time.monotonic() < deadline:
            time.sleep(0.1)

    def close(self) -> None:
        self.cluster.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)


def _raylet(node: Any) -> psutil.Process:
    return psutil.Process(node.all_processes["raylet"][0].process.pid)


def _is_zombie(process: psutil.Process) -> bool:
    return bool(process.status() == psutil.STATUS_ZOMBIE)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
