"""Files of every format as sections of raw values: opened, decoded, and checked to be still those of the listing.

A file is read in sections, which do not depend on each other; one that cannot be read any further raises FileFormatError after
all rows before that point. A file that has changed meanwhile is not taken for a damaged one: that is a StorageError.
"""

import contextlib
import io
from collections.abc import Iterator
from itertools import accumulate
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.decoders import int96, raw
from pipeline.corpus.decoders.delimited import delimited_rows, read_header
from pipeline.corpus.decoders.fields import Path, fields_in, find_field, paths_of
from pipeline.corpus.decoders.ipc.rows import arrow_fields, arrow_rows
from pipeline.corpus.decoders.jsonl import jsonl_columns, jsonl_rows
from pipeline.corpus.decoders.lines import Lines
from pipeline.corpus.decoders.parquet import parquet_rows
from pipeline.corpus.decoders.plain import plain_type
from pipeline.corpus.decoders.raw import DAMAGE, FileFormatError, RawRows, Section
from pipeline.corpus.decoders.text import TEXT_COLUMN, text_rows
from pipeline.corpus.listing import InputFile
from pipeline.errors import StorageError
from pipeline.storage.base import LOCAL_BUFFER_BYTES, REMOTE_BUFFER_BYTES, Entry, StoredFile, buffered, is_remote
from pipeline.storage.locate import storage_of

SECTION_ROWS = 16_384
"""Rows of a section of a Parquet file, at least: row groups are put together up to this many."""


def iter_sections(
    file: InputFile, columns: list[str], wanted: range | None = None, fetched: StoredFile | None = None
) -> Iterator[Section]:
    """Open a file and yield its sections, or the wanted ones by number; each is to be read before the next is asked for.

    `fetched` is the file if it has been fetched already. Raises FileFormatError if its content makes no sense, StorageError if
    it cannot be reached or has changed since the listing.
    """
    with _reading(file), _open_listed(file, fetched) as stored:
        if file.format == "parquet":
            yield from _parquet_sections(file, stored, columns, wanted)
        else:
            arrow = file.format == "arrow"
            rows = arrow_rows(stored, file.size, columns) if arrow else _line_rows(file, stored, columns)
            yield Section(0, None, 0.0, True, _checked(file, rows))


def section_starts(file: InputFile) -> list[int]:
    """Return the first row of each section of a Parquet file; raise as `iter_sections` does."""
    with _reading(file), _open_listed(file) as stored, _open_parquet(file, stored) as parquet:
        rows = [parquet.metadata.row_group(group).num_rows for group in range(parquet.metadata.num_row_groups)]
        starts = list(accumulate(rows, initial=0))
        return [starts[groups.start] for groups in section_groups(parquet.metadata)]


def section_groups(metadata: pq.FileMetaData) -> list[range]:
    """Put the row groups of a Parquet file together to sections of SECTION_ROWS rows or more; the last may have fewer.

    That depends on nothing but the file: the same on every machine and every run.
    """
    sections, first, rows = [], 0, 0
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        if rows >= SECTION_ROWS:
            sections.append(range(first, group + 1))
            first, rows = group + 1, 0
    if rows or not sections:
        sections.append(range(first, metadata.num_row_groups))
    return sections


def file_columns(file: InputFile) -> dict[str, pa.DataType | None]:
    """Return the columns of a file and their types (None: any JSON value); raise FileFormatError if it cannot be read."""
    return {path[0]: kind for path, kind in file_fields(file, []).items()}


