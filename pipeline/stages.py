"""The chain on Ray Data: files -> read -> tokenise -> classify -> write -> receipts. One shard is one block throughout.

      InputFile        Shard                ragged tokens            predictions            Receipt
    ───────────> read ───────> tokenise ─────────────────> classify ─────────────> write ───────────> driver
                 task          task                        actor (GPU or cores)    task

Reading streams a file and emits its shards as it goes; all other stages turn one shard into one shard, so that a retry
repeats exactly one shard and writes the very same part again.
"""

import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset

from pipeline.cluster import TASK_CPUS, TOKENISE, ActorPlan, place_of
from pipeline.config import AuditSpec, EngineConfig
from pipeline.formats import Unusable
from pipeline.inputs import InputFile
from pipeline.isolation import MAX_DEATHS, Marker, Stage, bounded, clear_attempts, isolate, marker_of
from pipeline.output import Output
from pipeline.receipts import RECEIPT, Clock, Receipt, ShardBlock
from pipeline.rows import TokenRows
from pipeline.schema import (
    DETAIL,
    FILE,
    ID,
    PAIR,
    REASON,
    REJECTS,
    ROW,
    SEGMENT,
    TEXT,
    TOKENS,
    TRUNCATED,
    output_schema,
    token_schema,
    travelling,
)
from pipeline.source import Columns, read_shards
from pipeline.tokenise import Tokenised, Tokeniser, TokeniserSpec

MAX_READ_TASKS = 1000
"""Files are spread over at most this many reading tasks, so that a folder of small files does not drown the scheduler."""
STALL_SECONDS = 6 * 3600
"""Without any shard moving, before a run is given up. Ray's own half hour is too short: a shard of 64 MB of text takes hours
through a large model on two cores."""
SHARDS_PER_ACTOR = 2
"""Queued at an actor: one at work and one waiting."""


@dataclass(frozen=True, kw_only=True)
class ClassifySpec:
    """All that the stages need; plain values that travel to every worker."""

    columns: Columns
    tokeniser: TokeniserSpec
    model: str
    weights: str
    """Their `models.digest`: an actor that finds others refuses to start."""
    engine: EngineConfig
    output: Output
    results: tuple[str, ...]
    """Columns of the output beside the kept ones, of `schema.RESULTS`."""
    audit: AuditSpec | None = None


