"""A stream of training rows from files of any size: read and tokenized on Ray Data while the model learns.

A chunk is a bundle of the main chain: some thousand rows, of one file or of many. Files come in a seeded order, the shards of a
file in theirs, and nothing is kept, so memory does not grow with the corpus.

With many workers the reading tasks of an epoch (corpus.plan: many files, or a stretch of one) are dealt out, each to the worker
that has least to read so far, which depends on seed, epoch and number of workers alone. Where there are too few tasks to deal
evenly, every worker reads them all and keeps every world_size-th row. From there on both are one:

    round    every worker takes its next bundle, or none if it has no more, and all exchange which shards they hold
    limit    counts the rows of these shards, each once, in the order of the workers
    steps    as many for all as the worker with most rows needs; one with fewer rows, or none, brings less to each of them
    done     all shards of the round, whoever read them; so a resumed epoch leaves them out, with as many workers or others
    end      when nobody holds a shard

Every row is seen by exactly one worker, once an epoch.
"""

import sys
from collections.abc import Collection, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.exits.task import Task
from pipeline.bulk.bundle import BUNDLE_ROWS, Bundle
from pipeline.bulk.codec import token_rows
from pipeline.bulk.stages import blocks_of, bundles_of_tasks, tokenize_rows
from pipeline.corpus.chunks import Chunk
from pipeline.corpus.columns import Columns
from pipeline.corpus.labelled import Label, label_array, label_reader
from pipeline.corpus.listing import Corpus
from pipeline.corpus.plan import Piece, plan_reading
from pipeline.corpus.reader import read_shards
from pipeline.corpus.tokenize import Tokenizer, TokenizerSpec
from pipeline.errors import InputError, UserError, printable
from pipeline.output.receipts import Receipt
from pipeline.rows import FloatArray, TokenRows
from pipeline.schema import KEPT, LOGITS, ROW
from pipeline.training.process_group import ProcessGroup

TASKS_PER_WORKER = 32
"""Reading tasks to plan for each worker; smaller corpora have fewer."""
FEWEST_TASKS = 8
"""Reading tasks for each worker from which on they are dealt out; one worker may have one more than another."""
HOLD_OUT_EVERY = 8
"""Rows held out as dev rows: every so-many-th at the start of a file."""
HOLD_OUT_ROWS = 1000
"""Dev rows after which no further file is read; also the most that one file gives."""
HOLD_OUT_FILES = 64
"""Files that dev rows are taken from at most, since each may be small."""


