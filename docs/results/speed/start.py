"""Time jobs of checkouts of this repository from start to end, in turns, since the machine may be shared; CPU time by process.

python docs/results/speed/start.py /path/to/older/checkout --rounds 5
python docs/results/speed/start.py /path/to/older/checkout --rounds 3 --rows 50000
python docs/results/speed/start.py /path/to/older/checkout --options "--model demo/model --input demo/corpus --speed 0.2"
"""

import argparse
import contextlib
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY))

from jobs.work.demo import make_backbone, write_reviews  # noqa: E402

SAMPLE_SECONDS = 0.1
"""Time between two looks at the CPU time of all processes of a job; what they use after the last look is not seen."""


def run(checkout: Path, *options: str) -> tuple[float, dict[str, float]]:
    """Run a checkout's classify.py on a Ray of its own; return its wall-clock time, and CPU seconds by kind of process.

    Raises CalledProcessError if it fails.
    """
    command = [sys.executable, str(checkout / "jobs" / "classify.py"), *options]
    used: dict[int, tuple[str, float]] = {}
    started = time.monotonic()
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=checkout,
        env=os.environ | {"RAY_ADDRESS": "local"},
    ) as job:
        driver = psutil.Process(job.pid)
        while job.poll() is None:
            with contextlib.suppress(psutil.Error):
                for process in [driver, *driver.children(recursive=True)]:
                    with contextlib.suppress(psutil.Error):
                        times = process.cpu_times()
                        used[process.pid] = kind_of(process, driver, used), times.user + times.system
            time.sleep(SAMPLE_SECONDS)
    seconds = time.monotonic() - started
    if job.returncode:
        raise subprocess.CalledProcessError(job.returncode, command)
    totals: dict[str, float] = {}
    for kind, cpu_seconds in used.values():
        totals[kind] = round(totals.get(kind, 0.0) + cpu_seconds, 2)
    return seconds, totals


def kind_of(process: psutil.Process, driver: psutil.Process, used: Mapping[int, tuple[str, float]]) -> str:
    """Name what a process is for; a worker is what it was when it had work."""
    title = " ".join(process.cmdline())
    if process == driver:
        return "driver"
    if "ray::" not in title:
        return "Ray"
    worker = (
        "actor" if "MapWorker" in title else "tasks" if "ray::Map" in title or "ray::_" in title else "other workers"
    )
    before = used.get(process.pid, (worker, 0.0))[0]
    return before if worker == "other workers" else worker


def main() -> None:
    """Print a JSON document: medians, and all rounds, of a run, of one that has nothing to do, and of --help."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkouts", type=Path, nargs="*", help="other checkouts, beside this one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1000, help="of a made corpus, for a model that never exits early")
    parser.add_argument("--options", default="", help="what classify.py gets in place of that model and corpus")
    args = parser.parse_args()
    checkouts = {str(path): path.resolve() for path in args.checkouts} | {"this": REPOSITORY}
    times: dict[str, dict[str, list[float]]] = {name: {"run": [], "nothing": [], "help": []} for name in checkouts}
    cpu_seconds: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as folder:
        model, corpus, out = Path(folder, "model"), Path(folder, "corpus.parquet"), Path(folder, "out")
        given = [str(Path(word).resolve()) if Path(word).exists() else word for word in shlex.split(args.options)]
        if not given:
            make_backbone(model)
            write_reviews(corpus, args.rows, seed=0)
            given = ["--model", str(model), "--input", str(corpus)]
        options = [*given, "--output", str(out)]
        for turn in range(args.rounds):
            for name, checkout in list(checkouts.items())[:: 1 if turn % 2 else -1]:
                shutil.rmtree(out, ignore_errors=True)
                for kind, words in (("run", options), ("nothing", options), ("help", ["--help"])):
                    seconds, cpu = run(checkout, *words)
                    times[name][kind].append(round(seconds, 2))
                    if kind == "run":
                        cpu_seconds[name].append({"all": round(sum(cpu.values()), 1), **cpu})
    medians = {name: {kind: statistics.median(all_) for kind, all_ in kinds.items()} for name, kinds in times.items()}
    print(json.dumps({"medians": medians, "rounds": times, "CPU seconds of runs": cpu_seconds}, indent=1))


if __name__ == "__main__":
    main()
