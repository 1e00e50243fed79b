"""A stream of training rows from files of any size: read and tokenized on Ray Data while the model learns.

Chunks are the shards of the main chain. Files come in a seeded order, shards of a file in theirs, and nothing is kept: memory
does not grow with the corpus. With many workers each of them reads everything and keeps every so many-th row, so that all of
them take the same number of steps and every row is seen by exactly one.
"""

import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ray.data import DataContext

from pipeline.bulk.codec import token_rows
from pipeline.bulk.shard_block import ShardBlock
from pipeline.bulk.stages import blocks_of, tokenize_rows, tokenized_shards
from pipeline.corpus.chunks import Chunk
from pipeline.corpus.columns import Columns
from pipeline.corpus.labelled import label_numbers
from pipeline.corpus.listing import Corpus
from pipeline.corpus.reader import read_shards
from pipeline.corpus.tokenize import Tokenizer, TokenizerSpec
from pipeline.errors import InputError, UserError
from pipeline.rows import FloatArray
from pipeline.schema import KEPT, LOGITS, ROW

HOLD_OUT_EVERY = 8
HOLD_OUT_ROWS = 1000
"""Rows held out of a stream to see how training goes: every eighth row at its start, some more than this at most."""
HOLD_OUT_FILES = 64
"""They may be small: so many are looked into."""


@dataclass(frozen=True, kw_only=True)
class StreamSpec:
    """Where a stream comes from; plain values that travel to every worker."""

    corpus: Corpus
    columns: Columns
    """Kept columns: LOGITS, where soft labels are read, and the label column, where true labels are."""
    tokenizer: TokenizerSpec
    classes: list[str]
    label_column: str | None = None
    limit: int | None = None
    """Rows to read in an epoch at most."""
    seed: int = 0


class StreamSource:
    """Chunks of a stream; each of `workers` takes its own rows of every chunk."""

    def __init__(self, spec: StreamSpec, rank: int = 0, workers: int = 1, leave_out: Collection[str] = ()) -> None:
        """`leave_out` names the files whose first rows `held_out` gave."""
        self.spec, self.rank, self.workers, self.leave_out = spec, rank, workers, leave_out

    def chunks(self, epoch: int, done: Collection[str]) -> Iterator[Chunk]:
        spec, files = self.spec, self.spec.corpus.files
        order = np.random.default_rng([spec.seed, epoch]).permutation(len(files))
        starts: dict[str, set[int]] = {}
        for key in done:
            path, start, _rows = key.rsplit(":", 2)
            starts.setdefault(path, set()).add(int(start))
        left = None if spec.limit is None else spec.limit - sum(int(key.rsplit(":", 1)[1]) for key in done)
        DataContext.get_current().execution_options.preserve_order = True  # or a run would not repeat with its seed
        chain = tokenized_shards(
            [files[number] for number in order], starts, spec.columns, spec.tokenizer, part=(self.rank, self.workers)
        )
        for table in blocks_of(chain) if left is None or left > 0 else ():
            block = ShardBlock.from_arrow(table)
            receipt = block.receipt
            if receipt.read_error is not None and self.rank == 0:
                print(f"{receipt.file}: {receipt.read_error}; the rest of it is left out", file=sys.stderr)
            global_rows = receipt.rows_in if left is None else min(receipt.rows_in, left)
            share = receipt.input_bytes / max(spec.corpus.size, 1)
            if spec.limit is not None:  # whichever ends first
                share = max(share, global_rows / spec.limit)
            rows = block.rows.filter(pc.less(block.rows[ROW], receipt.start + global_rows))
            if receipt.file in self.leave_out:
                rows = rows.filter(pc.invert(pa.array(_held_out(rows))))
            yield replace(
                _chunk(rows, spec),
                key=f"{receipt.file}:{receipt.start}:{global_rows}",
                share=share,
                global_rows=global_rows,
            )
            if left is not None:
                left -= global_rows
                if left <= 0:
                    return


def held_out(spec: StreamSpec) -> tuple[Chunk, frozenset[str]]:
    """Read rows for a stream to leave out, without Ray, and name their files; raise UserError if there is none to use."""
    parts: list[pa.Table] = []
    files = spec.corpus.files[:HOLD_OUT_FILES]
    for number, file in enumerate(files):
        shard = next(iter(read_shards(file, spec.columns)))
        parts.append(shard.rows.filter(pa.array(_held_out(shard.rows))))
        if sum(map(len, parts)) >= HOLD_OUT_ROWS:
            files = files[: number + 1]
            break
    rows = pa.concat_tables(parts)
    if len(rows) == 0:
        raise UserError(f"{files[0].path}: no usable row to hold out at its start; give dev rows")
    tokenized, _lost = tokenize_rows(rows, Tokenizer(spec.tokenizer), spec.columns.keep)
    return _chunk(tokenized, spec), frozenset(file.path for file in files)


def _held_out(rows: pa.Table) -> np.ndarray[Any, np.dtype[np.bool_]]:
    numbers = rows[ROW].to_numpy()
    return (numbers % HOLD_OUT_EVERY == 0) & (numbers < HOLD_OUT_EVERY * HOLD_OUT_ROWS)


def _chunk(rows: pa.Table, spec: StreamSpec) -> Chunk:
    """Make a chunk of tokenized rows."""
    labels: list[str | None] = [None] * len(rows)
    if spec.label_column is not None:
        values = rows[KEPT + spec.label_column].to_pylist()
        labels = [None if value is None else str(value) for value in values]
    logits = _logits(rows, len(spec.classes)) if KEPT + LOGITS in rows.column_names else None
    return Chunk(
        rows=token_rows(rows), labels=label_numbers(labels, spec.classes), logits=logits, global_rows=len(rows)
    )


def _logits(rows: pa.Table, classes: int) -> FloatArray:
    """Take the soft labels out of rows: [B, C]."""
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
