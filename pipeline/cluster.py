"""Join a Ray cluster or start one here, and see that the wanted actors fit before anything can hang."""

import contextlib
import logging
import os
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import ray
import ray.data
from ray._raylet import Config  # type: ignore[attr-defined]

from pipeline.errors import UserError
from pipeline.storage import worker_environment

PACKAGES = Path(__file__).resolve().parents[1]
"""The folder that `models` and `pipeline` are imported from."""
MAX_THREADS = 8
"""Threads of a CPU actor, each of which takes its own rows. More would share a model, but not the time in which Python holds
its lock; and an actor of this size fits into one NUMA node of the usual servers, where the system then tends to keep it."""
TASK_CPUS = {"read": 0.1, "tokenise": 0.3, "write": 0.1}
"""Logical CPUs of the tasks beside the actors: fractions, so that they fit beside an actor on a machine of one core."""
CLASSIFY, TOKENISE = "classify", "tokenise"
"""Custom resources by which a cluster says which nodes are for actors, and which for the tasks beside them. Any amount will do:
`ray start --resources '{"classify": 1}'`. Where no node offers one, every node will do."""
PLACE_SHARE = 0.001
"""Of such a resource, for each actor or task: it says where, not how many."""
RETRIES = 3
"""A training's workers that die are started again this often: machines fail, but not for ever."""
FREE_SECONDS, FREE_POLL_SECONDS = 15.0, 0.2
"""A driver that is killed and started again at once still finds its old actors, which Ray ends within seconds."""
COMING_SECONDS, COMING_POLL_SECONDS = 900.0, 2.0
"""Until a node's machine has started and its image is there."""
METRICS_PORT = "OFFRAMP_METRICS_PORT"
"""Environment variable: where a Ray of our own shows its metrics; a cluster has `ray start --metrics-export-port`."""
OBJECT_STORE_BYTES = 1 << 30
"""For a Ray of our own: a shard on its way takes a few MB, so this holds a hundred."""


class DoesNotFitError(Exception):
    """The cluster has not the resources that the wanted actors need. Exit code 1: the command may be right elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorPlan:
    """How many classify actors run and what each takes."""

    actors: int
    most: int
    """Actors to grow to, where the cluster grows."""
    cpus: float
    gpus: int
    threads: int
    place: dict[str, float] = field(default_factory=dict)
    """Custom resources that lead an actor to its nodes."""

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"


def join_or_start() -> None:
    """Join the cluster that RAY_ADDRESS names or that runs on this machine; else start Ray here. Quiet logs.

    Does nothing in a process that has joined one already.
    """
    if ray.is_initialized():
        return
    with _sigterm_kept():
        _join_or_start()


def _join_or_start() -> None:
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(
        logging.CRITICAL
    )  # errors reach the driver as exceptions; said once is enough
    # One E line of Ray's for every actor pool that may restart is no error; the level is announced in a line of its own.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    address = running_cluster()
    if address is not None:
        try:
            # Workers on other machines get the code from here; inside `ray job submit` they may have it already.
            modules = [str(PACKAGES / name) for name in ("models", "pipeline")]
            with _held_back_stderr():
                environment = {"py_modules": modules, "env_vars": worker_environment()}
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=environment)
        except ConnectionError as error:
            raise UserError(f"no Ray cluster answers at {address}; unset RAY_ADDRESS to start one here") from error
        return
    # A token of our own. Without one, Ray's ports would be open to the network; and Ray's default, a token file in the home
    # folder, changes how every later `ray start` and `ray job submit` on this machine behaves.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    Config.initialize("")  # Ray reads the mode once, at import; this is how Ray itself makes it look again
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(PACKAGES) + (os.pathsep + path if path else "")
    with _held_back_stderr():
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
            _metrics_export_port=int(os.environ[METRICS_PORT]) if METRICS_PORT in os.environ else None,
        )


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Keep the caller's handler of SIGTERM: Ray puts one in its place that ends the process with exit code 15."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)


@contextlib.contextmanager
def _held_back_stderr() -> Iterator[None]:
    """Hold back what Ray's C++ part prints while it starts, and show it only if that fails."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def running_cluster() -> str | None:
    """Return the cluster to join: RAY_ADDRESS, else one that `ray start` left on this machine, else None.

    Not Ray's "auto": that also finds the private Ray of any other program here, which ends when that program does.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address:
        return None if address == "local" else address
    note = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
    try:
        return note.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def place_of(resource: str) -> dict[str, float]:
    """Return the custom resources that lead to the nodes which offer this one; none where no node does."""
    offered = any(node["Alive"] and node["Resources"].get(resource) for node in ray.nodes())
    return {resource: PLACE_SHARE} if offered else {}


def plan_actors(wanted: int | None = None, most: int | None = None) -> ActorPlan:
    """Plan one actor a GPU where there are GPUs, else one for every MAX_THREADS cores; `wanted` overrides the number.

    Nodes that offer CLASSIFY are the only ones that count, if there are any.

    With `most`, more actors are started up to that number while work waits, on nodes that an autoscaler adds.

    Raises DoesNotFitError naming what is missing.
    """
    place = place_of(CLASSIFY)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = [node for node in nodes if place.keys() <= node.keys()]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if gpus:
        plan = ActorPlan(
            actors=wanted or gpus, most=max(most or 0, wanted or gpus), cpus=1, gpus=1, threads=1, place=place
        )
        if plan.actors > gpus:
            raise DoesNotFitError(f"{plan.actors} actors want a GPU each; the cluster has {gpus}")
        return plan
    cores = [int(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0) >= 1]
    if not cores:
        raise DoesNotFitError("no node of the cluster offers a CPU core")
    smallest = min(cores)
    per_node = -(-wanted // len(cores)) if wanted else -(-smallest // MAX_THREADS)
    threads = smallest // per_node
    if threads < 1:
        raise DoesNotFitError(f"{wanted} actors want a core each; the cluster's {len(cores)} nodes have {sum(cores)}")
    actors = wanted or sum(count // threads for count in cores)
    # Tasks find room beside the actors, unless they have nodes of their own.
    cpus = threads - (0 if place_of(TOKENISE) else sum(TASK_CPUS.values()) / per_node)
    return ActorPlan(actors=actors, most=max(most or 0, actors), cpus=cpus, gpus=0, threads=threads, place=place)


def plan_when_nodes_come(wanted: int | None = None) -> ActorPlan:
    """Plan as `plan_actors`, and wait where nodes are still to come: on Kubernetes the head is ready before any worker."""
    deadline = time.monotonic() + COMING_SECONDS
    while True:
        try:
            return plan_actors(wanted)
        except DoesNotFitError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(COMING_POLL_SECONDS)


def check_free(plan: ActorPlan) -> None:
    """Raise DoesNotFitError if others hold what the actors and tasks need, and do not let go of it within FREE_SECONDS."""
    needed = plan.actors * plan.cpus + sum(TASK_CPUS.values())
    deadline = time.monotonic() + FREE_SECONDS
    while True:
        free = ray.available_resources()
        if free.get("CPU", 0) + 1e-6 >= needed and free.get("GPU", 0) >= plan.actors * plan.gpus:
            return
        if time.monotonic() >= deadline:
            raise DoesNotFitError(
                f"{plan.actors} actors and their tasks need {needed:g} CPUs and {plan.actors * plan.gpus} GPUs; free are "
                f"{free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs. Wait for other jobs, or give fewer --actors"
            )
        time.sleep(FREE_POLL_SECONDS)
