#!/usr/bin/env python
"""See where the stages run on a cluster of unlike nodes, and what dividing the work between them costs on one machine.

Starts three Ray nodes here, a head without a core and two of one core each, and runs jobs/classify.py on them: once with the
two nodes alike, once with one that offers the custom resource `classify` and one that offers `tokenize`. Every 50 ms it looks
which stages are at work under which node.

    python docs/results/nodes/run.py --model MODEL --rows 40000
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import argparse
import contextlib
import json
import os
import re
import subprocess
import tempfile
import time
from collections import Counter

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.benchmark.synthetic import reviews

SECONDS = 0.05
JOB = Path(__file__).resolve().parents[3] / "jobs" / "classify.py"
STAGE = re.compile(r"\((?:MapBatches\()?_?(read|tokenize|ClassifyActor|write)")


def run(model: str, corpus: Path, output: Path, resources: list[dict[str, float]]) -> None:
    """Run the job on a cluster of a head and a node of one core for each of `resources`; print what was seen."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = {"head": cluster.head_node}
        for number, offered in enumerate(resources, start=1):
            nodes[f"node {number}, {' '.join(offered) or 'any'}"] = cluster.add_node(num_cpus=1, resources=offered)
        raylets = {name: node.all_processes["raylet"][0].process.pid for name, node in nodes.items()}
        command = [sys.executable, str(JOB), "--model", model, "--input", str(corpus), "--output", str(output)]
        job = subprocess.Popen(
            command,
            env=os.environ | {"RAY_ADDRESS": cluster.address, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.DEVNULL,
        )
        seen: Counter[tuple[str, str]] = Counter()
        while job.poll() is None:
            seen.update((stage, name) for name, pid in raylets.items() for stage in stages_under(pid))
            time.sleep(SECONDS)
        if job.returncode:
            raise SystemExit(f"the job failed with exit code {job.returncode}")
    finally:
        cluster.shutdown()
    told = json.loads((output / "_manifest.json").read_text())
    rows, seconds = told["totals"]["rows_out"], told["seconds"]
    print(f"{rows:,} rows in {seconds:.1f} s: {rows / seconds:,.0f} rows/s")
    for (stage, name), times in sorted(seen.items()):
        print(f"  {stage:<10} on {name:<18} seen at work {times} times")


def stages_under(raylet: int) -> list[str]:
    """Name the stages that the workers of a node are at now."""
    found = []
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(raylet).children():
            with contextlib.suppress(psutil.Error):
                match = STAGE.search(" ".join(child.cmdline()))
                if match:
                    found.append(match[1].removesuffix("Actor").lower())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--only", choices=("alike", "divided"))
    args = parser.parse_args()
    # A folder of our own for Ray (with a short name, for its sockets): jobs nearby would join a cluster in the usual one.
    with tempfile.TemporaryDirectory(prefix="nodes-", dir="/tmp") as folder:
        os.environ |= {"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled"}
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        texts = [review.text for review in reviews(args.rows, seed=1)]
        for number in range(8):
            pq.write_table(pa.table({"text": texts[number::8]}), corpus / f"{number}.parquet")
        kinds: dict[str, list[dict[str, float]]] = {
            "alike": [{}, {}],
            "divided": [{"tokenize": 1.0}, {"classify": 1.0}],
        }
        for title, resources in kinds.items():
            if args.only not in (None, title):
                continue
            print(f"two nodes, {title}:", flush=True)
            run(args.model, corpus, Path(folder, title), resources)


if __name__ == "__main__":
    main()
