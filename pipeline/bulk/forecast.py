"""What a run would take, before it is run: some of its rows go through the whole chain, and the rest follows from them.

    forecast = forecast_of(request)
    forecast.rows, forecast.seconds          # of all files with work left

Rows from the beginnings of pieces from all over the corpus are read, classified and written by the same tasks and actors on the
same machines as in a run. Each file stands for as much of the corpus as its size says, whatever was read of it: of files that
hold long texts, or are packed well, fewer bytes are sampled, and they are no less of the corpus.

Time follows from what a row takes: on CPUs all stages take turns at the same cores, so it is the sum of their CPU time; a GPU
is used beside them, so it is the longer one of its time and theirs. The wall-clock time of the sample itself would mislead:
most of its rows are read and tokenized while the model is loaded.
"""

import contextlib
import math
import os
import random
import re
import shutil
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from pipeline.bulk.bundle import BUNDLE_ROWS
from pipeline.bulk.progress import STAGES
from pipeline.bulk.run import BulkRequest, PreparedRun, planned, prepared
from pipeline.bulk.stages import READERS_PER_CORE, Sampling, bundles_of_tasks, classify_bundles, receipts_of
from pipeline.cluster.connect import shut_down
from pipeline.cluster.resources import ActorPlan, cluster_cores
from pipeline.corpus.plan import Piece, plan_reading
from pipeline.corpus.reader import SHARD_ROWS
from pipeline.output.parts import Output, prepare_folder
from pipeline.output.totals import Totals
from pipeline.storage.base import is_remote
from pipeline.storage.locate import storage_of

FOLDER = re.compile(r"_plan-[0-9a-f]{8}")
"""Name of the folder, below the output folder, that the sample's parts are written to."""
SAMPLE_ROWS = {"cpu": 2048, "cuda": 16_384}
"""Rows of a shard of the sample: enough for the engine to be as fast as in a run."""
TASKS = 64
"""Reading tasks of a sample; where there are more pieces than tasks, a task reads some of them."""
TASK_PIECES = 256
"""Most pieces of a task."""
LEAST_SECONDS = 20.0
"""How long rows are sampled after the first bundle, unless the sample ends before; the second one is waited for."""
WIND_DOWN_SECONDS = 1.0
"""Time in which workers of a cluster end after their driver has gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a run over the files with work left would be."""

    files: int
    bytes: float
    """Stored bytes that are left."""
    sampled: Totals
    """Totals of the rows that were sampled."""
    whole: Mapping[str, Mapping[str | int, float]]
    """What those of all files would be, about: by name of the counter, and by key where it has keys, else under "" alone."""
    plan: ActorPlan
    cores: int
    start_seconds: float
    """Wall-clock time of what comes before the first row: the start of Ray, and the loading of the model."""

    @property
    def rows(self) -> float:
        """Rows, rejects among them."""
        return self.whole["rows_in"][""]

    @property
    def seconds(self) -> float:
        """Wall-clock time of the run."""
        return self.start_seconds + max(self.core_seconds, self.actor_seconds)

    @property
    def core_seconds(self) -> float:
        """Time for which all cores are busy."""
        return sum(self.whole["cpu_seconds"].values()) / self.cores

    @property
    def actor_seconds(self) -> float:
        """Time for which all actors are busy: by the clock on GPUs, else by the CPU time of their threads."""
        taken = self.whole["seconds" if self.plan.gpus else "cpu_seconds"]
        busy = sum(taken.get(stage, 0.0) for stage in ("classify", "audit"))
        return busy / (self.plan.actors * (1 if self.plan.gpus else self.plan.threads))

    @property
    def held_up_by(self) -> str:
        """Name of the stage that the others wait for: the one that takes most of what there is too little of."""
        if self.actor_seconds > self.core_seconds:
            return STAGES["classify"]
        taken = self.whole["cpu_seconds"]
        return STAGES[max(STAGES, key=lambda stage: taken.get(stage, 0.0))]


def forecast_of(request: BulkRequest, began: float | None = None) -> Forecast | None:
    """Sample a run; return None if the output folder already holds the results of every file. Raises as `run_bulk`.

    `began` is when the command began, by time.monotonic: what it takes to start belongs to what a run takes.
    """
    began = time.monotonic() if began is None else began
    with prepared(request, to_run=False) as run:
        if run is None or not run.files:
            return None
        folder = run.ledger.output.folder
        _sweep(folder)
        scratch = prepare_folder(f"{folder}/_plan-{uuid.uuid4().hex[:8]}", request.input)
        try:
            return _sample(request, replace(run, spec=replace(run.spec, output=Output(scratch))), began)
        finally:
            shut_down()
            _remove(scratch)
            time.sleep(WIND_DOWN_SECONDS)  # a worker may just have been at a part
            _remove(scratch)


