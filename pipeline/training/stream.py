"""A stream of training rows from files of any size: read and tokenized on Ray Data while the model learns.

Chunks are the shards of the main chain. Files come in a seeded order, the shards of a file in theirs, and nothing is kept, so
memory does not grow with the corpus. With many workers each of them reads everything and keeps every world_size-th row: all of
them take the same number of steps, and every row is seen by exactly one.
"""

import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ray.data import Dataset

from pipeline.bulk.bundle import Bundle
from pipeline.bulk.codec import token_rows
from pipeline.bulk.stages import blocks_of, tokenize_rows, tokenized_bundles
from pipeline.corpus.chunks import Chunk
from pipeline.corpus.columns import Columns
from pipeline.corpus.labelled import label_numbers
from pipeline.corpus.listing import Corpus
from pipeline.corpus.reader import read_shards
from pipeline.corpus.tokenize import Tokenizer, TokenizerSpec
from pipeline.errors import InputError, UserError, printable
from pipeline.output.receipts import Receipt
from pipeline.rows import FloatArray
from pipeline.schema import KEPT, LOGITS, ROW

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
    label_column: str | None = None
    limit: int | None = None
    """Rows to read in an epoch at most."""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Key:
    """The key of a chunk: `corpus/a.parquet:16384:9000` is 9,000 rows from row 16,384 of that file on."""

    path: str
    start: int
    rows: int

    @classmethod
    def parse(cls, key: str) -> Self:
        path, start, rows = key.rsplit(":", 2)
        return cls(path=path, start=int(start), rows=int(rows))

    def __str__(self) -> str:
        return f"{self.path}:{self.start}:{self.rows}"


class StreamSource:
    """Chunks of a stream; each of `world_size` workers takes its own rows of every chunk."""

    def __init__(self, spec: StreamSpec, rank: int = 0, world_size: int = 1, leave_out: Collection[str] = ()) -> None:
        """Read the stream of `spec`, without the dev rows of the files named in `leave_out`, as `held_out` returned them."""
        self.spec, self.rank, self.world_size, self.leave_out = spec, rank, world_size, leave_out

    def chunks(self, epoch: int, done: Collection[str]) -> Iterator[Chunk]:
        """Yield this worker's rows of every chunk, whose key is `path:start:rows`, until the files or the limit end."""
        seen = [_Key.parse(key) for key in done]
        left = None if self.spec.limit is None else self.spec.limit - sum(key.rows for key in seen)
        if left is not None and left <= 0:
            return
        for receipt, rows in self._shards(epoch, seen):
            self._warn(receipt)
            global_rows = receipt.rows_in if left is None else min(receipt.rows_in, left)
            yield self._chunk(receipt, rows, global_rows)
            if left is not None:
                left -= global_rows
                if left <= 0:
                    return

    def _shards(self, epoch: int, seen: list[_Key]) -> Iterator[tuple[Receipt, pa.Table]]:
        """Yield the shards that are left of an epoch, each as its receipt and this worker's rows of it."""
        for table in blocks_of(self._chain(epoch, seen)):
            bundle = Bundle.from_arrow(table)
            for receipt, start in zip(bundle.receipts, bundle.bounds.tolist(), strict=False):
                yield receipt, bundle.rows.slice(start, receipt.rows_out)

    def _chain(self, epoch: int, seen: list[_Key]) -> Dataset:
        """Build the chain that reads and tokenizes what is left of an epoch, in the order of its seed."""
        files = self.spec.corpus.files
        order = np.random.default_rng([self.spec.seed, epoch]).permutation(len(files))
        starts: dict[str, set[int]] = {}
        for key in seen:
            starts.setdefault(key.path, set()).add(key.start)
        chain = tokenized_bundles(
            [files[number] for number in order],
            starts,
            self.spec.columns,
            self.spec.tokenizer,
            part=(self.rank, self.world_size),
        )
        chain.context.execution_options.preserve_order = True  # or a run would not repeat with its seed
        return chain

    def _chunk(self, receipt: Receipt, rows: pa.Table, global_rows: int) -> Chunk:
        """Make the chunk of a shard, of which the first `global_rows` rows (over all workers) are used."""
        spec = self.spec
        fraction = receipt.input_bytes / max(spec.corpus.size, 1)
        if spec.limit is not None:  # the epoch ends with the files or at the limit, whichever comes first
            fraction = max(fraction, global_rows / spec.limit)
        rows = rows.filter(pc.less(rows[ROW], receipt.start + global_rows))
        if receipt.file in self.leave_out:
            rows = rows.filter(pc.invert(pa.array(_is_held_out(rows))))
        key = _Key(path=receipt.file, start=receipt.start, rows=global_rows)
        return replace(_chunk_of(rows, spec), key=str(key), fraction=fraction, global_rows=global_rows)

    def _warn(self, receipt: Receipt) -> None:
        """Name a file that cannot be read to its end."""
        if receipt.read_error is not None and self.rank == 0:
            print(printable(f"{receipt.file}: {receipt.read_error}; the rest of it is left out"), file=sys.stderr)


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
    labels: list[str | None] = [None] * len(rows)
    if spec.label_column is not None:
        values = rows[KEPT + spec.label_column].to_pylist()
        labels = [None if value is None else str(value) for value in values]
    logits = _logits(rows, len(spec.classes)) if KEPT + LOGITS in rows.column_names else None
    return Chunk(
        rows=token_rows(rows), labels=label_numbers(labels, spec.classes), logits=logits, global_rows=len(rows)
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
