"""How many actors fit on a cluster, and which resources each of them takes."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import ray

from pipeline.cluster.address import find_cluster
from pipeline.errors import DoesNotFitError

Returned = TypeVar("Returned")

MAX_THREADS = 8
"""Threads of a CPU actor, each of which runs rows of its own. More would share a model, but also the time in which Python holds
its lock; and an actor of this size fits into one NUMA node of the usual servers, where the system then tends to keep it."""
TASK_CPUS = {"read": 0.1, "tokenize": 0.3, "write": 0.1}
"""Logical CPUs of the tasks beside the actors: fractions, so that they fit beside an actor on a machine of one core."""
WHOLE_CORE = 1.0
"""Logical CPUs of a task that tokenizes where cores are there for it: it has one thread, and keeps that busy for a GPU."""
CLASSIFY, TOKENIZE = "classify", "tokenize"
"""Custom resources by which a cluster marks the nodes that run actors, and those that run the tasks beside them. A node offers
any amount of one, such as {"classify": 1}; where no node offers a resource, all nodes count."""
RESOURCE_FRACTION = 0.001
"""Amount of such a resource that an actor or task takes: it chooses the node and does not limit how many run there."""
FREE_SECONDS, FREE_POLL_SECONDS = 15.0, 0.2
"""A driver that is killed and restarted at once still finds its old actors, which Ray ends within seconds."""
NODES_SECONDS, NODES_POLL_SECONDS = 900.0, 2.0
"""Time for a new node's machine to start and to pull its image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorPlan:
    """How many actors run and what each of them takes."""

    actors: int
    max_actors: int
    """Number of actors to grow to, where the cluster grows."""
    cpus: float
    gpus: int
    threads: int
    resources: dict[str, float] = field(default_factory=dict)
    """Custom resources that an actor takes, which bring it to the nodes that offer them."""
    task_cpus: dict[str, float] = field(default_factory=lambda: dict(TASK_CPUS))
    """Logical CPUs of each kind of task beside the actors."""

    @property
    def device(self) -> str:
        """Return the device that an actor computes on, as torch names it."""
        return "cuda" if self.gpus else "cpu"

    def describe(self) -> str:
        """Say how many actors there are, and what each has: '8 actors with a GPU each', '1 actor of 2 threads'."""
        count = f"{self.actors:,} actor{'s' * (self.actors > 1)}"
        if self.max_actors > self.actors:
            count = f"{self.actors:,} to {self.max_actors:,} actors"
        if self.gpus:
            return f"{count} with a GPU{' each' * (self.max_actors > 1)}"
        return f"{count} of {self.threads} thread{'s' * (self.threads > 1)}"


