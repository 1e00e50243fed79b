"""What a run would take, before it is run: some of its rows go through the whole chain, and the rest follows from their rates.

    forecast = forecast_of(request)
    forecast.rows, forecast.seconds          # of all files with work left

The beginnings of shards from all over the corpus are read, classified and written by the same tasks and actors on the same
machines as in a run. What they write goes into a folder of its own, which is removed.
"""

import math
import random
import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.bulk.bundle import BUNDLE_ROWS
from pipeline.bulk.progress import STAGES, slowest_stage
from pipeline.bulk.run import BulkRequest, PreparedRun, planned, prepared
from pipeline.bulk.stages import READERS_PER_CORE, Sampling, bundles_of_tasks, classify_bundles, receipts_of
from pipeline.cluster.connect import shut_down
from pipeline.cluster.resources import ActorPlan, cluster_cores
from pipeline.corpus.plan import Piece, plan_reading
from pipeline.output.parts import Output, prepare_folder
from pipeline.output.totals import Totals
from pipeline.storage.base import absolute, is_remote
from pipeline.storage.locate import storage_of

FOLDER = "_plan"
"""Folder below the output folder that the sample's parts are written to."""
SAMPLE_ROWS = 2048
"""Rows of a shard that are taken, and of a bundle."""
TASKS = 64
"""Reading tasks of a sample; where there are more pieces than tasks, a task reads some of them."""
TASK_PIECES = 256
"""Most pieces of a task."""
LEAST_SECONDS, LEAST_BUNDLES = 20.0, 4
"""What is measured after the first bundle, at least, unless the corpus ends before."""
COMPLETE = 0.999
"""Fraction of the bytes that is all of them: sizes of shards are rounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a run over the files with work left would be."""

    files: int
    bytes: int
    sampled: Totals
    """Totals of the rows that were sampled."""
    plan: ActorPlan
    seconds: float
    """Wall-clock time of the run, with the start of Ray and the loading of the model."""
    first_seconds: float
    """Time until the first results."""
    held_up_by: str
    """Name of the stage that the others wait for."""
    complete: bool
    """Whether the sample was all of it."""

    @property
    def rows(self) -> float:
        """Rows, rejects among them, about."""
        return self.sampled.rows_in * self._factor

    @property
    def tokens(self) -> float:
        """Tokens, about."""
        return self.sampled.tokens * self._factor

    @property
    def _factor(self) -> float:
        return 1.0 if self.complete else self.bytes / max(self.sampled.input_bytes, 1.0)


def forecast_of(request: BulkRequest, began: float) -> Forecast | None:
    """Sample a run; return None if the output folder already holds all results. Raises as `run_bulk`.

    `began` is when the command began, by time.monotonic: what it takes to start belongs to what a run takes.
    """
    was_there = is_remote(absolute(request.output)) or Path(absolute(request.output)).exists()
    try:
        with prepared(request) as run:
            if run is None:
                return None
            scratch = prepare_folder(f"{run.ledger.output.folder}/{FOLDER}", request.input)
            try:
                return _sample(request, replace(run, spec=replace(run.spec, output=Output(scratch))), began)
            finally:
                shut_down()  # what is under way would go on writing
                _remove(scratch)
    finally:
        if not was_there:
            _remove(absolute(request.output))


def _sample(request: BulkRequest, run: PreparedRun, began: float) -> Forecast:
    """Run the chain over a sample until enough is known."""
    plan = planned(request)
    request.log(f"sampling the corpus with {plan.describe()}")
    pieces = [piece for task in plan_reading(run.files, READERS_PER_CORE * cluster_cores()) for piece in task]
    chain = bundles_of_tasks(
        sample_tasks(pieces),
        run.left,
        run.spec.columns,
        run.spec.tokenizer,
        bundle_rows=min(SAMPLE_ROWS, run.spec.bundle_rows or BUNDLE_ROWS[plan.device]),
        task_cpus=plan.task_cpus,
        output=run.spec.output.folder,
        sampling=Sampling(rows=SAMPLE_ROWS, shards=max(1, TASKS // max(len(pieces), 1))),
    )
    totals, first, bundles, started = Totals(), Totals(), 0, time.monotonic()
    first_at = now = started
    with closing(receipts_of(classify_bundles(chain, run.spec, plan))) as stream:
        for receipts in stream:
            now, bundles = time.monotonic(), bundles + 1
            for receipt in receipts:
                totals = totals.plus(receipt)
            if bundles == 1:
                first, first_at = totals, now
            if bundles > LEAST_BUNDLES and now - first_at >= LEAST_SECONDS:
                break
    size = sum(file.size for file in run.files)
    complete = totals.input_bytes >= COMPLETE * size
    measured = (totals.input_bytes - first.input_bytes) / max(now - first_at, 1e-9)
    if not measured:  # one bundle, which is all that is known
        measured = max(totals.input_bytes, 1.0) / max(now - started, 1e-9)
    return Forecast(
        files=len(run.files),
        bytes=size,
        sampled=totals,
        plan=plan,
        seconds=now - began if complete else first_at - began + (size - first.input_bytes) / measured,
        first_seconds=first_at - began,
        held_up_by=STAGES[slowest_stage(totals.waits, now - started)],
        complete=complete,
    )


def sample_tasks(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Deal pieces out to at most TASKS reading tasks, in random order: all of them, or as many as tasks may have."""
    shuffled = random.Random(0).sample(pieces, len(pieces))  # the same for the same corpus
    each = min(math.ceil(len(pieces) / TASKS), TASK_PIECES)
    return [shuffled[start : start + each] for start in range(0, min(len(pieces), TASKS * each), each)]


def _remove(folder: str) -> None:
    """Remove a folder and all that is in it; nothing of S3 is left either, where folders are no things."""
    storage = storage_of(folder)
    storage.delete([entry.path for entry in storage.walk(folder)])
    if not is_remote(folder):
        shutil.rmtree(folder, ignore_errors=True)
