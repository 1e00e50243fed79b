"""The chain on Ray Data: files -> read -> tokenize -> classify -> write -> receipts. One bundle is one block throughout.

      pieces of files   texts               ragged tokens            predictions            receipts
    ───────────> read ───────> tokenize ─────────────────> classify ─────────────> write ───────────> driver
                 task          task                        actor (GPU or cores)    task

Reading streams some files, or a stretch of one, and emits their shards as it goes, gathered into bundles; every other stage
turns one bundle into one bundle, so that a retry repeats exactly one. Rows that a stage cannot work on become rejects of their
shard there, and no later stage sees them.
"""

import logging
import os
import warnings
from collections import deque
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset

from pipeline.bulk.attempts import AttemptLog, ReadLog, attempts_of, clear_attempts
from pipeline.bulk.bundle import BUNDLE_ROWS, RECEIPTS_CELL, Bundle, gather
from pipeline.bulk.codec import with_tokens
from pipeline.bulk.quarantine import isolate
from pipeline.bulk.spec import ClassifySpec
from pipeline.clock import Clock
from pipeline.cluster.connect import shut_down
from pipeline.cluster.resources import TASK_CPUS, TOKENIZE, ActorPlan, cluster_cores, resources_for
from pipeline.corpus.columns import Columns
from pipeline.corpus.formats import fetch, is_fetched_whole
from pipeline.corpus.listing import InputFile
from pipeline.corpus.plan import LeftPiece, Piece, decode_task, encode_task, plan_reading
from pipeline.corpus.reader import Shard, read_shards, unreadable
from pipeline.corpus.tokenize import Tokenized, Tokenizer, TokenizerSpec
from pipeline.output.receipts import Receipt, decode_receipts, encode_receipts
from pipeline.rejects import Reason, Reject
from pipeline.schema import PAIR, ROW, TEXT, TOKENS, TRUNCATED
from pipeline.storage.base import StoredFile

MAX_READ_TASKS = 1000
"""Reading is spread over at most this many tasks of Ray, so that they do not drown the scheduler."""
READERS_PER_CORE = 4
"""Parts of the corpus for every core of the cluster, so that none is idle while the last large file is read."""
SAMPLED_WHOLE_BYTES = 16 << 20
"""Stored size up to which a compressed file of a sample is read to its end: of a larger one, what is read ahead is little."""
READ_AHEAD = 8
"""Small files of S3 that a task has requests for at a time."""
STALL_SECONDS = 6 * 3600
"""Time without any bundle finished after which a run is given up. Ray's own half hour is too short: a bundle of 64 MB of text
takes hours through a large model on two cores."""
CALLS = {"cpu": 2, "cuda": 3}
"""Bundles at work in an actor, by device: one computes, while the others turn from tables into arrays or back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How much is read where a sample will do."""

    rows: int
    """Rows of a shard."""
    shards: int
    """Shards of a file, or of a piece of one, from its beginning."""

    def read(self, piece: LeftPiece, columns: Columns, fetched: StoredFile | None) -> Iterator[Shard]:
        """Read the first shards of a piece, done or not; a small compressed file to its end, which alone tells how far they go.

        A decompressor has read more than it gives.
        """
        shards = read_shards(piece.file, columns, piece.sections, fetched, shard_rows=self.rows)
        first = list(islice(shards, self.shards))
        if piece.file.compression is not None and piece.file.size <= SAMPLED_WHOLE_BYTES:
            rows = sum(map(len, first)) + sum(map(len, shards))
            first = [replace(shard, fraction=len(shard) / max(rows, 1)) for shard in first]
        yield from first


def tokenized_bundles(
    files: list[InputFile],
    done: Mapping[str, Collection[int]],
    columns: Columns,
    tokenizer: TokenizerSpec,
    *,
    bundle_rows: int = BUNDLE_ROWS["cpu"],
    task_cpus: Mapping[str, float] = TASK_CPUS,
    output: str | None = None,
) -> Dataset:
    """Build the lazy chain that reads and tokenizes files, in tasks enough for this cluster; see `bundles_of_tasks`."""
    tasks = plan_reading(files, READERS_PER_CORE * cluster_cores())
    return bundles_of_tasks(
        tasks, done, columns, tokenizer, bundle_rows=bundle_rows, task_cpus=task_cpus, output=output
    )


