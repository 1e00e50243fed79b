"""Custom resources say where stages run, on a real cluster of three nodes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.jobs import REPOSITORY

pytestmark = pytest.mark.e2e

SCRIPT = REPOSITORY / "docs" / "results" / "nodes" / "run.py"
LATE_NODE = """
import time
from concurrent.futures import ThreadPoolExecutor
import ray
from ray.cluster_utils import Cluster
from pipeline.cluster.resources import plan_when_nodes_come, wait_for_nodes
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
with ThreadPoolExecutor() as pool:
    plan = pool.submit(plan_when_nodes_come, 2)
    time.sleep(1)
    early = plan.done()
    cluster.add_node(num_cpus=2)
    print(early, plan.result(60).actors)
    reported = []
    waiting = pool.submit(wait_for_nodes, {"CPU": 3}, reported.append)
    time.sleep(3)
    early = waiting.done()
    cluster.add_node(num_cpus=1)
    waiting.result(60)
    print(early, reported)
ray.shutdown()
cluster.shutdown()
"""


def test_actors_and_tasks_run_on_the_nodes_that_offer_their_resource(model_directory: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--model", str(model_directory), "--rows", "800", "--only", "divided"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "800 rows in" in done.stdout
    seen = re.findall(r"^  (\w+) +on (head|node \d, \w+) +seen at work", done.stdout, re.MULTILINE)
    assert ("classify", "node 2, classify") in seen
    assert {node for stage, node in seen if stage == "classify"} == {"node 2, classify"}
    assert {node for stage, node in seen if stage != "classify"} <= {"node 1, tokenize"}


def test_a_server_waits_for_the_nodes_of_its_cluster() -> None:
    command = [sys.executable, "-c", LATE_NODE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["False 2", "False ['waiting for nodes: the cluster has 2 of 3 CPUs']"]
