"""The chain on Ray Data: files -> read -> tokenize -> classify -> write -> receipts. One shard is one block throughout.

      InputFile        Shard                ragged tokens            predictions            Receipt
    ───────────> read ───────> tokenize ─────────────────> classify ─────────────> write ───────────> driver
                 task          task                        actor (GPU or cores)    task

Reading streams a file and emits its shards as it goes; all other stages turn one shard into one shard, so that a retry
repeats exactly one shard and writes the very same part again.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, replace
from functools import lru_cache, partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset

from pipeline.bulk.quarantine import MAX_DEATHS, AttemptLog, Stage, attempts_of, bounded, clear_attempts, isolate
from pipeline.bulk.reject_rows import _rejects, rejected
from pipeline.bulk.shard_block import RECEIPT, ShardBlock
from pipeline.bulk.spec import ClassifySpec
from pipeline.clock import Clock
from pipeline.cluster.resources import TASK_CPUS, TOKENIZE, ActorPlan, resources_for
from pipeline.corpus.columns import Columns
from pipeline.corpus.listing import InputFile
from pipeline.corpus.reader import read_shards
from pipeline.corpus.tokenize import Tokenized, Tokenizer, TokenizerSpec
from pipeline.output.receipts import Receipt
from pipeline.rows import TokenRows
from pipeline.schema import (
    PAIR,
    REASON,
    ROW,
    SEGMENT,
    TEXT,
    TOKENS,
    TRUNCATED,
    output_schema,
    token_schema,
    travelling,
)

MAX_READ_TASKS = 1000
"""Files are spread over at most this many reading tasks, so that a folder of small files does not drown the scheduler."""
STALL_SECONDS = 6 * 3600
"""Without any shard moving, before a run is given up. Ray's own half hour is too short: a shard of 64 MB of text takes hours
through a large model on two cores."""
SHARDS_PER_ACTOR = 2
"""Queued at an actor: one at work and one waiting."""


def tokenized_shards(
    files: list[InputFile],
    done: Mapping[str, Collection[int]],
    columns: Columns,
    tokenizer: TokenizerSpec,
    *,
    part: tuple[int, int] = (0, 1),
    output: str | None = None,
) -> Dataset:
    """Build the lazy chain that reads and tokenizes files, without the shards in `done` (path -> starts).

    Its blocks hold one shard each. `part` (rank, workers) takes every so many-th row of a shard only. With an output folder,
    rows that kill their process are isolated as well as those that raise.
    """
    jobs = [{"file": json.dumps(asdict(file)), "done": sorted(done.get(file.path, ()))} for file in files]
    with DataContext.current(_chain_context()):  # a data set keeps the settings under which it was made
        chain = ray.data.from_items(jobs, override_num_blocks=min(len(jobs), MAX_READ_TASKS))
    chain = chain.map_batches(
        partial(_read, columns=columns, output=output),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=TASK_CPUS["read"],
        resources=resources_for(TOKENIZE),
    )
    return chain.map_batches(
        partial(_tokenize, spec=tokenizer, columns=columns, part=part, output=output),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=TASK_CPUS["tokenize"],
        resources=resources_for(TOKENIZE),
    )


def _chain_context() -> DataContext:
    """Return Ray Data's settings for our chains: a copy, so that other data sets of this process keep theirs."""
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = STALL_SECONDS
    context.target_max_block_size = 1  # byte: a block is never joined to another, nor cut, as its one row is one shard
    return context


def classify_files(
    files: list[InputFile], done: Mapping[str, Collection[int]], spec: ClassifySpec, plan: ActorPlan
) -> Dataset:
    """Build the lazy chain over files, without the shards in `done` (path -> starts); its blocks hold receipts."""
    from pipeline.bulk.actor import (
        ClassifyActor,
    )  # here: workers of the task stages import this module, and need no torch

    chain = tokenized_shards(files, done, spec.columns, spec.tokenizer, output=spec.output.folder)
    # Ray starts tasks and actors that die again without end; pipeline.isolation sees to it that there is one.
    chain = chain.map_batches(
        ClassifyActor,
        fn_constructor_args=(spec, plan),
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            min_size=plan.actors, max_size=plan.max_actors, max_tasks_in_flight_per_actor=SHARDS_PER_ACTOR
        ),
        num_cpus=plan.cpus,
        num_gpus=plan.gpus,
        resources=plan.resources,
    )
    return chain.map_batches(
        partial(_write, spec=spec),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=TASK_CPUS["write"],
        resources=resources_for(TOKENIZE),
    )


def abandon(spec: ClassifySpec) -> None:
    """Leave Ray in the middle of a run, on request: what the workers are at is no fault of a row's."""
    ray.shutdown()
    clear_attempts(spec.output.folder)


def receipts_of(chain: Dataset) -> Iterator[Receipt]:
    """Run the chain and yield receipts as shards finish."""
    for block in blocks_of(chain):
        for text in block[RECEIPT].to_pylist():
            yield Receipt.from_json(text)