def bundles_of_tasks(
    tasks: Sequence[Sequence[Piece]],
    done: Mapping[str, Collection[int]],
    columns: Columns,
    tokenizer: TokenizerSpec,
    *,
    bundle_rows: int = BUNDLE_ROWS["cpu"],
    task_cpus: Mapping[str, float] = TASK_CPUS,
    part: tuple[int, int] = (0, 1),
    output: str | None = None,
    sampling: Sampling | None = None,
) -> Dataset:
    """Build the lazy chain that reads and tokenizes what tasks are to read, without the shards in `done` (path -> starts).

    Each of its blocks holds one bundle of about `bundle_rows` rows. With `part` (rank, world size), a bundle has the rows of
    this rank alone, those at rank, rank + world size, and so on of every shard. With an output folder, rows that kill their
    process are isolated as well as those that raise. With `sampling`, some rows of every piece are read alone.
    """
    encoded = [encode_task(task, done) for task in tasks]
    with DataContext.current(_chain_context()):  # a data set keeps the settings under which it was made
        chain = ray.data.from_items(encoded, override_num_blocks=min(len(encoded), MAX_READ_TASKS))
    chain = chain.map_batches(
        partial(_read, columns=columns, bundle_rows=bundle_rows, output=output, sampling=sampling),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=task_cpus["read"],
        resources=resources_for(TOKENIZE),
    )
    return chain.map_batches(
        partial(_tokenize, spec=tokenizer, keep=columns.keep, part=part, output=output),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=task_cpus["tokenize"],
        resources=resources_for(TOKENIZE),
    )


def _chain_context() -> DataContext:
    """Return Ray Data's settings for our chains: a copy, so that other data sets of this process keep theirs."""
    # Its errors reach the driver as exceptions, so they need no log line beside; ray.data sets its level when it is imported.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    # Reading tasks may be fewer than the actors: each of them emits many bundles, which Ray does not know.
    warnings.filterwarnings("ignore", "The minimum number of concurrent actors", UserWarning)
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = STALL_SECONDS
    context.target_max_block_size = 1  # byte: a block is never joined to another, nor cut, as its one row is one bundle
    return context


def classify_files(
    files: list[InputFile], done: Mapping[str, Collection[int]], spec: ClassifySpec, plan: ActorPlan
) -> Dataset:
    """Build the lazy chain over files, without the shards in `done` (path -> starts); its blocks hold receipts of a bundle."""
    chain = tokenized_bundles(
        files,
        done,
        spec.columns,
        spec.tokenizer,
        bundle_rows=spec.bundle_rows or BUNDLE_ROWS[plan.device],
        task_cpus=plan.task_cpus,
        output=spec.output.folder,
    )
    return classify_bundles(chain, spec, plan)


def classify_bundles(chain: Dataset, spec: ClassifySpec, plan: ActorPlan) -> Dataset:
    """Add to a chain that tokenizes the stages that classify and write; its blocks hold receipts of a bundle then."""
    # Imported here, because workers of the task stages import this module and need no torch.
    from pipeline.bulk.actor import ClassifyActor

    calls = CALLS[plan.device]
    # Ray restarts tasks and actors that die without end; pipeline.bulk.attempts bounds that.
    chain = chain.map_batches(
        ClassifyActor,
        fn_constructor_args=(spec, plan),
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            min_size=plan.actors,
            max_size=plan.max_actors,
            max_tasks_in_flight_per_actor=calls,
            max_concurrent_calls_per_actor=calls,
            enable_true_multi_threading=True,  # the actor has a lock of its own, round the engine alone
        ),
        num_cpus=plan.cpus,
        num_gpus=plan.gpus,
        resources=plan.resources,
    )
    return chain.map_batches(
        partial(_write, spec=spec),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=plan.task_cpus["write"],
        resources=resources_for(TOKENIZE),
    )


def abandon(spec: ClassifySpec) -> None:
    """Leave Ray in the middle of a run, on request: no row is at fault for what the workers were at."""
    shut_down()
    clear_attempts(spec.output.folder)


def receipts_of(chain: Dataset) -> Generator[list[Receipt], None, None]:
    """Run the chain and yield the receipts of each bundle as it is finished."""
    for block in blocks_of(chain):
        for text in block[RECEIPTS_CELL].to_pylist():
            yield decode_receipts(text)


def blocks_of(chain: Dataset) -> Generator[pa.Table, None, None]:
    """Run a chain and yield its blocks as they are done."""
    yield from chain.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def _read(
    batch: pa.Table, columns: Columns, bundle_rows: int, output: str | None, sampling: Sampling | None = None
) -> Iterator[pa.Table]:
    """Read some pieces of files, bundle after bundle."""
    pieces = decode_task(batch["item"][0].as_py())
    first, others = pieces[0], len(pieces) - 1
    files = first.file.path + (f", or one of the {others} files after it" if others else "")
    key = f"read-{first.file.shard_id(0)}-{first.sections.start if first.sections else 0}"
    with ReadLog.of(output, key, files) as log:
        clock = Clock()
        for shards in gather(_shards_left(pieces, columns, log, sampling), bundle_rows):
            yield Bundle.of_shards(shards, clock).to_arrow()
            clock = Clock()


def _shards_left(pieces: list[LeftPiece], columns: Columns, log: ReadLog, sampling: Sampling | None) -> Iterator[Shard]:
    """Read pieces of files, without the shards that are done, and without what processes have died of."""
    for number, (piece, fetched) in enumerate(_fetched(pieces, prefetch=1 if log.deaths else READ_AHEAD)):
        given_up = log.lost.get(number, {})
        if piece.first in given_up and piece.sections is None and not piece.done:  # opening it may be what they died of
            yield unreadable(piece.file, columns, given_up[piece.first])
            continue
        if sampling is not None:
            yield from sampling.read(piece, columns, fetched)
            continue
        shards = read_shards(piece.file, columns, piece.sections, fetched, given_up)
        row = piece.first
        while True:
            log.begin(number, row)
            shard = next(shards, None)
            if shard is None:
                break
            row = shard.start + shard.span
            if shard.start not in piece.done:
                yield shard


