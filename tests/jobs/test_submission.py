"""`ray job submit` on a running cluster: a head node of our own, on this machine, in the repository."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.benchmark.synthetic import reviews
from tests.support.jobs import REPOSITORY, free_port, shards_kept

pytestmark = pytest.mark.e2e

RAY = str(Path(sys.executable).parent / "ray")


class Head:
    """A Ray head with its dashboard, whose working directory is the repository and whose config file is ours."""

    def __init__(self, config: Path) -> None:
        # The path of Ray's sockets must stay under 107 bytes, so not pytest's folder.
        self.folder = Path(f"/tmp/offramp-{os.getpid()}")
        self.folder.mkdir()
        self.port = free_port()
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self.environment = clean | {"PATH": path, "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": str(self.folder)}
        command = f"{RAY} start --head --block --port {free_port()} --dashboard-host 127.0.0.1 --num-cpus 2"
        # Ports of our own: the agent that starts jobs would wait for ever for one that another Ray on this machine holds.
        command += f" --dashboard-agent-listen-port {free_port()} --dashboard-agent-grpc-port {free_port()}"
        command += f" --dashboard-port {self.port} --temp-dir {self.folder}/ray --object-store-memory 200000000"
        self.log = open(self.folder / "head.log", "w")  # noqa: SIM115 - closed by close()
        self.process = subprocess.Popen(
            command.split(),
            cwd=REPOSITORY,
            env=self.environment | {"OFFRAMP_CONFIG": str(config)},
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        self._wait()

    def _wait(self) -> None:
        """Wait until a job can be submitted: the dashboard answers long before the agent that starts jobs does."""
        body = json.dumps({"entrypoint": "true"}).encode()
        url = f"http://127.0.0.1:{self.port}/api/jobs/"
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            try:
                headers = {"Content-Type": "application/json"}
                urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60).close()
                return
            except OSError:
                time.sleep(0.5)
        raise TimeoutError((self.folder / "head.log").read_text())

    def submit(self, *words: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
        command = [RAY, "job", "submit", "--address", f"http://127.0.0.1:{self.port}", *words]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=cwd, env=self.environment, timeout=400, check=False
        )

    def close(self) -> None:
        # By pid: `ray stop` would end every Ray on the machine.
        family = [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        self.process.wait(timeout=10)
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    pq.write_table(pa.table({"text": [review.text for review in reviews(500, seed=4)]}), folder / "a.parquet")
    return folder


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, model_directory: Path, corpus: Path) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("head")
    config = folder / "nightly.toml"
    settings = {"model": model_directory, "input": corpus, "output": folder / "out", "speed": 0.6}
    config.write_text(
        "".join(f"{key} = {json.dumps(v if key == 'speed' else str(v))}\n" for key, v in settings.items())
    )
    running = Head(config)
    yield running
    running.close()


def test_the_job_is_submitted_by_its_name_and_fails_when_it_fails(head: Head, tmp_path: Path) -> None:
    bare = head.submit("jobs/classify.py", cwd=tmp_path)  # all from OFFRAMP_CONFIG, on the head
    assert bare.returncode == 0, bare.stdout + bare.stderr
    assert "500 rows in" in bare.stdout  # the job's log came through
    out = next(Path(line.split(" -> ")[1]) for line in bare.stdout.splitlines() if " -> " in line)
    assert json.loads((out / "_manifest.json").read_text())["totals"]["rows_out"] == 500

    failed = head.submit("--runtime-env-json", '{"env_vars": {"OFFRAMP_CONFIG": ""}}', "--", "jobs/classify.py")
    assert failed.returncode == 1
    assert "the following arguments are required: --model, --input, --output" in failed.stdout


def test_stopping_the_job_keeps_what_was_finished(head: Head, model_directory: Path, tmp_path: Path) -> None:
    """Submitted with its options, and the code with it."""
    big, out = tmp_path / "in", tmp_path / "out"
    big.mkdir()
    texts = pa.table({"text": [review.text for review in reviews(4000, seed=1)]})
    for number in range(120):  # far more than can be done while `ray job stop` starts
        pq.write_table(texts, big / f"{number:03}.parquet")
    flags = ["--model", str(model_directory), "--input", str(big), "--output", str(out), "--speed", "0.6"]
    wait = '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "30"}}'
    name = f"stop-{os.getpid()}"
    started = head.submit(
        "--no-wait", "--submission-id", name, "--runtime-env-json", wait, "--working-dir", ".", "--",
        "python", "jobs/classify.py", *flags,
    )  # fmt: skip
    assert started.returncode == 0, started.stderr
    deadline = time.monotonic() + 300
    while shards_kept(out) < 1 and time.monotonic() < deadline:
        time.sleep(0.1)
    address = f"http://127.0.0.1:{head.port}"
    stop = subprocess.run(
        [RAY, "job", "stop", "--address", address, name], capture_output=True, text=True, env=head.environment,
        timeout=200, check=False,
    )  # fmt: skip
    logs = subprocess.run(
        [RAY, "job", "logs", "--address", address, name], capture_output=True, text=True, env=head.environment,
        timeout=200, check=False,
    )  # fmt: skip
    assert "was stopped" in stop.stdout, stop.stdout + stop.stderr
    assert "the same command goes on from there" in logs.stdout, logs.stdout
    assert not (out / "_manifest.json").exists()
    assert 1 <= shards_kept(out) < 120
