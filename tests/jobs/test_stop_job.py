"""Jobs that are asked to end: they do, with all that they have started, say in one line what is kept, and go on from there."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.benchmark.synthetic import CLASSES, reviews
from tests.support.jobs import REPOSITORY, children, free_port, has_handler, run_job_here, running, shards_kept

START_SECONDS = 200
END_SECONDS = 20
"""Longest wait for the end: five seconds are promised, and this machine may be busy."""


class Stopped:
    """A job in a process of its own that was asked to end, twice, once it was at work."""

    def __init__(self, name: str, options: list[str], folder: Path, at_work: Callable[["Stopped"], bool]) -> None:
        self.name, self.log = name, folder / "log"
        self.family: list[psutil.Process] = []
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(REPOSITORY / "jobs" / name), *options],
                stdout=log,
                stderr=log,
                text=True,
                env=os.environ | {"RAY_ADDRESS": "local", "PYTHONUNBUFFERED": "1"},
            )
        deadline = time.monotonic() + START_SECONDS
        while not at_work(self) and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert self.process.poll() is None, self.output
        assert at_work(self), self.output
        self.family = children(self.process)
        for _ in range(2):
            self.process.send_signal(signal.SIGTERM)
            time.sleep(0.05)

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait(self) -> None:
        """Wait for the end of the job and of all that it has started, and look at what it leaves behind."""
        self.process.wait(END_SECONDS)
        _, left = psutil.wait_procs(self.family, timeout=END_SECONDS)
        assert not running(left)
        assert "Traceback" not in self.output
        assert "error" not in self.output
        # While Ray shuts down, its C++ core leaves SIGTERM to the system, so that a second one may end the process at once. To
        # a shell both are 143.
        if self.process.returncode == -signal.SIGTERM:
            return
        assert self.process.returncode == 128 + signal.SIGTERM, self.output
        lines = self.output.splitlines()
        told = [number for number, line in enumerate(lines) if line.startswith(f"{self.name}: stopped by SIGTERM: ")]
        assert told == [len(lines) - 1]

    def close(self) -> None:
        for process in running(self.family):
            process.kill()
        self.process.kill()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make 24 files of 1,500 reviews with labels."""
    folder, made = tmp_path_factory.mktemp("corpus"), list(reviews(1500, seed=1))
    table = pa.table({"text": [r.text for r in made], "label": [CLASSES[r.label] for r in made]})
    for number in range(24):
        pq.write_table(table, folder / f"{number:02}.parquet")
    return folder


Start = Callable[[str, list[str], Callable[[Stopped], bool]], Stopped]


@pytest.fixture
def stop(tmp_path: Path) -> Iterator[Start]:
    started: list[Stopped] = []

    def start(name: str, options: list[str], at_work: Callable[[Stopped], bool]) -> Stopped:
        started.append(Stopped(name, options, tmp_path, at_work))
        return started[-1]

    yield start
    for job in started:
        job.close()


def prints(text: str) -> Callable[[Stopped], bool]:
    return lambda job: text in job.output


def started(job: Stopped) -> bool:
    return has_handler(job.process, signal.SIGTERM)


@pytest.mark.e2e
def test_stopped_labelling_goes_on_with_what_is_left(
    stop: Start, model_directory: Path, corpus: Path, tmp_path: Path
) -> None:  # and so does classify.py: see test_classify_job.py
    out, more = tmp_path / "out", tmp_path / "more"
    more.mkdir()
    for number in range(32):
        shutil.copy(corpus / "00.parquet", more / f"{number:02}.parquet")
    options = ["--model", str(model_directory), "--input", str(more), "--output", str(out), "--bundle-rows", "1500"]
    stop("label.py", options, lambda _: shards_kept(out) > 1).wait()
    kept = shards_kept(out)
    assert 2 <= kept < 32
    again = run_job_here("label.py", *options)
    assert again.returncode == 0, again.stderr
    assert f"{1500 * (32 - kept):,} rows in" in again.stdout


