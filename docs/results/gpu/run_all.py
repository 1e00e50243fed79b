#!/usr/bin/env python
"""Run every measurement of this folder, one after the other, and print a short table last.

  python docs/results/gpu/run_all.py OUT                          on a machine with a GPU: some eight minutes
  python docs/results/gpu/run_all.py OUT --only neighbours training
  python docs/results/gpu/run_all.py OUT --quick --seconds 900    tiny sizes, to try the scripts on a CPU

OUT gets results.json, written anew after every step, and log.txt with all that the steps print. Every step has a process and a
time limit of its own: one that fails or takes too long does not end the others. What is left when `--seconds` are over is not
started.

It needs no network: a checkout of this repository, and Python 3.11 or later with torch, transformers, numpy, pandas, psutil,
pyarrow, safetensors, scipy and tokenizers. The whole job also needs jinja2 and ray with what ray[data] brings, its second step
nanotoken; transformers.Trainer needs accelerate; TensorRT needs tensorrt and onnx; torch.compile needs a C compiler. What needs
a package that is not there is left out, or is a step that failed. Without `--model` and `--input` model and corpus are made up.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import argparse
import json
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

import psutil

HERE = Path(__file__).resolve().parent
JOBS = HERE.parents[2] / "jobs"
GRACE_SECONDS = 10
"""Time that a step has to end in order, once its own is over."""
MACHINE = """
import json, os, platform, torch, transformers
gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
about = {"gpu": gpu and gpu.name, "gpu_gb": gpu and round(gpu.total_memory / 1e9, 1), "cores": os.cpu_count()}
versions = {"torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version()}
print(json.dumps(about | versions | {"cuda": torch.version.cuda}))
"""
"""Tells about the machine, in a process of its own, which leaves nothing on the device."""
LAST_WORDS = 120
"""Characters of the last line of a step that leaves no document, which are shown in its place."""
Document = Mapping[str, Any]


def of_benchmark(document: Document) -> str:
    """Write the rates of the engine and of the fastest peer, and the ratios."""
    rates, use = document["rows_per_s"], document.get("device_use", {}).get("early-exit", {})
    peers = {name: rate for name, rate in rates.items() if not name.startswith(("full-depth", "early-exit"))}
    parts = [f"early {rates['early-exit']:,.0f}", f"full {rates['full-depth']:,.0f}"]
    if peers:
        best = max(peers, key=peers.__getitem__)
        parts.append(f"{best} {peers[best]:,.0f}")
    parts += [f"wall/FLOPs {document['wall_over_flops']:.2f}"]
    parts += [f"ceiling {document['ceiling_fraction']:.2f} of {document['ceiling_tflops']:,.0f} TFLOP/s"]
    parts += [f"busy {use['busy']:.2f}", f"{use['kernels']:,} kernels"] if use else []
    return "; ".join(parts)


def of_whole_job(document: Document) -> str:
    """Write the rates of the job and of its engine."""
    engine, first = f"engine {document['engine_rows_per_s']:,.0f}", f"first {document['seconds_to_first_part']:.0f} s"
    if document["job_rows_per_s"] is None:
        return f"too few parts; {engine}; {first}"
    return f"job {document['job_rows_per_s']:,.0f}; {engine}; ratio {document['job_over_engine']:.2f}; {first}"


def of_training(document: Document) -> str:
    """Write the rates of all systems."""
    return "; ".join(f"{name} {rate:,.0f}" for name, rate in document["rows_per_s"].items())


def of_neighbours(document: Document) -> str:
    """Write the sums of what differs, by precision."""
    parts = []
    for dtype, found in document.items():
        exits, labels = (sum(way[key] for way in found["ways"].values()) for key in ("exits_differ", "labels_differ"))
        rows = sum(way["rows"] for way in found["ways"].values())
        parts.append(f"{dtype}: {exits:,} exits, {labels:,} labels of {rows:,} differ")
    return "; ".join(parts)


def of_agreement(document: Document) -> str:
    """Write the labels and exits that differ for the model as it is, in bf16, and for tanh alone."""
    parts = []
    for name in ("bf16, own", "fp32, tanh"):
        found = document[name]["threshold"]
        parts.append(f"{name}: {found['labels_differ']:,} labels, {found['exits_differ']:,} exits")
    return f"{'; '.join(parts)} of {document['rows']:,} differ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A measurement."""

    script: Path
    options: str
    quick: str
    """Options for tiny sizes, which come after `options` and win."""
    seconds: float
    """Time limit."""
    headline: Callable[[Document], str]
    """Writes the document that the script leaves in a few words."""
    takes_model: bool = False
    """Whether a given model and corpus are for this script."""
    job_options: str = ""
    """Options that the script hands on, behind `--`."""


def benchmark(options: str, seconds: float) -> Step:
    """Return a run of jobs/benchmark.py."""
    tiny = "--shape 3x64 --rows 300 --mean-exit 1.5 --mean-tokens 12 --repetitions 1"
    script = JOBS / "benchmark.py"
    return Step(script=script, options=options, quick=tiny, seconds=seconds, headline=of_benchmark)


def whole_job(job_options: str) -> Step:
    """Return a run of whole_job.py with these options of jobs/classify.py."""
    return Step(
        script=HERE / "whole_job.py",
        options="--rows 1000000 --mean-tokens 30",
        quick="--shape 3x64 --rows 20000 --files 8 --bundle-rows 2000",
        seconds=150,
        headline=of_whole_job,
        takes_model=True,
        job_options=job_options,
    )


TINY = "--shape 3x64 --rows 300"
STEPS = {
    "bert-base": benchmark("--peers hf-bf16-sorted --rows-per-call 1000 4096 16384", 100),
    "whole-job": whole_job(""),
    "training": Step(
        script=HERE / "training.py",
        options="--rows 4096 --distill-rows 32768 --repetitions 2",
        quick="--shape 2x64 --rows 256 --distill-rows 256 --mean-tokens 12 --repetitions 1",
        seconds=90,
        headline=of_training,
    ),
    "neighbours": Step(
        script=HERE / "neighbours.py", options="", quick=TINY, seconds=70, headline=of_neighbours, takes_model=True
    ),
    "agreement": Step(
        script=HERE / "agreement.py", options="", quick=TINY, seconds=70, headline=of_agreement, takes_model=True
    ),
    "exit-2": benchmark("--mean-exit 2 --peers", 60),
    "128-tokens": benchmark("--mean-tokens 128 --rows 32768 --peers hf-bf16-sorted", 80),
    "attention": benchmark("--head attention --peers", 60),
    "peers": benchmark(
        "--rows 32768 --repetitions 2 --peers hf-bf16-sorted hf-bf16-compiled hf-fp32-sorted tensorrt-fp16", 150
    ),
    "whole-job-nanotoken": whole_job("--fast-tokenizer"),
}
"""The measurements, the more important ones first."""


def command_of(step: Step, document: Path, *, quick: bool, given: Sequence[str]) -> list[str]:
    """Write the command of a step; `given` are options that name a model and a corpus."""
    words = [sys.executable, str(step.script), *shlex.split(step.options), *(shlex.split(step.quick) if quick else [])]
    words += [*(given if step.takes_model else []), "--output", str(document)]
    return words + (["--", *shlex.split(step.job_options)] if step.job_options else [])


def run(command: Sequence[str], seconds: float, log: IO[str]) -> str:
    """Run a command for at most this many seconds; return how it ended: "ok", "exit code 1" or "took too long"."""
    started = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        code = started.wait(seconds)
    except subprocess.TimeoutExpired:
        end(psutil.Process(started.pid))
        started.wait()
        return "took too long"
    return f"exit code {code}" if code else "ok"


def end(process: psutil.Process) -> None:
    """End a process and those that it has started: in order, or by force."""
    family = [process, *process.children(recursive=True)]
    process.terminate()
    _, alive = psutil.wait_procs(family, timeout=GRACE_SECONDS)
    for left in alive:
        with suppress(psutil.NoSuchProcess):
            left.kill()


def measure(step: Step, command: Sequence[str], document: Path, seconds: float, log: IO[str]) -> dict[str, Any]:
    """Run a step for at most this many seconds and read its document, if it leaves one."""
    if seconds <= 0:
        return {"status": "not started", "seconds": 0.0, "headline": "", "document": None}
    print(f"\n$ {shlex.join(command)}", file=log, flush=True)
    before, started = Path(log.name).stat().st_size, time.monotonic()
    status = run(command, seconds, log)
    took = round(time.monotonic() - started, 1)
    if document.exists():
        found = json.loads(document.read_text())
        return {"status": status, "seconds": took, "headline": step.headline(found), "document": found}
    last = Path(log.name).read_bytes()[before:].decode(errors="replace").strip().rpartition("\n")[2]
    return {"status": status, "seconds": took, "headline": last[:LAST_WORDS], "document": None}


def table(results: Mapping[str, Document]) -> str:
    """Return a line for every step: how it ended, how long it took, and its document in a few words."""
    lines = [
        f"{name:20} {found['status']:14} {found['seconds']:5.0f} s  {found['headline']}".rstrip()
        for name, found in results.items()
    ]
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of this script's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, metavar="OUT", help="folder for results.json and log.txt")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--seconds", type=float, default=480, help="time for all steps (default: 480)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--model", help="early-exit model for the steps with a corpus (default: made up)")
    parser.add_argument("--input", help="corpus for --model, with a column `text` (default: made up)")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    given = [f"--{name}={value}" for name, value in (("model", args.model), ("input", args.input)) if value]
    args.output.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + args.seconds
    machine = subprocess.run([sys.executable, "-c", MACHINE], capture_output=True, text=True, check=True)
    document: dict[str, Any] = {"machine": json.loads(machine.stdout), "steps": {}}
    with tempfile.TemporaryDirectory() as folder, open(args.output / "log.txt", "w") as log:
        for name in args.only:
            path, step = Path(folder, f"{name}.json"), STEPS[name]
            command = command_of(step, path, quick=args.quick, given=given)
            seconds = min(step.seconds, deadline - time.monotonic())
            found = document["steps"][name] = measure(step, command, path, seconds, log)
            (args.output / "results.json").write_text(json.dumps(document, indent=1) + "\n")
            print(f"{name}: {found['status']}", flush=True)
    print(f"\n{json.dumps(document['machine'])}\n{table(document['steps'])}")


if __name__ == "__main__":
    main()
