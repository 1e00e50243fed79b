"""Parquet: row groups in batches that are bounded in bytes, whatever the rows, their encoding and the size of their pages.

A file of some hundred bytes may stand for gigabytes: a page is unpacked as a whole, and a value that is stored once, in the
dictionary of its column or as the prefix of others, may be that of every row. So the rows of a batch are as many as fit into
BATCH_BYTES at the worst that metadata and page headers allow. A list alone may be longer than they tell.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.decoders import raw
from pipeline.corpus.decoders.batches import chunks_of
from pipeline.corpus.decoders.fields import Path, column_at, paths_of
from pipeline.corpus.decoders.int96 import has_digits_below, int96_columns
from pipeline.corpus.decoders.pages import Page, read_pages
from pipeline.corpus.decoders.raw import FileFormatError, RawRows

BATCH_BYTES = 64 << 20
"""Most bytes of a batch, but for a single row that is longer, and for rows of lists of very different lengths."""
MAX_PAGE_BYTES = 1 << 31
"""Most bytes of the largest pages of all columns that are read, unpacked: Arrow's own limit for one page, since Arrow writes a
page of a thousand texts however long these are. A dictionary takes twice its bytes while it is read."""

WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
"""Bytes of a value by its physical type; those of FIXED_LEN_BYTE_ARRAY are in the schema."""
DICTIONARIES = {"PLAIN_DICTIONARY", "RLE_DICTIONARY"}
"""Encodings that store a value once and number it."""
PREFIXES = "DELTA_BYTE_ARRAY"
"""The encoding that stores of a value only what the one before it does not begin with."""


def parquet_rows(
    parquet: pq.ParquetFile, stored: BinaryIO, groups: range, columns: list[str], start: int
) -> Iterator[RawRows]:
    """Yield the rows of neighbouring row groups, which begin with row `start` of the file; raise what the decoder raises."""
    paths = dict(zip(columns, paths_of(parquet.schema_arrow, columns), strict=True))
    metadata, times = parquet.metadata, int96_columns(parquet, columns)
    # Arrow cannot put together dictionaries inside of lists or structs, and batches with dictionaries end with a row group.
    fields = [parquet.schema_arrow.field(path[0]) for path in paths.values()]
    by_group = bool(times) or any(map(_has_inner_dictionary, fields))
    for run, rows in _runs(parquet, stored, groups, columns, by_group=by_group):
        end = start + sum(metadata.row_group(group).num_rows for group in run)
        batches = parquet.iter_batches(rows, row_groups=[*run], columns=columns, use_threads=False)
        cuts = has_digits_below(stored, {name: paths[name] for name in times}, [*run], rows) if times else repeat({})
        for batch, cut in zip(batches, cuts, strict=False):
            yield from chunks_of(_flat(batch, paths), columns, start, lambda end: end / max(metadata.num_rows, 1), cut)
            start += len(batch)
        if start != end:
            raise FileFormatError(f"row {start} is missing, of {end} rows up to the end of its row group")


def _flat(batch: pa.RecordBatch, paths: Mapping[str, Path]) -> pa.RecordBatch:
    """Return the columns and fields of a batch that are asked for, each as a column of the name that it is asked for by."""
    return pa.RecordBatch.from_arrays([column_at(batch, path) for path in paths.values()], names=[*paths])


def _has_inner_dictionary(field: pa.Field) -> bool:
    """Return whether a column has dictionaries in its lists, structs or maps."""
    inner = [field.type.field(number) for number in range(field.type.num_fields)]
    return any(pa.types.is_dictionary(each.type) or _has_inner_dictionary(each) for each in inner)


def _runs(
    parquet: pq.ParquetFile, stored: BinaryIO, groups: range, columns: list[str], *, by_group: bool
) -> Iterator[tuple[range, int]]:
    """Put small row groups together, since each reading has its cost; yield those to read as one, and the rows of a batch."""
    numbers = [
        number
        for number, path in enumerate(_leaf_paths(parquet))
        if any(path == c or path.startswith(f"{c}.") for c in columns)
    ]
    first, size = groups.start, 0
    for group in groups:
        rows, most = _batch_size(parquet, stored, group, numbers)
        if group > first and (by_group or size + most > BATCH_BYTES or rows < raw.CHUNK_ROWS):
            yield range(first, group), raw.CHUNK_ROWS
            first, size = group, 0
        size += most
        if rows < raw.CHUNK_ROWS:
            yield range(group, group + 1), rows
            first, size = group + 1, 0
    if first < groups.stop:
        yield range(first, groups.stop), raw.CHUNK_ROWS


def _leaf_paths(parquet: pq.ParquetFile) -> list[str]:
    return [parquet.schema.column(number).path for number in range(len(parquet.schema))]


def _batch_size(parquet: pq.ParquetFile, stored: BinaryIO, group: int, numbers: Sequence[int]) -> tuple[int, int]:
    """Return the rows of a batch of a row group, and its bytes at worst; raise FileFormatError if its pages are too large."""
    found = parquet.metadata.row_group(group)
    made = [_Column.of(parquet.schema.column(leaf), found.column(leaf), found.num_rows, stored) for leaf in numbers]
    pages = sum(column.largest_page for column in made)
    if pages > MAX_PAGE_BYTES:
        raise FileFormatError(
            f"row group {group} has pages of {pages:,} bytes to unpack at once; {MAX_PAGE_BYTES:,} are the most"
        )
    rows = raw.CHUNK_ROWS
    while rows > 1 and sum(column.most_bytes(rows) for column in made) > BATCH_BYTES:
        rows //= 2
    return rows, sum(column.most_bytes(rows) for column in made)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    """What is known of a column of a row group before its pages are unpacked."""

    width: int | None
    """Bytes of each value; None for strings and the like."""
    values_per_row: float
    """One, but for lists: their average."""
    size: int
    """Bytes of all its pages, unpacked."""
    pages: tuple[Page, ...]
    """Its pages but for the dictionary, if they were looked at."""
    largest_page: int
    """Bytes of the largest page, or of all of them if they were not looked at."""
    repeated: int
    """Most bytes of a value that is stored once and may be that of many rows; 0 if there is none."""

    @classmethod
    def of(cls, column: pq.ColumnSchema, chunk: pq.ColumnChunkMetaData, rows: int, stored: BinaryIO) -> "_Column":
        """Describe a column of a row group of so many rows; its pages are looked at where they may be large."""
        width = column.length if column.physical_type == "FIXED_LEN_BYTE_ARRAY" else WIDTHS.get(column.physical_type)
        size, encodings = chunk.total_uncompressed_size, {*chunk.encodings}
        has_dictionary, has_prefixes = bool(encodings & DICTIONARIES), PREFIXES in encodings
        pages: list[Page] = []
        if size > BATCH_BYTES or (width is None and has_prefixes):
            pages = [*read_pages(stored, chunk)]
        elif width is None and has_dictionary and size > BATCH_BYTES // raw.CHUNK_ROWS:
            pages = [*islice(read_pages(stored, chunk), 1)]
        data = tuple(page for page in pages if not page.is_dictionary)
        largest = max((page.size for page in pages), default=size) if data else size
        dictionary = max((page.size for page in pages if page.is_dictionary), default=largest)
        return cls(
            width=width,
            values_per_row=chunk.num_values / max(rows, 1) if column.max_repetition_level else 1,
            size=size,
            pages=data,
            largest_page=largest,
            repeated=max(dictionary if has_dictionary else 0, largest if has_prefixes else 0),
        )

    def most_bytes(self, rows: int) -> int:
        """Return the bytes that so many neighbouring rows may have when they are decoded."""
        values = max(int(rows * self.values_per_row), 1)
        if self.width is not None:
            return values * self.width
        return self._plain_bytes(values) + values * self.repeated

    def _plain_bytes(self, values: int) -> int:
        """Return the bytes of the largest neighbouring pages in which so many values may lie that are stored as they are."""
        if not self.pages:
            return self.size
        ends = np.cumsum([page.values for page in self.pages])
        totals = np.append(0, np.cumsum([page.size for page in self.pages]))
        # At worst the first value is the last one of its page.
        last = np.searchsorted(ends, ends - 1 + values).clip(max=len(ends) - 1)
        return int((totals[last + 1] - totals[:-1]).max())