def _fetched(pieces: list[LeftPiece], prefetch: int) -> Iterator[tuple[LeftPiece, StoredFile | None]]:
    """Yield pieces, small files of S3 with their content: these are fetched some at a time, as a request is mostly waiting."""
    if not all(is_fetched_whole(piece.file) for piece in pieces):
        yield from ((piece, None) for piece in pieces)
        return
    with ThreadPoolExecutor(prefetch) as pool:
        waiting: deque[tuple[LeftPiece, Future[StoredFile]]] = deque()
        for piece in pieces:
            waiting.append((piece, pool.submit(fetch, piece.file)))
            if len(waiting) > prefetch:
                first, content = waiting.popleft()
                yield first, content.result()
        yield from ((piece, content.result()) for piece, content in waiting)


def _tokenize(
    batch: pa.Table, spec: TokenizerSpec, keep: pa.Schema, part: tuple[int, int], output: str | None
) -> pa.Table:
    """Tokenize one bundle, or a rank's part of it."""
    bundle = Bundle.from_arrow(batch)
    with bundle.stage(TokenizeBundle.name):
        _keep_rows_of_rank(bundle, *part)
        attempts = attempts_of(output, TokenizeBundle.name, bundle.receipts)
        tokenized, lost = tokenize_rows(bundle.rows, _tokenizer(spec), keep, attempts)
        bundle.reject(lost)
        bundle.rows = tokenized
        _count_tokens(bundle)
    return bundle.to_arrow()


def _count_tokens(bundle: Bundle) -> None:
    """Note the tokens of each shard, and how many of its rows are truncated."""
    numbers, shards = bundle.shard_numbers(), len(bundle.receipts)
    lengths, truncated = pc.list_value_length(bundle.rows[TOKENS]), bundle.rows[TRUNCATED]
    tokens = np.bincount(numbers, lengths.to_numpy(), minlength=shards)
    cut = np.bincount(numbers, truncated.to_numpy(), minlength=shards)
    bundle.note_each(lambda number: {"tokens": int(tokens[number]), "truncated": int(cut[number])})


def _write(batch: pa.Table, spec: ClassifySpec) -> pa.Table:
    """Write the part of one bundle, and that of its rejects, and pass on the receipts alone."""
    bundle = Bundle.from_arrow(batch)
    with bundle.stage("write"):
        bundle.write(spec.output)
    return pa.table({RECEIPTS_CELL: [encode_receipts(bundle.receipts)]})


def _keep_rows_of_rank(bundle: Bundle, rank: int, world_size: int) -> None:
    """Keep the rows of one rank; rejects count, so that a rank's rows depend on the file alone."""
    if world_size > 1:
        starts = np.array([receipt.start for receipt in bundle.receipts])[bundle.shard_numbers()]
        bundle.keep((bundle.rows[ROW].to_numpy() - starts) % world_size == rank)


@lru_cache(maxsize=1)
def _tokenizer(spec: TokenizerSpec) -> Tokenizer:
    """Build a tokenizer that works on one thread, once a process: many such tasks run beside each other."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return Tokenizer(spec)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeBundle:
    """Tokenizes the texts of one bundle, any range of its rows at a time."""

    name: ClassVar[str] = "tokenize"
    failure: ClassVar[Reason] = Reason.TOKENIZE_FAILED

    tokenizer: Tokenizer
    texts: list[str]
    pairs: list[str] | None
    """The second texts, where rows are pairs."""

    def run(self, rows: range) -> Tokenized:
        """Tokenize neighbouring rows."""
        wanted = slice(rows.start, rows.stop)
        return self.tokenizer(self.texts[wanted], None if self.pairs is None else self.pairs[wanted])

    def probe(self) -> Tokenized:
        """Tokenize a letter, or a pair of them."""
        return self.tokenizer(["a"], None if self.pairs is None else ["a"])


def tokenize_rows(
    rows: pa.Table, tokenizer: Tokenizer, keep: pa.Schema, attempts: AttemptLog | None = None
) -> tuple[pa.Table, dict[int, Reject]]:
    """Tokenize rows by `schema.read_schema`.

    Returns those that can be tokenized, by `schema.token_schema`, and why the others, by their index, cannot.
    """
    pairs = rows[PAIR].to_pylist() if PAIR in rows.column_names else None
    work = TokenizeBundle(tokenizer=tokenizer, texts=rows[TEXT].to_pylist(), pairs=pairs)
    isolated = isolate(work, len(rows), attempts)
    kept = rows.take(isolated.kept(len(rows))) if isolated.lost else rows
    return with_tokens(kept, isolated.pieces, keep), isolated.lost