def blocks_of(chain: Dataset) -> Iterator[pa.Table]:
    """Run a chain and yield its blocks as they are done."""
    yield from chain.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def _read(batch: pa.Table, columns: Columns, output: str | None) -> Iterator[pa.Table]:
    file = InputFile(**json.loads(batch["file"][0].as_py()))
    what = f"while they read {file.path}; take it out of the input"
    with bounded(output, f"read-{file.shard_id(0)}", MAX_DEATHS, what):
        yield from _read_shards(file, columns, set(batch["done"][0].as_py()))


def _read_shards(file: InputFile, columns: Columns, done: set[int]) -> Iterator[pa.Table]:
    clock = Clock()
    for shard in read_shards(file, columns):
        if shard.start in done:
            clock = Clock()
            continue
        receipt = Receipt(
            shard=shard.id,
            file=file.path,
            size=file.size,
            version=file.version,
            start=shard.start,
            last=shard.last,
            input_bytes=shard.fraction * file.size,
            read_error=shard.read_error,
            rows_in=len(shard.rows),
            seconds={"read": clock.seconds},
            cpu_seconds={"read": clock.cpu_seconds},
        )
        yield ShardBlock(receipt, shard.rows).to_arrow()
        clock = Clock()


@lru_cache(maxsize=1)
def _tokenizer(spec: TokenizerSpec) -> Tokenizer:
    return Tokenizer(spec)


def _tokenize(
    batch: pa.Table, spec: TokenizerSpec, columns: Columns, part: tuple[int, int], output: str | None
) -> pa.Table:
    block = ShardBlock.from_arrow(batch)
    rank, workers = part
    with block.stage("tokenize"):
        rows = block.rows.take(np.arange(rank, len(block.rows), workers)) if workers > 1 else block.rows
        block.rows = with_tokens(rows, _tokenizer(spec), columns, attempts_of(output, "tokenize", block.receipt))
        tokens = pc.sum(pc.list_value_length(block.rows[TOKENS])).as_py() or 0
        truncated = pc.sum(block.rows[TRUNCATED]).as_py() or 0
        block.receipt = replace(block.receipt, tokens=tokens, truncated=truncated)
    return block.to_arrow()


def with_tokens(rows: pa.Table, tokenizer: Tokenizer, columns: Columns, attempts: AttemptLog | None = None) -> pa.Table:
    """Put tokens in the place of texts: rows by `schema.token_schema`; rejects get an empty list.

    Rows that cannot be tokenized become rejects.
    """
    usable = np.flatnonzero(pc.is_null(rows[REASON]))
    good = rows.take(usable)
    texts = good[TEXT].to_pylist()
    pairs = good[PAIR].to_pylist() if columns.pair is not None else None

    def work(part: range) -> Tokenized:
        here = slice(part.start, part.stop)
        return tokenizer(texts[here], pairs[here] if pairs is not None else None)

    stage = Stage(name="tokenize", work=work, probe=lambda: tokenizer(["a"], ["a"] if pairs is not None else None))
    isolated = isolate(stage, len(good), attempts)
    tokens = TokenRows.join([piece.rows for piece in isolated.pieces])
    kept = usable[isolated.kept(len(good))]
    lengths, segments, cut = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int32), np.zeros(len(rows), np.bool_)
    lengths[kept], segments[kept] = tokens.lengths, tokens.segments
    cut[kept] = np.concatenate([piece.truncated for piece in isolated.pieces])
    offsets = np.concatenate([np.zeros(1, np.int32), np.cumsum(lengths, dtype=np.int32)])
    schema = token_schema(columns.keep)
    made = {
        TOKENS: pa.ListArray.from_arrays(pa.array(offsets), pa.array(tokens.token_ids)),
        SEGMENT: pa.array(segments),
        TRUNCATED: pa.array(cut),
    }
    table = pa.table([made[f.name] if f.name in made else rows[f.name] for f in schema], schema=schema)
    return rejected(table, {int(usable[row]): problem for row, problem in isolated.lost.items()})


def _write(batch: pa.Table, spec: ClassifySpec) -> pa.Table:
    block = ShardBlock.from_arrow(batch)
    with block.stage("write"):
        usable = pc.is_null(block.rows[REASON])
        schema = output_schema(spec.results, spec.columns.keep)
        names = [*spec.results, *travelling(spec.columns.keep).names]
        good = block.rows.filter(usable).select(names).rename_columns(schema.names).cast(schema)
        rejects = _rejects(block.rows.filter(pc.invert(usable)), block.receipt)
        spec.output.write(block.receipt.shard, good, rejects)
        counts = rejects[REASON].filter(pc.is_valid(rejects[ROW])).value_counts().to_pylist()
        block.receipt = replace(block.receipt, rows_out=len(good), rejected={c["values"]: c["counts"] for c in counts})
        if block.receipt.rows_in != len(good) + sum(block.receipt.rejected.values()):
            raise AssertionError(f"shard {block.receipt.shard} lost rows")
    return pa.table({RECEIPT: [block.receipt.to_json()]})