def tokenised_shards(
    files: list[InputFile],
    done: Mapping[str, Collection[int]],
    columns: Columns,
    tokeniser: TokeniserSpec,
    *,
    part: tuple[int, int] = (0, 1),
    output: str | None = None,
) -> Dataset:
    """Build the lazy chain that reads and tokenises files, without the shards in `done` (path -> starts).

    Its blocks hold one shard each. `part` (rank, workers) takes every so many-th row of a shard only. With an output folder,
    rows that kill their process are isolated as well as those that raise.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = STALL_SECONDS
    # Blocks are never joined or cut beyond one row, which is one shard: see pipeline.receipts.
    context.target_max_block_size = 1
    jobs = [{"file": json.dumps(asdict(file)), "done": sorted(done.get(file.path, ()))} for file in files]
    chain = ray.data.from_items(jobs, override_num_blocks=min(len(jobs), MAX_READ_TASKS))
    chain = chain.map_batches(
        partial(_read, columns=columns, output=output),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=TASK_CPUS["read"],
        resources=place_of(TOKENISE),
    )
    return chain.map_batches(
        partial(_tokenise, spec=tokeniser, columns=columns, part=part, output=output),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=TASK_CPUS["tokenise"],
        resources=place_of(TOKENISE),
    )


def classify_files(
    files: list[InputFile], done: Mapping[str, Collection[int]], spec: ClassifySpec, plan: ActorPlan
) -> Dataset:
    """Build the lazy chain over files, without the shards in `done` (path -> starts); its blocks hold receipts."""
    from pipeline.actor import ClassifyActor  # here: workers of the task stages import this module, and need no torch

    chain = tokenised_shards(files, done, spec.columns, spec.tokeniser, output=spec.output.folder)
    # Ray starts tasks and actors that die again without end; pipeline.isolation sees to it that there is one.
    chain = chain.map_batches(
        ClassifyActor,
        fn_constructor_args=(spec, plan),
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            min_size=plan.actors, max_size=plan.most, max_tasks_in_flight_per_actor=SHARDS_PER_ACTOR
        ),
        num_cpus=plan.cpus,
        num_gpus=plan.gpus,
        resources=plan.place,
    )
    return chain.map_batches(
        partial(_write, spec=spec),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=TASK_CPUS["write"],
        resources=place_of(TOKENISE),
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
            mark=file.mark,
            start=shard.start,
            last=shard.last,
            input_bytes=shard.share * file.size,
            read_error=shard.read_error,
            rows_in=len(shard.rows),
            seconds={"read": clock.seconds},
            cpu_seconds={"read": clock.cpu_seconds},
        )
        yield ShardBlock(receipt, shard.rows).to_arrow()
        clock = Clock()


@lru_cache(maxsize=1)
def _tokeniser(spec: TokeniserSpec) -> Tokeniser:
    return Tokeniser(spec)


def _tokenise(
    batch: pa.Table, spec: TokeniserSpec, columns: Columns, part: tuple[int, int], output: str | None
) -> pa.Table:
    block = ShardBlock.from_arrow(batch)
    rank, workers = part
    with block.stage("tokenise"):
        rows = block.rows.take(np.arange(rank, len(block.rows), workers)) if workers > 1 else block.rows
        block.rows = with_tokens(rows, _tokeniser(spec), columns, marker_of(output, "tokenise", block.receipt))
        tokens = pc.sum(pc.list_value_length(block.rows[TOKENS])).as_py() or 0
        truncated = pc.sum(block.rows[TRUNCATED]).as_py() or 0
        block.receipt = replace(block.receipt, tokens=tokens, truncated=truncated)
    return block.to_arrow()


def with_tokens(rows: pa.Table, tokeniser: Tokeniser, columns: Columns, marker: Marker | None = None) -> pa.Table:
    """Put tokens in the place of texts: rows by `schema.token_schema`; rejects get an empty list.

    Rows that cannot be tokenised become rejects.
    """
    usable = np.flatnonzero(pc.is_null(rows[REASON]))
    good = rows.take(usable)
    texts = good[TEXT].to_pylist()
    pairs = good[PAIR].to_pylist() if columns.pair is not None else None

    def work(part: range) -> Tokenised:
        here = slice(part.start, part.stop)
        return tokeniser(texts[here], pairs[here] if pairs is not None else None)

    stage = Stage(name="tokenise", work=work, harmless=lambda: tokeniser(["a"], ["a"] if pairs is not None else None))
    isolated = isolate(stage, len(good), marker)
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


def rejected(rows: pa.Table, lost: dict[int, Unusable]) -> pa.Table:
    """Write down why these rows are rejects from now on."""
    if not lost:
        return rows
    columns = {REASON: rows[REASON].to_pylist(), DETAIL: rows[DETAIL].to_pylist()}
    for row, problem in lost.items():
        columns[REASON][row], columns[DETAIL][row] = problem.reason, problem.detail
    for name, values in columns.items():
        rows = rows.set_column(
            rows.schema.get_field_index(name), rows.schema.field(name), pa.array(values, pa.string())
        )
    return rows


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


def _rejects(rows: pa.Table, receipt: Receipt) -> pa.Table:
    """Rejected rows, and one for the file itself if it could not be read to its end."""
    table = rows.select([ID, ROW, REASON, DETAIL]).append_column(
        FILE, pa.array([receipt.file] * len(rows), pa.string())
    )
    table = table.select(REJECTS.names).cast(REJECTS)
    if receipt.read_error is None:
        return table
    last = {
        ID: os.path.basename(receipt.file),
        FILE: receipt.file,
        ROW: None,
        REASON: "unreadable_file",
        DETAIL: f"from row {receipt.start + receipt.rows_in} on: {receipt.read_error}",
    }
    return pa.concat_tables([table, pa.Table.from_pylist([last], REJECTS)])