@pytest.mark.e2e
@pytest.mark.parametrize("job", ["distill.py", "finetune.py"])
def test_a_stopped_training_goes_on_from_its_checkpoint(
    job: str, stop: Start, model_directory: Path, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    model, data = ("--model", "--input") if job == "distill.py" else ("--backbone", "--train")
    options = [model, str(model_directory), data, str(corpus), "--output", str(out), "--limit", "4000"]
    options += ["--epochs", "3", "--batch-rows", "32", "--checkpoint-seconds", "0"]
    stop(job, options, lambda _: any(out.glob("_checkpoint/**/state.pt"))).wait()
    assert not (out / "config.json").exists()
    again = run_job_here(job, *options)
    assert again.returncode == 0, again.stderr
    assert "going on at epoch" in again.stdout


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("job", "options", "at_work"),
    [
        ("classify.py", "--model {model} --input {data} --output {out}", prints("24 files, ")),  # Ray starts
        ("finetune.py", "--backbone {model} --train {data} --output {out} --workers 2 --epochs 9", prints(" dev")),
        ("calibrate.py", "--model {model} --data {data} --rows 30000", prints("rows of")),
        ("evaluate.py", "--model {model} --data {data}", started),
        ("benchmark.py", "--shape 6x384 --peers", prints("round 0/")),
        ("serve.py", "--model {model} --port {port}", prints("ready after")),
        ("demo.py", "--folder {out}", prints(" dev")),  # its second step
    ],
    ids=lambda value: value.split()[-1] if isinstance(value, str) else "",
)
def test_a_job_ends_when_it_is_asked_to(
    job: str,
    options: str,
    at_work: Callable[[Stopped], bool],
    stop: Start,
    model_directory: Path,
    corpus: Path,
    tmp_path: Path,
) -> None:
    values = {"model": model_directory, "data": corpus, "out": tmp_path / "out", "port": free_port()}
    stop(job, options.format(**values).split(), at_work).wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_job_that_computes_in_native_code_ends_too(number: signal.Signals) -> None:
    code = """
import hashlib
from jobs.cli.command import run_alone
from jobs.cli.parser import JobParser

def work(_):
    print("at work", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # a quarter of an hour, without looking at signals

run_alone(work, JobParser("A job.", kept="nothing", stop_seconds=0.1), [])
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as job:
        try:
            assert job.stdout is not None
            assert job.stdout.readline() == "at work\n"
            job.send_signal(number)
            _, stderr = job.communicate(timeout=60)
        finally:
            job.kill()
    assert job.returncode == 128 + number
    assert stderr == f"-c: stopped by {number.name}: nothing\n"


def test_an_end_that_a_finalizer_swallows_comes_again_whoever_handles_the_signal() -> None:
    """Ray puts a handler of its own in place of ours, and Python runs it in a hook of a fork, say."""
    code = """
import os, signal, sys, time
from jobs.cli.command import run_alone
from jobs.cli.parser import JobParser

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        sum(range(9))

def work(_):
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
    Finalized()
    time.sleep(60)

run_alone(work, JobParser("A job.", kept="nothing", stop_seconds=50.0), [])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "-c: stopped by SIGTERM: nothing\n")


def test_an_error_that_a_library_makes_of_the_signal_is_not_told() -> None:
    """Such as the reader of weights, for which a broken file is what was interrupted."""
    code = """
import os, signal
from jobs.cli.command import run_alone
from jobs.cli.parser import JobParser
from pipeline.errors import UserError

def work(_):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except SystemExit as error:
        raise UserError("its weights cannot be read") from error

run_alone(work, JobParser("A job.", kept="nothing"), [])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=REPOSITORY)
    assert (done.returncode, done.stderr) == (143, "-c: stopped by SIGTERM: nothing\n")


def test_an_end_that_a_finalizer_swallows_is_asked_for_again() -> None:
    code = """
import gc, signal, sys, time
from jobs.cli.stop import StopWatch

StopWatch(30.0, lambda number: None)

def values():
    try:
        yield 1
    finally:
        signal.raise_signal(signal.SIGTERM)  # while the generator falls out of use

for value in values():
    break
gc.collect()
time.sleep(20)
print("swallowed")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGTERM, "", "")