@dataclass(frozen=True, kw_only=True)
class StreamSpec:
    """Where a stream comes from, as plain values, which travel to every worker."""

    corpus: Corpus
    columns: Columns
    """Its kept columns are LOGITS, where soft labels are read, and the label column, where true labels are."""
    tokenizer: TokenizerSpec
    classes: list[str]
    task: Task = Task.CLASSES
    label_column: str | None = None
    label_separator: str | None = None
    """Between the labels of a label set where a file has it as text that is no JSON."""
    limit: int | None = None
    """Rows to read in an epoch at most."""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Key:
    """The key of a shard: `corpus/a.parquet:16384:9000` is 9,000 rows from row 16,384 of that file on."""

    path: str
    start: int
    rows: int

    @classmethod
    def parse(cls, key: str) -> Self:
        path, start, rows = key.rsplit(":", 2)
        return cls(path=path, start=int(start), rows=int(rows))

    def __str__(self) -> str:
        return f"{self.path}:{self.start}:{self.rows}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """What a worker tells the others of a shard in its bundle."""

    path: str
    start: int
    rows: int
    """Rows of the shard, over all workers, those that cannot be used included."""
    input_bytes: float
    read_error: str | None

    @classmethod
    def of(cls, receipt: Receipt) -> Self:
        return cls(
            path=receipt.file,
            start=receipt.start,
            rows=receipt.rows_in,
            input_bytes=receipt.input_bytes,
            read_error=receipt.read_error,
        )


class StreamSource:
    """Chunks of a stream; each worker of a group takes its own rows."""

    def __init__(
        self,
        spec: StreamSpec,
        group: ProcessGroup,
        leave_out: Collection[str] = (),
        chunk_rows: int = BUNDLE_ROWS["cpu"],
    ) -> None:
        """Read the stream of `spec`, without the dev rows of the files named in `leave_out`, as `held_out` returned them."""
        self.spec, self.group, self.leave_out, self.chunk_rows = spec, group, leave_out, chunk_rows

    def chunks(self, epoch: int, done: Collection[str]) -> Generator[Chunk, None, None]:
        """Yield this worker's rows of every chunk until the files or the limit end; its keys are `path:start:rows` of shards.

        All workers ask for chunks together, and get as many.
        """
        seen = [_Key.parse(key) for key in done]
        left = None if self.spec.limit is None else self.spec.limit - sum(key.rows for key in seen)
        with closing(self._bundles(epoch, seen)) as bundles:
            while left is None or left > 0:
                bundle = next(bundles, None)
                held = self._exchange(bundle)
                if not held:
                    return
                used = _within(held, left)
                rows = self._rows(bundle, {(key.path, key.start): key.rows for key in used})
                yield self._chunk(rows, held, used)
                if left is not None:
                    left -= sum(key.rows for key in used)

    def _bundles(self, epoch: int, seen: list[_Key]) -> Generator[Bundle, None, None]:
        """Read and tokenize what is left of this worker's part of an epoch, in the order of its seed."""
        files = self.spec.corpus.files
        order = np.random.default_rng([self.spec.seed, epoch]).permutation(len(files))
        tasks = plan_reading([files[number] for number in order], TASKS_PER_WORKER * self.group.world_size)
        mine, part = tasks_of(tasks, self.group.rank, self.group.world_size)
        starts: dict[str, set[int]] = {}
        for key in seen:
            starts.setdefault(key.path, set()).add(key.start)
        chain = bundles_of_tasks(
            mine, starts, self.spec.columns, self.spec.tokenizer, bundle_rows=self.chunk_rows, part=part
        )
        chain.context.execution_options.preserve_order = True  # or a run would not repeat with its seed
        # A generator that only falls out of use swallows what is raised while it ends, an end by SIGTERM too.
        with closing(blocks_of(chain)) as blocks:
            yield from map(Bundle.from_arrow, blocks)

    def _exchange(self, bundle: Bundle | None) -> list[_Held]:
        """Return the shards that the workers hold in this round, each once; name files that cannot be read to their end."""
        mine = [] if bundle is None else [_Held.of(receipt) for receipt in bundle.receipts]
        held = {(shard.path, shard.start): shard for shards in self.group.gather(mine) for shard in shards}
        for shard in held.values():
            if shard.read_error is not None and self.group.is_rank_zero:
                print(printable(f"{shard.path}: {shard.read_error}; the rest of it is left out"), file=sys.stderr)
        return list(held.values())

    def _rows(self, bundle: Bundle | None, used: dict[tuple[str, int], int]) -> Chunk:
        """Return this worker's rows of the first `used` rows of every shard (path, start), without held-out rows."""
        if bundle is None:
            nothing = label_array([], self.spec.classes, self.spec.task)
            return Chunk(rows=TokenRows.from_lists([]), labels=nothing)
        shard_B, row_B = bundle.shard_numbers(), bundle.rows[ROW].to_numpy()
        ends = np.array([receipt.start + used[receipt.file, receipt.start] for receipt in bundle.receipts])
        held_out_from = np.array([receipt.file in self.leave_out for receipt in bundle.receipts])
        wanted_B = (row_B < ends[shard_B]) & ~(held_out_from[shard_B] & _is_held_out(bundle.rows))
        return _chunk_of(bundle.rows.filter(pa.array(wanted_B)), self.spec)

    def _chunk(self, rows: Chunk, held: list[_Held], used: list[_Key]) -> Chunk:
        """Add to this worker's rows what they are part of."""
        global_rows = sum(key.rows for key in used)
        fraction = sum(shard.input_bytes for shard in held) / max(self.spec.corpus.size, 1)
        if self.spec.limit is not None:  # the epoch ends with the files or at the limit, whichever comes first
            fraction = max(fraction, global_rows / self.spec.limit)
        return replace(
            rows,
            keys=tuple(map(str, used)),
            fraction=fraction,
            global_rows=global_rows,
            most_rows=max(self.group.gather(len(rows))),
        )


