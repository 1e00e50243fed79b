"""Ways to run jobs as users do."""

import importlib
import io
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli import command

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"

SHARED_RAY = {"RAY_ADDRESS": "local", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
"""Environment of the jobs that share this process and its Ray, whose core reads the token once."""


def run_job(name: str, *options: str, timeout: float = 600, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a job in a process of its own, as a user does, on a Ray of its own."""
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "jobs" / name), *options],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"RAY_ADDRESS": "local"} | environment,
        check=False,
    )


def run_job_here(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a job in this process, which spares the imports and, once a first job has started Ray here, that start too."""
    job = importlib.import_module(f"jobs.{name.removesuffix('.py')}")
    stdout, stderr = io.StringIO(), io.StringIO()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
        patch.setattr(sys, "argv", [name, *options])
        patch.setattr(sys, "unraisablehook", sys.unraisablehook)  # the job sets its own
        for variable, value in SHARED_RAY.items():
            patch.setenv(variable, value)
        try:
            command.run(job.main, job.build_parser())
        except SystemExit as end:
            code = end.code
        finally:
            signal.signal(signal.SIGTERM, before)
    assert isinstance(code, int)
    return subprocess.CompletedProcess([name, *options], code, stdout.getvalue(), stderr.getvalue())


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """Mount a file system of this size on an empty folder; skip the test where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("mounts a small file system")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def shards_kept(out: Path) -> int:
    """Count the shards whose receipts the driver has stored; their parts appear earlier, and count for nothing before."""
    return sum(pq.read_metadata(path).num_rows for path in out.glob("_receipts/g*/*.parquet"))


def finished_files(out: Path) -> set[str]:
    """Return the files of the shards whose receipts the driver has stored."""
    receipts = [pq.read_table(path, columns=["file"]) for path in out.glob("_receipts/g*/*.parquet")]
    return set(pa.concat_tables(receipts)["file"].to_pylist())


def classify_options(model: Path, corpus: Path, out: Path, *more: str) -> list[str]:
    return ["--model", str(model), "--input", str(corpus), "--output", str(out), "--speed", "0.6", *more]


def classify(model: Path, corpus: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return run_job_here("classify.py", *classify_options(model, corpus, out, *more))


def start_job(model: Path, corpus: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(REPOSITORY / "jobs" / "classify.py"), *classify_options(model, corpus, out, *more)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"RAY_ADDRESS": "local"}
    )


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """List the processes that a job has started, and those that these have started."""
    return psutil.Process(process.pid).children(recursive=True)


def has_handler(process: subprocess.Popen[str], number: signal.Signals) -> bool:
    """Return whether a process handles a signal by now, in place of dying of it."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def said(stderr: str) -> list[str]:
    """Return the lines of a job's errors: those of its progress, which slow runs print, left out."""
    return [line for line in stderr.splitlines() if "rows/s" not in line]


def running(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return those that have not ended; a dead one that nobody has waited for yet has ended."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            found += [process] if process.status() != psutil.STATUS_ZOMBIE else []
    return found


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
