"""Workers and the lines that they send, on a real Ray in a process of its own."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from ray.data import DataContext

from pipeline.bulk.stages import tokenized_bundles
from pipeline.cluster.connect import join_or_start
from pipeline.corpus.columns import Columns
from pipeline.corpus.listing import list_inputs
from pipeline.corpus.tokenize import TokenizerSpec
from pipeline.training.process_group import ProcessGroup
from pipeline.training.progress import Log
from pipeline.training.workers import LogRelay, run_workers, send
from tests.support.jobs import REPOSITORY

pytestmark = pytest.mark.e2e

MANY = 300


def run_here(what: str, *options: object) -> list[str]:
    """Call a function of this module in a process of its own, since Ray leaves its traces there; return what it printed."""
    call = f"from tests.training import test_workers as t; t.{what}(*{[str(option) for option in options]!r})"
    done = subprocess.run(
        [sys.executable, "-c", call], capture_output=True, text=True, timeout=600, cwd=REPOSITORY, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


class DieOnce:
    """Work of which worker 1 kills its process the first time, right after its last line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, group: ProcessGroup, device: str, log: Log) -> None:
        died = self.folder / "died"
        attempt = 2 if died.exists() else 1
        for number in range(MANY):
            log(f"{attempt} {group.rank} of {group.world_size} on {device}: {number}")
        if attempt == 2:
            return
        if group.rank == 1:
            died.touch()
            os._exit(1)
        time.sleep(600)


def train_with_a_death(folder: str) -> None:
    run_workers(DieOnce(Path(folder)), 2)


def test_lines_of_workers_arrive_whole_and_in_order_although_one_dies(tmp_path: Path) -> None:
    lines = run_here("train_with_a_death", tmp_path)
    for attempt, rank in ((1, 1), (2, 0), (2, 1)):
        mine = [line for line in lines if line.startswith(f"{attempt} {rank} ")]
        assert mine == [f"{attempt} {rank} of 2 on cpu: {number}" for number in range(MANY)]


def lose_the_queue() -> None:
    join_or_start()
    lines: list[str] = []
    with LogRelay(lines.append) as queue:
        send(queue, "before")
        deadline = time.monotonic() + 60
        while not lines and time.monotonic() < deadline:
            time.sleep(0.01)
        ray.kill(queue.actor)
        send(queue, "after")
    print(json.dumps(lines))


def test_a_queue_that_dies_stops_neither_worker_nor_driver() -> None:
    assert '["before"]' in run_here("lose_the_queue")  # beside a line of Ray's on the death, which may come last


def build_a_chain(folder: str) -> None:
    join_or_start()
    before = DataContext.get_current().copy()
    spec = TokenizerSpec(tokenizer_json="", max_tokens=8, segments=False)
    chain = tokenized_bundles(list(list_inputs(folder).files), {}, Columns(text="text"), spec)
    chain.context.execution_options.preserve_order = True
    after = DataContext.get_current()
    names = ("enable_progress_bars", "print_on_execution_start", "target_max_block_size", "execution_options")
    print([getattr(before, name) == getattr(after, name) for name in names], chain.context.target_max_block_size)


def test_a_chain_leaves_the_settings_of_other_data_sets_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a room\n")
    assert run_here("build_a_chain", tmp_path)[-1] == "[True, True, True, True] 1"
