"""The server as a user runs it: a process of its own, real Ray Serve, real HTTP, real faults."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.benchmark.synthetic import reviews
from pipeline.serving.metrics import SERVING
from tests.support.jobs import REPOSITORY, free_port, run_job_here

pytestmark = pytest.mark.e2e

TEXTS = [review.text for review in reviews(300, seed=11)]
TOKEN = "a test's secret"
READY_S = 300


class Server:
    """jobs/serve.py on a Ray of its own."""

    def __init__(self, model: Path) -> None:
        self.port, self.metrics_port = free_port(), free_port()
        command = [sys.executable, str(REPOSITORY / "jobs" / "serve.py"), "--model", str(model), "--speed", "0.6"]
        command += ["--port", str(self.port), "--dtype", "fp32"]
        own = {"RAY_ADDRESS": "local", "OFFRAMP_TOKEN": TOKEN, "OFFRAMP_METRICS_PORT": str(self.metrics_port)}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | own
        )
        deadline = time.monotonic() + READY_S
        while self.status("/healthz") != 200:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise RuntimeError("".join(self.process.communicate()))
            time.sleep(0.2)

    def classify(self, body: Any, token: str = TOKEN) -> tuple[int, Any]:
        """Post a request; return status and decoded answer."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/classify", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=240) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            text = error.read().decode()
            return error.code, json.loads(text) if text[:1] == "{" else text  # text: of Ray Serve's own

    def status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                status: int = answer.status
                return status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def replica(self) -> psutil.Process:
        family = psutil.Process(self.process.pid).children(recursive=True)
        return next(member for member in family if "ServeReplica" in " ".join(member.cmdline()))

    def close(self) -> tuple[int, str, str]:
        """Stop it as a supervisor does; return exit code, stdout and stderr."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            stdout, stderr = self.process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            self.process.kill()
            stdout, stderr = self.process.communicate()
        return self.process.returncode, stdout, stderr


@pytest.fixture(scope="module")
def server(model_directory: Path) -> Iterator[Server]:
    running = Server(model_directory)
    yield running
    running.close()


def test_answers_are_those_of_the_batch_job(server: Server, model_directory: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "texts.parquet")
    options = ["--input", str(tmp_path / "texts.parquet"), "--output", str(tmp_path / "out"), "--dtype", "fp32"]
    job = run_job_here("classify.py", "--model", str(model_directory), "--speed", "0.3", "--actors", "1", *options)
    assert job.returncode == 0, job.stderr
    batch = pd.read_parquet(tmp_path / "out").sort_values("id", key=lambda ids: ids.str.split(":").str[1].astype(int))
    served: list[dict[str, Any]] = []
    for start in range(0, len(TEXTS), 60):
        status, answer = server.classify({"text": TEXTS[start : start + 60], "speed": 0.3})
        assert status == 200, answer
        served += answer["results"]
    clear = (batch.uncertainty.to_numpy() - 0.3).__abs__() > 1e-3
    assert clear.mean() > 0.9
    for name in ("label", "label_id", "exit_layer", "truncated"):
        assert [row[name] for row, c in zip(served, clear, strict=True) if c] == batch[name][clear].tolist()
    for name in ("score", "uncertainty"):
        assert [row[name] for row, c in zip(served, clear, strict=True) if c] == pytest.approx(
            batch[name][clear].tolist(), abs=1e-4
        )


def test_wrong_requests_get_their_codes_through_the_proxy_too(server: Server) -> None:
    assert server.classify({"text": TEXTS[0]}, token="wrong")[0] == 401
    assert server.classify(b'{"text": ')[0] == 400
    assert server.classify({"text": 7})[0] == 422
    assert server.status("/nowhere") == 401  # nobody learns without a token what there is
    assert server.status("/docs") == 200
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    headers = {"Content-Length": "10000000", "Authorization": f"Bearer {TOKEN}"}
    connection.request("POST", "/classify", headers=headers)  # is refused before it sends its 10 MB
    assert connection.getresponse().status == 413


def test_a_slow_client_is_cut_off(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as slow:
        slow.sendall(f"POST /classify HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n".encode())
        slow.sendall(b"Content-Length: 100\r\n\r\n{")
        assert b" 408 " in slow.recv(4096)


def test_a_replica_that_dies_under_load_is_replaced(server: Server) -> None:
    expected = server.classify({"text": TEXTS[:20]})[1]
    outcomes: list[tuple[int, Any]] = []

    def caller() -> None:
        for _ in range(8):
            outcomes.append(server.classify({"text": TEXTS[:20]}))

    victim = server.replica()
    callers = [threading.Thread(target=caller) for _ in range(4)]
    for thread in callers:
        thread.start()
    while len(outcomes) < 4:
        time.sleep(0.01)
    victim.kill()
    for thread in callers:
        thread.join(200)
    assert len(outcomes) == 32
    assert {status for status, _ in outcomes} <= {200, 500, 503}
    answers = [answer for status, answer in outcomes if status == 200]
    assert len(answers) >= 32 - 4  # at most one request a caller was at work in the replica
    for answer in answers:
        assert [row["label"] for row in answer["results"]] == [row["label"] for row in expected["results"]]
    assert server.classify({"text": TEXTS[0]})[0] == 200
    assert server.replica().pid != victim.pid


def test_every_metric_can_be_scraped(server: Server) -> None:
    assert server.classify({"text": TEXTS[:50]})[0] == 200
    deadline, page = time.monotonic() + 90, ""
    wanted = {metric.exported for metric in SERVING}
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=20) as answer:
            page = answer.read().decode()
        there = {name.removesuffix("_bucket") for name in re.findall(r"^(ray_offramp_\w+)\{", page, re.MULTILINE)}
        if wanted <= there:
            break
        time.sleep(1)
    assert wanted <= there
    assert re.search(r'^ray_offramp_requests_total\{[^}]*status="200"', page, re.MULTILINE)


def test_sigterm_finishes_what_was_accepted(server: Server) -> None:
    """Last: it stops the server of this module."""
    outcomes: list[tuple[int, Any]] = []
    long = {"text": TEXTS * 3, "speed": 0.0}
    caller = threading.Thread(target=lambda: outcomes.append(server.classify(long)))
    caller.start()
    time.sleep(0.3)
    code, stdout, stderr = server.close()
    caller.join(60)
    assert code == 128 + signal.SIGTERM, stdout + stderr
    assert "Traceback" not in stderr
    assert outcomes[0][0] == 200, outcomes
    assert len(outcomes[0][1]["results"]) == len(TEXTS) * 3