def cluster_cores() -> int:
    """Return the number of CPU cores that the cluster has at present, at least 1."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def resources_for(resource: str) -> dict[str, float]:
    """Return what to request for running on the nodes that offer a custom resource; nothing where no node offers it."""
    offered = any(node["Alive"] and node["Resources"].get(resource) for node in ray.nodes())
    return {resource: RESOURCE_FRACTION} if offered else {}


def plan_actors(wanted: int | None = None, most: int | None = None) -> ActorPlan:
    """Plan one actor a GPU where there are GPUs, else one for every MAX_THREADS cores; `wanted` overrides the number.

    Nodes that offer CLASSIFY are the only ones that count, if there are any. With `most`, more actors are started up to that
    number while work waits, on nodes that an autoscaler adds. Raises DoesNotFitError naming what is missing.
    """
    resources = resources_for(CLASSIFY)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = [node for node in nodes if resources.keys() <= node.keys()]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if gpus:
        return _plan_on_gpus(gpus, cluster_cores(), wanted, most, resources)
    return _plan_on_cores([int(node.get("CPU", 0)) for node in nodes], wanted, most, resources)


def _plan_on_gpus(
    gpus: int, cores: int, wanted: int | None, most: int | None, resources: dict[str, float]
) -> ActorPlan:
    actors = wanted or gpus
    if actors > gpus:
        raise DoesNotFitError(f"{actors} actors want a GPU each; the cluster has {gpus}")
    whole = TASK_CPUS | {"tokenize": WHOLE_CORE}
    return ActorPlan(
        actors=actors,
        max_actors=max(most or 0, actors),
        cpus=1,
        gpus=1,
        threads=1,
        resources=resources,
        task_cpus=whole if actors + sum(whole.values()) <= cores else TASK_CPUS,
    )


def _plan_on_cores(cores: list[int], wanted: int | None, most: int | None, resources: dict[str, float]) -> ActorPlan:
    """Plan actors of equal size, as the node with the fewest of `cores` can hold them."""
    cores = [count for count in cores if count >= 1]
    if not cores:
        raise DoesNotFitError("no node of the cluster offers a CPU core")
    smallest = min(cores)
    per_node = -(-wanted // len(cores)) if wanted else -(-smallest // MAX_THREADS)
    threads = smallest // per_node
    if threads < 1:
        raise DoesNotFitError(f"{wanted} actors want a core each; the cluster's {len(cores)} nodes have {sum(cores)}")
    actors = wanted or sum(count // threads for count in cores)
    # Tasks find room beside the actors, unless they have nodes of their own.
    cpus = threads - (0 if resources_for(TOKENIZE) else sum(TASK_CPUS.values()) / per_node)
    return ActorPlan(
        actors=actors, max_actors=max(most or 0, actors), cpus=cpus, gpus=0, threads=threads, resources=resources
    )


def wait_for_nodes(wanted: Mapping[str, float], log: Callable[[str], None] = lambda _: None) -> None:
    """Wait until the nodes of the cluster have these resources together, such as {"GPU": 8}; `log` gets what is there.

    Raises DoesNotFitError after NODES_SECONDS.
    """
    deadline, reported = time.monotonic() + NODES_SECONDS, ""
    while missing := {name: amount for name, amount in wanted.items() if _offered(name) < amount}:
        there = ", ".join(f"{_offered(name):g} of {amount:g} {name}s" for name, amount in missing.items())
        if time.monotonic() >= deadline:
            raise DoesNotFitError(f"waited {NODES_SECONDS / 60:g} minutes for nodes: the cluster has {there}")
        if there != reported:
            log(f"waiting for nodes: the cluster has {there}")
            reported = there
        time.sleep(NODES_POLL_SECONDS)


def _offered(resource: str) -> float:
    return sum(node["Resources"].get(resource, 0) for node in ray.nodes() if node["Alive"])


def plan_when_nodes_come(wanted: int | None = None) -> ActorPlan:
    """Wait for the first nodes, then plan as `plan_actors` does: on Kubernetes the head is ready before any worker."""
    deadline = time.monotonic() + NODES_SECONDS
    while True:
        try:
            return plan_actors(wanted)
        except DoesNotFitError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(NODES_POLL_SECONDS)


def check_free(plan: ActorPlan) -> None:
    """Raise DoesNotFitError if others hold what actors and tasks need, and do not release it within FREE_SECONDS."""
    cpus, gpus = plan.actors * plan.cpus + sum(plan.task_cpus.values()), plan.actors * plan.gpus
    deadline = time.monotonic() + FREE_SECONDS
    while not _has(free := ray.available_resources(), cpus, gpus):
        if time.monotonic() >= deadline:
            raise DoesNotFitError(
                f"{plan.actors} actors and their tasks need {cpus:g} CPUs and {gpus} GPUs; free are "
                f"{free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs. Wait for other jobs, or ask for fewer actors"
            )
        time.sleep(FREE_POLL_SECONDS)


def ask_node(plan: ActorPlan, function: Callable[..., Returned], *args: object) -> Returned:
    """Call a function on a node that an actor of this plan would run on, with as many GPUs, and return what it returns.

    A Ray of our own has no node but this machine, where it is called at once.
    """
    if find_cluster() is None:
        return function(*args)
    task = ray.remote(num_cpus=TASK_CPUS["read"], num_gpus=plan.gpus, resources=plan.resources)(function)
    returned: Returned = ray.get(task.remote(*args))
    return returned


def _has(free: Mapping[str, float], cpus: float, gpus: int) -> bool:
    return free.get("CPU", 0) + 1e-6 >= cpus and free.get("GPU", 0) >= gpus


def actor_threads() -> int | None:
    """Return how many threads the Ray actor may use that this code runs in, by its CPUs; None outside of actors."""
    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return None
    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
