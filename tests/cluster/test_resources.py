"""What only a node of the cluster can know is asked there."""

import os

import pytest
import torch

from models.precision import best_dtype, precision_on
from pipeline.cluster import resources
from pipeline.cluster.address import ClusterAddress
from pipeline.cluster.connect import join_or_start
from pipeline.cluster.resources import ActorPlan, ask_node
from tests.support.jobs import SHARED_RAY

PLAN = ActorPlan(actors=1, max_actors=1, cpus=1, gpus=0, threads=1)


def test_a_ray_of_our_own_has_no_other_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert ask_node(PLAN, os.getpid) == os.getpid()


@pytest.mark.e2e
def test_a_node_of_a_cluster_says_what_it_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SHARED_RAY.items():
        monkeypatch.setenv(name, value)
    join_or_start()
    monkeypatch.setattr(resources, "find_cluster", lambda: ClusterAddress("192.0.2.7:6379", "RAY_ADDRESS"))
    assert ask_node(PLAN, lambda: os.getpid()) != os.getpid()
    cpu = torch.device("cpu")
    assert ask_node(PLAN, precision_on, "auto", cpu) == best_dtype(cpu)
    assert ask_node(PLAN, precision_on, "int8", cpu) == f"int8 in {best_dtype(cpu)}"
