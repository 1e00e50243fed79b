"""How many actors fit on a cluster, and what each of them takes."""

import time
from dataclasses import dataclass, field

import ray
import ray.data

MAX_THREADS = 8
"""Threads of a CPU actor, each of which takes its own rows. More would share a model, but not the time in which Python holds
its lock; and an actor of this size fits into one NUMA node of the usual servers, where the system then tends to keep it."""
TASK_CPUS = {"read": 0.1, "tokenize": 0.3, "write": 0.1}
"""Logical CPUs of the tasks beside the actors: fractions, so that they fit beside an actor on a machine of one core."""
CLASSIFY, TOKENIZE = "classify", "tokenize"
"""Custom resources by which a cluster says which nodes are for actors, and which for the tasks beside them. Any amount will do:
`ray start --resources '{"classify": 1}'`. Where no node offers one, every node will do."""
RESOURCE_FRACTION = 0.001
"""Of such a resource, for each actor or task: it says where, not how many."""
FREE_SECONDS, FREE_POLL_SECONDS = 15.0, 0.2
"""A driver that is killed and started again at once still finds its old actors, which Ray ends within seconds."""
COMING_SECONDS, COMING_POLL_SECONDS = 900.0, 2.0
"""Until a node's machine has started and its image is there."""


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


def resources_for(resource: str) -> dict[str, float]:
    """Return the custom resources that lead to the nodes which offer this one; none where no node does."""
    offered = any(node["Alive"] and node["Resources"].get(resource) for node in ray.nodes())
    return {resource: RESOURCE_FRACTION} if offered else {}


def plan_actors(wanted: int | None = None, most: int | None = None) -> ActorPlan:
    """Plan one actor a GPU where there are GPUs, else one for every MAX_THREADS cores; `wanted` overrides the number.

    Nodes that offer CLASSIFY are the only ones that count, if there are any.

    With `most`, more actors are started up to that number while work waits, on nodes that an autoscaler adds.

    Raises DoesNotFitError naming what is missing.
    """
    place = resources_for(CLASSIFY)
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
    cpus = threads - (0 if resources_for(TOKENIZE) else sum(TASK_CPUS.values()) / per_node)
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
                f"{free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs. Wait for other jobs, or ask for fewer actors"
            )
        time.sleep(FREE_POLL_SECONDS)


def actor_threads() -> int | None:
    """Return how many threads the Ray actor may use that this code runs in, by its CPUs; None outside of actors."""
    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return None
    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
