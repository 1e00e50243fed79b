"""The chain on Ray Data: files -> read -> tokenize -> classify -> write -> receipts. One shard is one block throughout.

      InputFile        texts                ragged tokens            predictions            Receipt
    ───────────> read ───────> tokenize ─────────────────> classify ─────────────> write ───────────> driver
                 task          task                        actor (GPU or cores)    task

Reading streams a file and emits its shards as it goes; every other stage turns one shard into one shard, so that a retry
repeats exactly one shard and writes the very same part again. Rows that a stage cannot work on become rejects of their shard
there, and no later stage sees them.
"""

import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset

from pipeline.bulk.attempts import MAX_DEATHS, AttemptLog, attempts_of, bounded, clear_attempts
from pipeline.bulk.codec import with_tokens
from pipeline.bulk.quarantine import isolate
from pipeline.bulk.shard_block import RECEIPT_CELL, ShardBlock
from pipeline.bulk.spec import ClassifySpec
from pipeline.clock import Clock
from pipeline.cluster.connect import shut_down
from pipeline.cluster.resources import TASK_CPUS, TOKENIZE, ActorPlan, resources_for
from pipeline.corpus.columns import Columns
from pipeline.corpus.listing import InputFile
from pipeline.corpus.reader import Shard, read_shards
from pipeline.corpus.tokenize import Tokenized, Tokenizer, TokenizerSpec
from pipeline.output.receipts import Receipt
from pipeline.rejects import Reason, Reject
from pipeline.schema import PAIR, REASON, ROW, TEXT, TOKENS, TRUNCATED

MAX_READ_TASKS = 1000
"""Files are spread over at most this many reading tasks, so that a folder of small files does not drown the scheduler."""
STALL_SECONDS = 6 * 3600
"""Time without any shard finished after which a run is given up. Ray's own half hour is too short: a shard of 64 MB of text
takes hours through a large model on two cores."""
SHARDS_PER_ACTOR = 2
"""Shards that an actor holds at a time: one at work and one waiting."""


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

    Each of its blocks holds one shard. With `part` (rank, world size), a shard has the rows of this rank alone, those at rank,
    rank + world size, and so on. With an output folder, rows that kill their process are isolated as well as those that raise.
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
        partial(_tokenize, spec=tokenizer, keep=columns.keep, part=part, output=output),
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
    # Imported here, because workers of the task stages import this module and need no torch.
    from pipeline.bulk.actor import ClassifyActor

    chain = tokenized_shards(files, done, spec.columns, spec.tokenizer, output=spec.output.folder)
    # Ray restarts tasks and actors that die without end; pipeline.bulk.attempts bounds that.
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
    """Leave Ray in the middle of a run, on request: no row is at fault for what the workers were at."""
    shut_down()
    clear_attempts(spec.output.folder)


def receipts_of(chain: Dataset) -> Iterator[Receipt]:
    """Run the chain and yield receipts as shards finish."""
    for block in blocks_of(chain):
        for text in block[RECEIPT_CELL].to_pylist():
            yield Receipt.from_json(text)


def blocks_of(chain: Dataset) -> Iterator[pa.Table]:
    """Run a chain and yield its blocks as they are done."""
    yield from chain.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def _read(batch: pa.Table, columns: Columns, output: str | None) -> Iterator[pa.Table]:
    """Read one file, shard after shard."""
    file = InputFile(**json.loads(batch["file"][0].as_py()))
    done = set(batch["done"][0].as_py())
    when = f"while they read {file.path}; take it out of the input"
    with bounded(output, f"read-{file.shard_id(0)}", MAX_DEATHS, when):
        clock = Clock()
        for shard in read_shards(file, columns):
            if shard.start not in done:
                yield ShardBlock(_receipt(shard, clock), shard.rows, shard.rejects).to_arrow()
            clock = Clock()


def _receipt(shard: Shard, clock: Clock) -> Receipt:
    """Begin the receipt of a shard that has been read in the time of this clock."""
    return Receipt(
        shard=shard.id,
        file=shard.file.path,
        size=shard.file.size,
        version=shard.file.version,
        start=shard.start,
        last=shard.last,
        input_bytes=shard.fraction * shard.file.size,
        read_error=shard.read_error,
        rows_in=len(shard.rows) + len(shard.rejects),
        seconds={"read": clock.seconds},
        cpu_seconds={"read": clock.cpu_seconds},
    )


def _tokenize(
    batch: pa.Table, spec: TokenizerSpec, keep: pa.Schema, part: tuple[int, int], output: str | None
) -> pa.Table:
    """Tokenize one shard, or a rank's part of it."""
    block = ShardBlock.from_arrow(batch)
    with block.stage(TokenizeShard.name):
        block.rows = _rows_of_rank(block, *part)
        attempts = attempts_of(output, TokenizeShard.name, block.receipt)
        tokenized, lost = tokenize_rows(block.rows, _tokenizer(spec), keep, attempts)
        block.reject(lost)
        block.rows = tokenized
        tokens = pc.sum(pc.list_value_length(tokenized[TOKENS])).as_py() or 0
        truncated = pc.sum(tokenized[TRUNCATED]).as_py() or 0
        block.receipt = replace(block.receipt, tokens=tokens, truncated=truncated)
    return block.to_arrow()


def _write(batch: pa.Table, spec: ClassifySpec) -> pa.Table:
    """Write the part of one shard, and that of its rejects, and pass on the receipt alone."""
    block = ShardBlock.from_arrow(batch)
    with block.stage("write"):
        spec.output.write(block.receipt.shard, block.rows, block.rejects_part())
        rejected = dict(Counter(block.rejects[REASON].to_pylist()))
        block.receipt = replace(block.receipt, rows_out=len(block.rows), rejected=rejected)
        if block.receipt.rows_in != len(block.rows) + len(block.rejects):
            raise AssertionError(f"shard {block.receipt.shard} lost rows")
    return pa.table({RECEIPT_CELL: [block.receipt.to_json()]})


def _rows_of_rank(block: ShardBlock, rank: int, world_size: int) -> pa.Table:
    """Take the rows of one rank out of a shard; rejects count, so that a rank's rows depend on the file alone."""
    if world_size == 1:
        return block.rows
    positions = block.rows[ROW].to_numpy() - block.receipt.start
    return block.rows.filter(pa.array(positions % world_size == rank))


@lru_cache(maxsize=1)
def _tokenizer(spec: TokenizerSpec) -> Tokenizer:
    """Build a tokenizer that works on one thread, once a process: many such tasks run beside each other."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return Tokenizer(spec)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeShard:
    """Tokenizes the texts of one shard, any range of its rows at a time."""

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
    work = TokenizeShard(tokenizer=tokenizer, texts=rows[TEXT].to_pylist(), pairs=pairs)
    isolated = isolate(work, len(rows), attempts)
    kept = rows.take(isolated.kept(len(rows))) if isolated.lost else rows
    return with_tokens(kept, isolated.pieces, keep), isolated.lost
