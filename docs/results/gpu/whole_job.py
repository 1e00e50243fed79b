#!/usr/bin/env python
"""Compare the whole job with its engine: jobs/classify.py over a corpus, and then the engine alone on rows of the same corpus.

One process after the other, with the same thresholds, and as many rows in a call as in a bundle of the job. The steady rate is
that of the rows of all parts but the first, between the first part and the last: a part's file is written when its bundle is
done. It wants some tens of parts, since bundles come in groups. Options after `--` go to jobs/classify.py.

  python docs/results/gpu/whole_job.py --rows 3000000 --mean-tokens 30
  python docs/results/gpu/whole_job.py --rows 3000000 --mean-tokens 30 -- --fast-tokenizer
  python docs/results/gpu/whole_job.py --shape 2x128 --rows 20000 --bundle-rows 2000 --files 4
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import TypeVar

import numpy as np

from docs.results.gpu import made
from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.benchmark.measure import seconds_of, synchronizer
from pipeline.benchmark.workload import Workload
from pipeline.bulk.bundle import BUNDLE_ROWS
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.output.results import published, shards

CLASSIFY = Path(__file__).resolve().parents[3] / "jobs" / "classify.py"
ROUNDS = 3
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Arrival:
    """A part that the job wrote."""

    at: float
    """When its file was written, in seconds since 1970."""
    rows: int


def arrivals(output: str) -> list[Arrival]:
    """List the parts of a published folder, in the order in which they were written."""
    done = shards(published(output), ["part", "rows_in"]).group_by("part").aggregate([("rows_in", "sum")])
    found = [Arrival(os.stat(f"{output}/{row['part']}").st_mtime, row["rows_in_sum"]) for row in done.to_pylist()]
    return sorted(found, key=lambda arrival: arrival.at)


def steady_rate(parts: Sequence[Arrival]) -> float | None:
    """Return the rows a second between the first part and the last; None if there are fewer than two."""
    if len(parts) < 2 or parts[-1].at <= parts[0].at:
        return None
    return sum(part.rows for part in parts[1:]) / (parts[-1].at - parts[0].at)


def in_a_process(function: Callable[..., Result], *values: object) -> Result:
    """Call a function in a process of its own, so that it leaves nothing on the device."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *values).result()


def load(case: made.Case) -> Engine:
    """Load the model as the job's actors do."""
    return Engine(LoadedModel(EarlyExitModel.from_pretrained(case.model), EngineConfig(), made.DEVICE))


def prepare(args: argparse.Namespace, folder: Path) -> tuple[made.Case, float]:
    """Make what is not given, and find the threshold."""
    case = made.open_case(args, folder, args.files)
    return case, made.speed_of(args, load(case), case.rows(made.SAMPLE_ROWS))


def engine_rate(case: made.Case, speed: float, limit: int, call_rows: int) -> tuple[float, float]:
    """Return the rows a second of the engine alone, the median of some rounds after a warm-up, and the mean exit."""
    engine, rows = load(case).with_criterion(Criterion(speed=speed)), case.rows(limit)
    work = Workload(rows=rows, exit_plan=np.zeros(len(rows), np.int64))
    calls = work.in_calls_of(call_rows)
    exits = np.concatenate([engine.run(call.rows).exit_layers for call in calls])

    def run(_work: Workload) -> None:
        for call in calls:
            engine.run(call.rows)

    seconds = [seconds_of(run, work, synchronizer(made.DEVICE)) for _ in range(ROUNDS)]
    return len(rows) / statistics.median(seconds), float(exits.mean())


def run_job(case: made.Case, output: str, speed: float, more: Sequence[str]) -> tuple[float, float]:
    """Run the job to its end; return when it was started, in seconds since 1970, and how long it took."""
    command = [sys.executable, str(CLASSIFY), "--model", case.model, "--input", case.input, "--output", output]
    command += ["--text-column", case.text_column, "--speed", str(speed), *more]
    started = time.time()
    subprocess.run(command, env=os.environ | {"RAY_ADDRESS": "local"}, check=True)
    return started, time.time() - started


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of this script's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_options(parser, rows=1_000_000)
    parser.add_argument("--files", type=int, default=32, help="of a made-up corpus (default: 32)")
    parser.add_argument("--bundle-rows", type=int, default=BUNDLE_ROWS[made.DEVICE], help="rows of a bundle and a call")
    parser.add_argument(
        "--engine-rows", type=int, default=262_144, help="first rows of the corpus for the engine alone"
    )
    parser.add_argument("job_options", nargs="*", metavar="OPTION", help="more options of jobs/classify.py, after --")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        case, speed = in_a_process(prepare, args, Path(folder))
        more = ["--bundle-rows", str(args.bundle_rows), *args.job_options]
        started, seconds = run_job(case, f"{folder}/out", speed, more)
        parts = arrivals(f"{folder}/out")
        engine, mean_exit = in_a_process(engine_rate, case, speed, args.engine_rows, args.bundle_rows)
    job, rows = steady_rate(parts), sum(part.rows for part in parts)
    document = {
        "rows": rows,
        "parts": len(parts),
        "speed": speed,
        "mean_exit": mean_exit,
        "seconds": seconds,
        "seconds_to_first_part": parts[0].at - started,
        "job_rows_per_s": job,
        "engine_rows_per_s": engine,
        "job_over_engine": None if job is None else job / engine,
    }
    shown = partial("{:,.4g}".format)
    print("\n| rows | parts | s in all | s to the first part | job, rows/s | engine, rows/s | job / engine |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    cells = [f"{rows:,}", f"{len(parts)}", f"{seconds:.1f}", f"{parts[0].at - started:.1f}"]
    cells += (
        ["too few parts", f"{engine:,.0f}", ""]
        if job is None
        else [f"{job:,.0f}", f"{engine:,.0f}", shown(job / engine)]
    )
    print(f"| {' | '.join(cells)} |")
    made.write_document(document, args.output)


if __name__ == "__main__":
    main()
