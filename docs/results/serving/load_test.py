#!/usr/bin/env python
"""Load test of the server with wrk, and of token-budget batching against Ray Serve's `max_batch_size`, in one process.

    python docs/results/serving/load_test.py --model MODEL      needs wrk; loopback only, some minutes

All applications run the same engine in replicas on one machine, one under load at a time, in rounds that take turns; where
there is a GPU, ours is alone, on it. Texts have log-normal lengths. Every answer is compared with the engine's own for all
texts at once, as the batch job runs it; texts whose uncertainty lies near the threshold, where rounding may decide, are left
out.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from jobs.work import loading
from models.directory.config import plain_config
from models.directory.digest import weights_digest
from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.api.pretrained import load_tokenizer_spec
from pipeline.benchmark.synthetic import reviews
from pipeline.cluster.connect import join_or_start
from pipeline.cluster.resources import ActorPlan
from pipeline.corpus.tokenize import Tokenizer
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.identity import ModelIdentity
from pipeline.serving import deployment
from pipeline.serving.limits import RequestLimits
from pipeline.serving.spec import ServingSpec

PORT, MARGIN = 8765, 0.02
OVERLOAD_SECONDS = 40
"""Several times what may wait in the queue."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CORES = len(os.sched_getaffinity(0))


class FixedRows:
    """What a user of Ray Serve writes: `@serve.batch` with a number of requests, and the same engine behind it."""

    def __init__(self, spec: ServingSpec, rows: int, wait: float) -> None:
        torch.set_num_threads(CORES)
        self.engine = Engine(LoadedModel(EarlyExitModel.from_pretrained(spec.model), spec.engine))
        self.tokenizer, self.thread = Tokenizer(spec.tokenizer), ThreadPoolExecutor(1)
        self.batch.set_max_batch_size(rows)
        self.batch.set_batch_wait_timeout_s(wait)

    @serve.batch  # type: ignore[untyped-decorator]
    async def batch(self, texts: list[str]) -> list[dict[str, Any]]:
        return await asyncio.get_running_loop().run_in_executor(self.thread, self._run, texts)

    def _run(self, texts: list[str]) -> list[dict[str, Any]]:
        answers = self.engine.run(self.tokenizer(texts).rows)
        pairs = zip(answers.label_ids.tolist(), answers.exit_layers.tolist(), strict=True)
        return [{"label_id": label, "exit_layer": layer} for label, layer in pairs]

    async def __call__(self, request: Request) -> JSONResponse:
        return JSONResponse({"results": [await self.batch((await request.json())["text"])]})


def texts_of(count: int, seed: int) -> list[str]:
    """Texts whose lengths are log-normal, sigma 0.8."""
    random, made = np.random.default_rng(seed), [review.text for review in reviews(4000, seed)]
    joined = np.clip(random.lognormal(0.9, 0.8, count), 1, 40).astype(int)
    return [" ".join(random.choice(made, size)) for size in joined]


def write_case(folder: Path, name: str, path: str, texts: list[str], answers: list[str], rows: int) -> Path:
    """Write bodies of `rows` texts each, with their answers, as Lua."""
    groups = [range(start, start + rows) for start in range(0, len(texts) - rows + 1, rows)]
    bodies = [json.dumps({"text": texts[g[0]] if rows == 1 else [texts[i] for i in g]}) for g in groups]
    wanted = [" ".join(answers[i] for i in g) for g in groups]
    quoted = [", ".join(f"[==[{value}]==]" for value in values) for values in (bodies, wanted)]
    file = folder / f"{name}.lua"
    file.write_text(f'return {{path = "{path}", bodies = {{{quoted[0]}}}, answers = {{{quoted[1]}}}}}')
    return file


