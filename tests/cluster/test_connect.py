"""Starting Ray: what is printed meanwhile, and signals."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from pipeline.cluster.connect import DATA_THREADS, _kill, _metrics_port, _sigterm_kept, _wait_for, _wait_for_data
from pipeline.errors import UserError
from tests.support.jobs import REPOSITORY, running

PRINTS = """
import os, sys, threading
from pipeline.cluster.connect import _held_back_stderr
def other_thread():
    print("the hub is out of reach", file=sys.stderr)
    os.write(2, b"[2026-11-26 15:22:44,639 I 13560 13560] logging.cc:303: Set ray log level\\n")
    os.write(2, b"E1126 15:22:44.639000 13560 chttp2_transport.cc:1182] GOAWAY\\n")
    print("[1] is no line of Ray's", file=sys.stderr)
with _held_back_stderr():
    thread = threading.Thread(target=other_thread)
    thread.start()
    thread.join()
    if {fails}:
        raise RuntimeError("no start")
"""


@pytest.mark.parametrize("fails", [False, True])
def test_what_others_print_while_ray_starts_is_not_lost_and_rays_own_lines_matter_only_if_it_fails(fails: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRINTS.format(fails=fails)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ,
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if "Traceback" not in line and not line.startswith(" ")]
    ours = ["the hub is out of reach", "[1] is no line of Ray's"]
    if fails:
        assert [lines[0], lines[3]] == ours
        assert "logging.cc" in lines[1]
        assert "GOAWAY" in lines[2]
        assert lines[4:] == ["RuntimeError: no start"]
    else:
        assert lines == ours


def receive_sigterm_as_ray_starts() -> None:
    with _sigterm_kept():
        signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(number))  # as ray.init does
        signal.raise_signal(signal.SIGTERM)


def test_sigterm_while_ray_starts_is_the_callers() -> None:
    before = signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    ours = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit, match="143"):
            receive_sigterm_as_ray_starts()
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    "text", ["abc", "0", "-1", "65536", "8080.0", " 8080", "8080 ", "0x50", "\uff18\uff10", "99999999999", "\x1b[2J"]
)
def test_a_port_for_metrics_that_is_none_is_one_line(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFRAMP_METRICS_PORT", text)
    with pytest.raises(UserError, match=r"^OFFRAMP_METRICS_PORT is '.*', and no port from 1 to 65535$") as error:
        _metrics_port()
    assert str(error.value).isprintable()


@pytest.mark.parametrize(("text", "port"), [(None, None), ("", None), ("1", 1), ("8080", 8080), ("65535", 65535)])
def test_a_port_for_metrics_is_read_from_the_environment(
    text: str | None, port: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OFFRAMP_METRICS_PORT", raising=False)
    if text is not None:
        monkeypatch.setenv("OFFRAMP_METRICS_PORT", text)
    assert _metrics_port() == port


def test_a_wrong_port_for_metrics_is_found_before_anything_is_started() -> None:
    code = """
from jobs.cli import command, parser
from pipeline.cluster.connect import join_or_start
command.run(lambda _: join_or_start(), parser.JobParser("A job."), [])
"""
    environment = os.environ | {"RAY_ADDRESS": "local", "OFFRAMP_METRICS_PORT": "abc"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, env=environment, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "-c: error: OFFRAMP_METRICS_PORT is 'abc', and no port from 1 to 65535\n"


def test_ray_is_not_left_before_its_chains_have_ended() -> None:
    """A thread that asks Ray for something while it is left ends the process, now and then."""
    threads = [threading.Thread(target=time.sleep, args=(0.3,), name=name + "1") for name in DATA_THREADS]
    for thread in threads:
        thread.start()
    _wait_for_data()
    assert not any(thread.is_alive() for thread in threads)


LARGE = "held = bytearray(b'x') * (200 << 20); print(len(held), flush=True); input()"
"""A process that the system takes a while to take down: page by page."""


def test_what_was_killed_is_dead_and_not_only_told_so() -> None:
    started = [
        subprocess.Popen([sys.executable, "-c", LARGE], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)
    ]
    processes = [psutil.Process(process.pid) for process in started]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline()
    _kill(processes)
    _wait_for(processes)
    assert not running(processes)
    for process in started:
        process.communicate()
    _wait_for(processes)  # there is nobody left