def file_fields(file: InputFile, names: list[str]) -> dict[Path, pa.DataType | None]:
    """Return the columns of a file with their types, and the fields of structs that these names lead into.

    The type of what may be any JSON value is None. Raises FileFormatError if the file cannot be read.
    """
    if file.format == "text" and file.problem is None:
        return {(TEXT_COLUMN,): pa.string()}
    with _reading(file), _open_listed(file) as stored:
        if file.format == "parquet":
            with _open_parquet(file, stored) as parquet:
                return fields_in(parquet.schema_arrow, names)
        if file.format == "arrow":
            return arrow_fields(stored, file.size, names)
        lines = Lines(stored, file.compression)
        if file.format == "jsonl":
            return dict.fromkeys(jsonl_columns(lines, names, raw.CHUNK_ROWS, raw.MAX_ROW_BYTES))
        return {(name,): pa.string() for name in read_header(lines, tabs=file.format == "tsv")}


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column of this type can hold text."""
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(plain_type(kind)) for test in tests)


def is_fetched_whole(file: InputFile) -> bool:
    """Return whether a file is read by one request: one of S3 that is no larger than the buffer it is read through."""
    return is_remote(file.path) and file.size <= REMOTE_BUFFER_BYTES and file.problem is None


def fetch(file: InputFile) -> StoredFile:
    """Read a small file into memory; raise StorageError if that fails."""
    found = storage_of(file.path).read(file.path)
    if found is None:
        raise StorageError(f"{file.path}: is gone since it was listed")
    content, version = found
    return StoredFile(Entry(file.path, len(content), version), io.BytesIO(content))


@contextlib.contextmanager
def _reading(file: InputFile) -> Iterator[None]:
    """Turn what decoders raise into a FileFormatError, or a StorageError if the file has changed since it was listed."""
    try:
        yield
    except (*DAMAGE, FileFormatError) as error:
        if not is_fetched_whole(file) and file.problem is None:
            _check_unchanged(file, storage_of(file.path).stat(file.path))
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError.from_error(error) from error


def _checked(file: InputFile, chunks: Iterator[RawRows]) -> Iterator[RawRows]:
    """Yield chunks, and raise at their end, whichever it is, if the file is not what was listed any more."""
    with _reading(file):
        yield from chunks
    if not is_fetched_whole(file):
        _check_unchanged(file, storage_of(file.path).stat(file.path))


def _check_unchanged(file: InputFile, now: Entry | None) -> None:
    """Raise StorageError unless a file still has the size and version of the listing."""
    if now is None or (now.size, now.version) != (file.size, file.version):
        raise StorageError(f"{file.path}: changed after it was listed")


def _open_listed(file: InputFile, fetched: StoredFile | None = None) -> BinaryIO:
    """Open a file for buffered reading; raise StorageError if it cannot be reached or has changed since it was listed."""
    if file.problem is not None:
        raise FileFormatError(file.problem)
    stored = fetched or (fetch(file) if is_fetched_whole(file) else storage_of(file.path).open(file.path))
    try:
        _check_unchanged(file, stored.entry)
    except StorageError:
        stored.close()
        raise
    return buffered(stored)


def _open_parquet(file: InputFile, stored: BinaryIO) -> pq.ParquetFile:
    """Open a Parquet file; its columns are read by pieces, and not each of them as a whole."""
    size = REMOTE_BUFFER_BYTES if is_remote(file.path) else LOCAL_BUFFER_BYTES
    return pq.ParquetFile(stored, buffer_size=size, pre_buffer=False, coerce_int96_timestamp_unit=int96.UNIT)


def _parquet_sections(file: InputFile, stored: BinaryIO, columns: list[str], wanted: range | None) -> Iterator[Section]:
    with _open_parquet(file, stored) as parquet:
        fields = fields_in(parquet.schema_arrow, columns)
        absent = [name for name in columns if file.may_lack_columns and find_field(fields, name) is None]
        present = [name for name in columns if name not in absent]
        paths_of(parquet.schema_arrow, present)
        metadata, sections, start = parquet.metadata, section_groups(parquet.metadata), 0
        for number, groups in enumerate(sections):
            end = start + sum(metadata.row_group(group).num_rows for group in groups)
            if wanted is None or number in wanted:
                rows = parquet_rows(parquet, stored, groups, present, start)
                rows = rows if present else _no_columns(start, end, metadata.num_rows)
                chunks = _checked(file, _with_nulls(rows, absent))
                yield Section(start, end, start / max(metadata.num_rows, 1), number == len(sections) - 1, chunks)
            start = end


def _no_columns(start: int, end: int, total: int) -> Iterator[RawRows]:
    """Yield rows of a file that has none of the columns."""
    for first in range(start, end, raw.CHUNK_ROWS):
        after = min(first + raw.CHUNK_ROWS, end)
        yield RawRows(first, {"": pa.nulls(after - first)}, after / total)


def _with_nulls(chunks: Iterator[RawRows], names: list[str]) -> Iterator[RawRows]:
    """Add columns that are null in all rows."""
    for rows in chunks:
        nulls = {name: pa.nulls(len(rows)) for name in names}
        yield RawRows(rows.start, {**rows.columns, **nulls}, rows.position)


def _line_rows(file: InputFile, stored: BinaryIO, columns: list[str]) -> Iterator[RawRows]:
    """Read a format of lines in chunks of CHUNK_ROWS rows, or fewer if the rows are long."""
    lines = Lines(stored, file.compression)
    if file.format == "jsonl":
        rows = jsonl_rows(lines, columns)
    elif file.format == "text":
        rows = text_rows(lines, columns)
    else:
        rows = delimited_rows(lines, columns, tabs=file.format == "tsv")
    start = 0
    while True:
        chunk, failure = _take_chunk(rows)
        if chunk:
            read = 1.0 if stored.closed else stored.tell() / max(file.size, 1)  # a decompressor closes it at its end
            position = read * lines.fraction_taken
            yield RawRows(start, _transpose(chunk, columns), position)
            start += len(chunk)
        if failure is not None:  # raised only now, when all rows before it have been yielded
            raise failure
        if not chunk:
            return
        del chunk  # a row of JSON may take much memory, and another one would be parsed beside it


def _take_chunk(rows: Iterator[tuple[list[object], int]]) -> tuple[list[list[object]], BaseException | None]:
    """Take the rows of a chunk, none at the end, and what was raised after them."""
    chunk: list[list[object]] = []
    size = 0
    try:
        while len(chunk) < raw.CHUNK_ROWS and size <= raw.CHUNK_BYTES and (row := next(rows, None)) is not None:
            chunk.append(row[0])
            size += row[1]
    except (*DAMAGE, FileFormatError) as error:
        return chunk, error
    return chunk, None


def _transpose(rows: list[list[object]], columns: list[str]) -> dict[str, pa.Array | list[object]]:
    return {name: list(values) for name, values in zip(columns, zip(*rows, strict=True), strict=True)}