def load(case: Path, connections: int, seconds: int, *, obey: bool = False) -> dict[str, float]:
    """Run wrk; return what load.lua printed. `obey`: callers that are refused wait as they are told."""
    script = Path(__file__).with_name("load.lua")
    command = ["wrk", "-t", "1", "-c", str(connections), "-d", f"{seconds}s", "--timeout", "60s", "-s", str(script)]
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{PORT}"],
        env=os.environ | {"LOAD_CASE": str(case)} | ({"LOAD_OBEY": "1"} if obey else {}),
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def show(name: str, connections: int, runs: list[dict[str, float]], rows: int) -> None:
    """Print a line of the table: medians of the rounds, sums of what should be zero."""

    def middle(key: str) -> float:
        return statistics.median(run[key] for run in runs)

    rate = statistics.median(run["right"] * rows / run["seconds"] for run in runs)
    bad = " | ".join(f"{sum(run[key] for run in runs):,.0f}" for key in ("refused", "failed", "wrong", "lost"))
    times = " | ".join(f"{middle(key):,.0f}" for key in ("p50", "p95", "p99"))
    print(f"| {name} | {connections} | {rate:,.0f} | {times} | {bad} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--speed", type=float, default=0.3)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--texts", type=int, default=4000)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 32, 128])
    args = parser.parse_args()
    model = EarlyExitModel.from_pretrained(args.model)
    criterion = Criterion(speed=args.speed)
    engine = EngineConfig(criterion=criterion, dtype=args.dtype)
    tokenizer = load_tokenizer_spec(args.model, model, None)
    spec = ServingSpec(
        model=loading.absolute_model(args.model),
        config=plain_config(model.config),
        identity=ModelIdentity.of(model, weights_digest(args.model), tokenizer),
        precision=None,
        tokenizer=tokenizer,
        engine=engine,
        limits=RequestLimits(),
    )
    texts = texts_of(args.texts, seed=1)
    rows = Tokenizer(spec.tokenizer)(texts).rows
    with LoadedModel(model, engine, DEVICE) as loaded:
        whole = Engine(loaded).run(rows)
    clear = np.flatnonzero(np.abs(whole.uncertainty - args.speed) > MARGIN)
    texts = [texts[i] for i in clear]
    answers = [f"{whole.label_ids[i]}:{whole.exit_layers[i]}" for i in clear]
    layers = whole.exit_layers[clear].mean()
    lengths = f"{rows.lengths.mean():.0f} tokens on average, longest {rows.lengths.max()}"
    print(f"{len(texts):,} texts, {lengths}, mean exit {layers:.2f}")

    join_or_start()
    serve.start(http_options={"host": "127.0.0.1", "port": PORT}, logging_config={"log_level": "ERROR"})
    plan = ActorPlan(actors=1, max_actors=1, cpus=0.1, gpus=int(DEVICE == "cuda"), threads=CORES)
    serve.run(deployment.application(spec, plan), name="ours", route_prefix="/ours")
    systems = {"token budget": "/ours/classify"}
    for size, wait in ((32, 0.01), (128, 0.05)) if DEVICE == "cpu" else ():  # the replica has the GPU for itself
        plain = serve.deployment(FixedRows, ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=1000)
        name = f"max_batch_size {size}"
        serve.run(plain.bind(spec, size, wait), name=name, route_prefix=f"/rows{size}")
        systems[name] = f"/rows{size}/"

    print("| system | connections | rows/s | p50 ms | p95 ms | p99 ms | 429 | other errors | wrong | lost |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        cases = {
            n: write_case(Path(folder), f"case{i}", p, texts, answers, 1) for i, (n, p) in enumerate(systems.items())
        }
        for case in cases.values():
            load(case, 8, 2)  # warm-up
        for connections in args.connections:
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
            for _ in range(args.rounds):
                for name, case in cases.items():
                    runs[name].append(load(case, connections, args.seconds))
            for name, found in runs.items():
                show(name, connections, found, 1)
        lists = write_case(Path(folder), "lists", "/ours/classify", texts, answers, 50)
        show("lists of 50", 4, [load(lists, 4, args.seconds)], 50)
        for name, obey in (("wait as told", True), ("try again at once", False)):
            overload = load(lists, 256, OVERLOAD_SECONDS, obey=obey)
            show(f"lists of 50, refused callers {name}", 256, [overload], 50)
    serve.shutdown()


if __name__ == "__main__":
    main()
