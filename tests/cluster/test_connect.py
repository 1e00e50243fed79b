"""Starting Ray: what is printed meanwhile, and signals."""

import os
import signal
import subprocess
import sys

import pytest

from pipeline.cluster.connect import _sigterm_kept
from tests.support.jobs import REPOSITORY

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