def _sample(request: BulkRequest, run: PreparedRun, began: float) -> Forecast:
    """Run the chain over a sample until enough is known."""
    plan = planned(request)
    request.log(f"sampling the corpus with {plan.describe()}")
    pieces = [piece for task in plan_reading(run.files, READERS_PER_CORE * cluster_cores()) for piece in task]
    rows = SAMPLE_ROWS[plan.device]
    chain = bundles_of_tasks(
        sample_tasks(pieces),
        {},
        run.spec.columns,
        run.spec.tokenizer,
        bundle_rows=min(rows, run.spec.bundle_rows or BUNDLE_ROWS[plan.device]),
        task_cpus=plan.task_cpus,
        output=run.spec.output.folder,
        sampling=Sampling(rows=rows, shards=max(1, TASKS // len(pieces))),
    )
    by_file: dict[str, Totals] = defaultdict(Totals)
    bundles, first_at, start_seconds = 0, math.inf, 0.0
    with closing(receipts_of(classify_bundles(chain, run.spec, plan))) as stream:
        for receipts in stream:
            now, bundles = time.monotonic(), bundles + 1
            for receipt in receipts:
                by_file[receipt.file] = by_file[receipt.file].plus(receipt)
            if bundles == 1:
                first_at = now
                start_seconds = now - began - sum(sum(receipt.seconds.values()) for receipt in receipts)
            if bundles > 1 and now - first_at >= LEAST_SECONDS:
                break
    sampled = Totals()
    for totals in by_file.values():
        sampled = sampled.merged(totals)
    sizes: dict[str, float] = {file.path: file.size for file in run.files}
    for path, totals in by_file.items():  # without the shards of it that are done
        rows_of_file = totals.rows_in * sizes[path] / max(totals.input_bytes, 1.0)
        sizes[path] *= max(1.0 - len(run.left[path]) * SHARD_ROWS / max(rows_of_file, 1.0), 0.0)
    return Forecast(
        files=len(run.files),
        bytes=sum(sizes.values()),
        sampled=sampled,
        whole=whole_of(by_file, sizes),
        plan=plan,
        cores=cluster_cores(),
        start_seconds=start_seconds,
    )


def sample_tasks(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Deal pieces out to at most TASKS reading tasks, in random order: all of them, or as many as tasks may have."""
    shuffled = random.Random(0).sample(pieces, len(pieces))  # the same for the same corpus
    each = max(1, min(math.ceil(len(pieces) / TASKS), TASK_PIECES))
    return [shuffled[start : start + each] for start in range(0, min(len(pieces), TASKS * each), each)]


def whole_of(by_file: Mapping[str, Totals], sizes: Mapping[str, float]) -> dict[str, dict[str | int, float]]:
    """Estimate the counters of all files of these sizes by those of the files that were sampled, in part or whole.

    A file's counters grow as its bytes do, and the files that were sampled stand for all: the ratio estimator (Cochran 1977,
    chapter 6), with the size of a file as what is known of all of them.
    """
    known = {path: totals for path, totals in by_file.items() if totals.input_bytes > 0}
    scale = sum(sizes.values()) / max(sum(sizes[path] for path in known), 1)
    whole: dict[str, dict[str | int, float]] = defaultdict(lambda: defaultdict(float))
    for path, totals in known.items():
        weight = scale * sizes[path] / totals.input_bytes
        for name in ("rows_in", "rows_out", "tokens", "windows", "truncated", "flops", "flops_full_depth"):
            whole[name][""] += weight * getattr(totals, name)
        for name in ("rejected", "cpu_seconds", "seconds"):
            for key, value in getattr(totals, name).items():
                whole[name][key] += weight * value
        for layer, count in enumerate(totals.exits, start=1):
            whole["exits"][layer] += weight * count
    return whole


def _sweep(folder: str) -> None:
    """Remove from a disk what killed plans have left there; where disks have locks, ours is held, so that none is at work."""
    if not is_remote(folder):
        for name in filter(FOLDER.fullmatch, os.listdir(folder)):
            _remove(f"{folder}/{name}")


def _remove(folder: str) -> None:
    """Remove a folder of ours and all that is in it; links are left alone."""
    if is_remote(folder):
        storage = storage_of(folder)
        storage.delete([entry.path for entry in storage.walk(folder)])
    elif not os.path.islink(folder):
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