def tasks_of(
    tasks: Sequence[Sequence[Piece]], rank: int, world_size: int
) -> tuple[list[Sequence[Piece]], tuple[int, int]]:
    """Return the tasks that a worker reads, and which rows of them it keeps, as `bundles_of_tasks` takes it.

    These are tasks of its own and all of their rows, `(0, 1)`; or all tasks and every world_size-th row, `(rank, world_size)`.
    """
    if len(tasks) < FEWEST_TASKS * world_size:
        return list(tasks), (rank, world_size)
    mine, sizes = [], [0] * world_size
    for task in tasks:
        worker = sizes.index(min(sizes))
        sizes[worker] += sum(piece.size for piece in task)
        if worker == rank:
            mine.append(task)
    return mine, (0, 1)


def _within(held: list[_Held], limit: int | None) -> list[_Key]:
    """Return the shards with the rows of them that are used, at most `limit` together."""
    used, left = [], limit
    for shard in held:
        rows = shard.rows if left is None else min(shard.rows, left)
        used.append(_Key(path=shard.path, start=shard.start, rows=rows))
        left = None if left is None else left - rows
    return used


def held_out(spec: StreamSpec) -> tuple[Chunk, frozenset[str]]:
    """Read the dev rows that a stream leaves out, without Ray, and return them with the paths of their files.

    Raises UserError if none of them is usable.
    """
    parts: list[pa.Table] = []
    files = spec.corpus.files[:HOLD_OUT_FILES]
    for number, file in enumerate(files):
        shard = next(iter(read_shards(file, spec.columns)))
        parts.append(shard.rows.filter(pa.array(_is_held_out(shard.rows))))
        if sum(map(len, parts)) >= HOLD_OUT_ROWS:
            files = files[: number + 1]
            break
    rows = pa.concat_tables(parts)
    if len(rows) == 0:
        raise UserError(f"{files[0].path}: no usable row to hold out at its start; give dev rows")
    tokenized, _lost = tokenize_rows(rows, Tokenizer(spec.tokenizer), spec.columns.keep)
    return _chunk_of(tokenized, spec), frozenset(file.path for file in files)


def _is_held_out(rows: pa.Table) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which rows are dev rows of their file."""
    numbers = rows[ROW].to_numpy()
    return (numbers % HOLD_OUT_EVERY == 0) & (numbers < HOLD_OUT_EVERY * HOLD_OUT_ROWS)


def _chunk_of(rows: pa.Table, spec: StreamSpec) -> Chunk:
    """Make a chunk of tokenized rows."""
    labels: list[Label | None] = [None] * len(rows)
    if spec.label_column is not None:
        values, read_label = rows[KEPT + spec.label_column].to_pylist(), label_reader(spec.task, spec.label_separator)
        labels = [read_label(value) for value in values]
    logits = _logits(rows, len(spec.classes)) if KEPT + LOGITS in rows.column_names else None
    return Chunk(
        rows=token_rows(rows),
        labels=label_array(labels, spec.classes, spec.task),
        logits=logits,
        global_rows=len(rows),
    )


def _logits(rows: pa.Table, classes: int) -> FloatArray:
    """Return the soft labels of rows as [B, C]; raise InputError if they are not of this many classes."""
    column = rows[KEPT + LOGITS].combine_chunks()
    if len(rows) == 0:
        return np.zeros((0, classes), np.float32)
    widths = pc.unique(pc.list_value_length(column)).to_pylist()
    if widths != [classes]:
        raise InputError(
            "labels", f"rows have {widths[0]} logits, the model {classes} classes: they are of another teacher"
        )
    logits: FloatArray = column.flatten().to_numpy().reshape(-1, classes).astype(np.float32)
    return logits
