"""Workers and the lines that they send, on a real Ray in a process of its own."""

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from ray.data import DataContext
from ray.exceptions import RayActorError
from transformers import BertConfig, PreTrainedTokenizerFast

from models.early_exit import EarlyExitModel
from pipeline.bulk.stages import tokenized_bundles
from pipeline.cluster import resources
from pipeline.cluster.connect import join_or_start
from pipeline.corpus import plan
from pipeline.corpus.chunks import Chunk
from pipeline.corpus.columns import Columns
from pipeline.corpus.listing import list_inputs
from pipeline.corpus.tokenize import TokenizerSpec
from pipeline.errors import DoesNotFitError
from pipeline.rows import TokenRows
from pipeline.schema import VALUE
from pipeline.training.config import TrainingConfig
from pipeline.training.loop import train
from pipeline.training.process_group import ProcessGroup
from pipeline.training.progress import Log
from pipeline.training.recipes import Objective, WholeModel
from pipeline.training.stream import StreamSource, StreamSpec
from pipeline.training.workers import LogRelay, run_workers, send
from tests.support.jobs import REPOSITORY

pytestmark = pytest.mark.e2e

MANY = 300
BEGIN = "these are the lines of"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, review_tokenizer: PreTrainedTokenizerFast) -> Path:
    """Lay out what the functions below read: 41 files of five rows, and a tokenizer."""
    folder = tmp_path_factory.mktemp("workers")
    (folder / "in").mkdir()
    for number in range(41):
        lines = [f"a fine room,{number * 5 + row}" for row in range(5)]
        (folder / "in" / f"{number:02}.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    (folder / "tokenizer.json").write_text(review_tokenizer.backend_tokenizer.to_str())
    return folder


@pytest.fixture(scope="module")
def printed(folder: Path) -> dict[str, list[str]]:
    """Call the functions below in a process of its own, since Ray leaves its traces there; return their lines by name."""
    call = f"from tests.training import test_workers as t; t.run_all({str(folder)!r})"
    done = subprocess.run(
        [sys.executable, "-c", call], capture_output=True, text=True, timeout=600, cwd=REPOSITORY, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    parts = re.split(f"^{BEGIN} (.*)$", done.stdout, flags=re.MULTILINE)
    return {name: lines.splitlines()[1:] for name, lines in zip(parts[1::2], parts[2::2], strict=True)}


def run_all(folder: str) -> None:
    """Call every function, on one Ray."""
    for function in (
        build_a_chain,
        read_and_train,
        train_with_a_death,
        wait_for_nodes_that_do_not_come,
        lose_the_queue,
    ):
        print(BEGIN, function.__name__, flush=True)
        function(folder)


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


def test_lines_of_workers_arrive_whole_and_in_order_although_one_dies(printed: dict[str, list[str]]) -> None:
    lines = printed["train_with_a_death"]
    for attempt, rank in ((1, 1), (2, 0), (2, 1)):
        mine = [line for line in lines if line.startswith(f"{attempt} {rank} ")]
        assert mine == [f"{attempt} {rank} of 2 on cpu: {number}" for number in range(MANY)]


def lose_the_queue(_folder: str) -> None:
    join_or_start()
    lines: list[str] = []
    with LogRelay(lines.append) as queue:
        send(queue, "before")
        deadline = time.monotonic() + 60
        while not lines and time.monotonic() < deadline:
            time.sleep(0.01)
        ray.kill(queue.actor)
        with contextlib.suppress(RayActorError):  # `kill` does not wait for the death
            while time.monotonic() < deadline:
                queue.size()
        send(queue, "after")
    print(json.dumps(lines))


def wait_for_nodes_that_do_not_come(_folder: str) -> None:
    resources.NODES_SECONDS = 0.0
    try:
        run_workers(lambda group, device, log: log("at work"), 1, wait_for={"CPU": 1000})
    except DoesNotFitError as error:
        print(error)
    run_workers(lambda group, device, log: log("at work"), 1, wait_for={"CPU": 1})


def test_a_training_begins_when_the_nodes_are_there(printed: dict[str, list[str]]) -> None:
    refused, began = printed["wait_for_nodes_that_do_not_come"]
    assert re.fullmatch(r"waited 0 minutes for nodes: the cluster has \d+ of 1000 CPUs", refused)
    assert began == "at work"


def test_a_queue_that_dies_stops_neither_worker_nor_driver(printed: dict[str, list[str]]) -> None:
    assert '["before"]' in printed["lose_the_queue"]  # beside a line of Ray's on the death, which may come last


class ReadAndTrain:
    """Work that goes through a stream, and then trains on it: it sends the labels of its rows, and a digest of its weights."""

    def __init__(self, spec: StreamSpec) -> None:
        self.spec = spec

    def __call__(self, group: ProcessGroup, device: str, log: Log) -> None:
        plan.MIN_TASK_BYTES = 1  # so that these small files are dealt out
        source = StreamSource(self.spec, group, chunk_rows=40)
        for chunk in source.chunks(1, ()):
            log(json.dumps({"keys": chunk.keys, "labels": chunk.labels.tolist()}))
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=300,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            num_labels=1,
        )
        model = EarlyExitModel(config)
        model.add_exits("attention")
        dev = Chunk(rows=TokenRows.from_lists([[1, 2], [3, 4]]), labels=np.array([0, 1], np.float32))
        settings = TrainingConfig(epochs=1, batch_rows=6, learning_rate=1e-3)
        recipe = WholeModel(model, Objective(soft=False), strategy="alternating")
        state = train(recipe, source, dev, settings, group=group, log=lambda _: None)
        weights = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
        log(json.dumps({"rows": state.rows, "steps": state.step, "weights": hashlib.sha1(weights).hexdigest()}))


def read_and_train(folder: str) -> None:
    tokenizer = (Path(folder) / "tokenizer.json").read_text()
    spec = StreamSpec(
        corpus=list_inputs(f"{folder}/in"),
        columns=Columns(text="text", keep=pa.schema([("label", pa.string())])),
        tokenizer=TokenizerSpec(tokenizer_json=tokenizer, max_tokens=16, segments=False),
        classes=[VALUE],
        label_column="label",
    )
    run_workers(ReadAndTrain(spec), 2)


def test_workers_read_a_stream_between_them_and_end_with_the_same_weights(printed: dict[str, list[str]]) -> None:
    found = [json.loads(line) for line in printed["read_and_train"]]
    rounds = [line for line in found if "keys" in line]
    assert sorted(int(label) for line in rounds for label in line["labels"]) == list(range(205))
    by_file = [Counter(int(label) // 5 for label in line["labels"]) for line in rounds]
    assert {rows for files in by_file for rows in files.values()} == {5}  # dealt out: a file is one worker's
    first, second = (line for line in found if "weights" in line)
    assert first == second
    assert first["rows"] == 205
    assert 205 / 6 <= first["steps"] <= 205 / 6 + len(rounds)


def build_a_chain(folder: str) -> None:
    join_or_start()
    before = DataContext.get_current().copy()
    spec = TokenizerSpec(tokenizer_json="", max_tokens=8, segments=False)
    chain = tokenized_bundles(list(list_inputs(f"{folder}/in").files), {}, Columns(text="text"), spec)
    chain.context.execution_options.preserve_order = True
    after = DataContext.get_current()
    names = ("enable_progress_bars", "print_on_execution_start", "target_max_block_size", "execution_options")
    print([getattr(before, name) == getattr(after, name) for name in names], chain.context.target_max_block_size)


def test_a_chain_leaves_the_settings_of_other_data_sets_alone(printed: dict[str, list[str]]) -> None:
    assert printed["build_a_chain"][-1] == "[True, True, True, True] 1"
