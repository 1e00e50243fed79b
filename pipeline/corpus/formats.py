"""Parquet, JSONL, CSV, TSV and text files as chunks of raw values, unchecked.

A value that cannot be decoded is a `Reject` in its place, so that it costs its own row only. A file is read in sections, which
do not depend on each other; one that cannot be read any further raises FileFormatError after all rows before that point.
"""

import codecs
import contextlib
import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any, BinaryIO, Self

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.listing import InputFile
from pipeline.errors import StorageError, one_line
from pipeline.rejects import MAX_DETAIL_CHARACTERS, Reason, Reject
from pipeline.storage.base import REMOTE_BUFFER_BYTES, Entry, StoredFile, buffered, is_remote
from pipeline.storage.locate import storage_of

CHUNK_ROWS = 1024
"""Most rows of a chunk of raw values."""
CHUNK_BYTES = 1 << 20
"""Bytes of values after which a chunk ends early."""
DECOMPRESSED_BYTES = 1 << 20
"""Bytes to decompress at once."""
SECTION_ROWS = 16_384
"""Rows of a section of a Parquet file, at least: row groups are put together up to this many."""
TEXT_COLUMN = "text"
"""Name of the only column of a text file."""
MAX_FIELD_BYTES = 256 << 20
"""Longest CSV field; a longer one is taken for a quote that was never closed."""

csv.field_size_limit(MAX_FIELD_BYTES)  # the csv module has one limit for the whole process, 128 KiB by default


class FileFormatError(Exception):
    """Raised when a file cannot be read, or read any further; the message gives the cause, and the caller names the file."""

    def __init__(self, cause: str) -> None:
        # The message may quote names of the file that are not valid UTF-8, and must be storable all the same.
        super().__init__(cause.encode("utf-8", "backslashreplace").decode())

    @classmethod
    def from_error(cls, error: BaseException) -> Self:
        """Take over the message of a reader's or a decoder's error."""
        return cls(one_line(error, limit=MAX_DETAIL_CHARACTERS))


@dataclass(frozen=True, slots=True)
class RawRows:
    """A chunk of consecutive rows of a file, unchecked.

    `RawRows(start=1024, columns={"text": [b"fine", Reject(...)]}, position=0.5)` holds rows 1024 and 1025.
    """

    start: int
    """Number of the first row, counted from 0."""
    columns: dict[str, pa.Array | list[object]]
    """Values of every requested column, one for each row; a `Reject` stands for one that cannot be decoded."""
    position: float
    """Fraction of the file read so far, by rows in Parquet and by stored bytes elsewhere: in [0, 1]."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


@dataclass(frozen=True, slots=True)
class Section:
    """A stretch of a file that can be read without what lies before it: row groups of a Parquet file, else the whole file."""

    start: int
    """Number of its first row, counted from 0 in the file."""
    end: int | None
    """Number of the row after its last one; None where only reading tells."""
    position: float
    """Fraction of the file that lies before it, in [0, 1]."""
    last: bool
    """Whether the file ends with it."""
    chunks: Iterator[RawRows]
    """Its rows, in order. Raises FileFormatError where they cannot be read any further, and StorageError if the file cannot be
    reached or has changed since the listing."""


def iter_sections(file: InputFile, columns: list[str], wanted: range | None = None) -> Iterator[Section]:
    """Open a file and yield its sections, or the wanted ones by number; each is to be read before the next is asked for.

    Raises FileFormatError if its content makes no sense, StorageError if it cannot be reached or has changed since the listing.
    """
    with _format_errors():
        if file.format == "parquet":
            yield from _parquet_sections(file, columns, wanted)
        else:
            yield Section(0, None, 0.0, True, _checked(file, _line_rows(file, columns)))


def section_starts(file: InputFile) -> list[int]:
    """Return the first row of each section of a Parquet file; raise as `iter_sections` does."""
    with _format_errors(), _open_listed(file) as raw, pq.ParquetFile(raw) as parquet:
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


@contextlib.contextmanager
def _format_errors() -> Iterator[None]:
    """Turn what decoders raise into a FileFormatError."""
    try:
        yield
    except pa.ArrowMemoryError:  # this machine is at fault, not the file
        raise
    except (OSError, EOFError, pa.ArrowException) as error:
        raise FileFormatError.from_error(error) from error


def _checked(file: InputFile, chunks: Iterator[RawRows]) -> Iterator[RawRows]:
    """Yield chunks, and raise at their end if the file is not what was listed any more."""
    with _format_errors():
        yield from chunks
    if not is_fetched_whole(file):
        _check_unchanged(file, storage_of(file.path).stat(file.path))


def file_columns(file: InputFile) -> dict[str, pa.DataType | None]:
    """Return the columns of a file and their types (None: any JSON value); raise FileFormatError if it cannot be read."""
    with _format_errors():
        if file.format == "parquet":
            with _open_listed(file) as raw, pq.ParquetFile(raw) as parquet:
                return dict(zip(parquet.schema_arrow.names, parquet.schema_arrow.types, strict=True))
        if file.format == "text":
            return {TEXT_COLUMN: pa.string()}
        with _open_listed(file) as raw, _decompress(file, raw) as stream:
            if file.format == "jsonl":
                parsed = map(_parse_json, islice(stream, CHUNK_ROWS))
                return dict.fromkeys(key for value in parsed if isinstance(value, dict) for key in value)
            return dict.fromkeys(_CsvRecords(file, stream).next() or [], pa.string())


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column of this type can hold text."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests) or kind == pa.string_view()


def _parquet_sections(file: InputFile, columns: list[str], wanted: range | None) -> Iterator[Section]:
    with _open_listed(file) as raw, pq.ParquetFile(raw) as parquet:
        _check_header(parquet.schema_arrow.names, columns)
        metadata, sections, start = parquet.metadata, section_groups(parquet.metadata), 0
        for number, groups in enumerate(sections):
            end = start + sum(metadata.row_group(group).num_rows for group in groups)
            if wanted is None or number in wanted:
                chunks = _checked(file, _parquet_rows(parquet, groups, columns, start))
                yield Section(start, end, start / max(metadata.num_rows, 1), number == len(sections) - 1, chunks)
            start = end


def _parquet_rows(parquet: pq.ParquetFile, groups: range, columns: list[str], start: int) -> Iterator[RawRows]:
    total = max(parquet.metadata.num_rows, 1)
    for batch in parquet.iter_batches(CHUNK_ROWS, row_groups=list(groups), columns=columns):
        values: dict[str, pa.Array | list[object]] = {name: _as_bytes(batch.column(name)) for name in columns}
        yield RawRows(start, values, (start + len(batch)) / total)
        start += len(batch)


def _as_bytes(array: pa.Array) -> pa.Array:
    """View strings as bytes: Arrow does not validate UTF-8 when it reads a file, and raises only when a value is converted."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if array.type == pa.string_view():
        array = array.cast(pa.large_string())
    if pa.types.is_string(array.type):
        return array.view(pa.binary())
    return array.view(pa.large_binary()) if pa.types.is_large_string(array.type) else array


def _line_rows(file: InputFile, columns: list[str]) -> Iterator[RawRows]:
    """Read a line-based format in chunks of CHUNK_ROWS rows, or fewer if the rows are long."""
    with _open_listed(file) as raw, _decompress(file, raw) as stream:
        records = {"jsonl": _jsonl_records, "text": _text_records}.get(file.format, _csv_records)(file, stream, columns)
        rows: list[list[object]] = []
        start, size, failure = 0, 0, None
        while True:
            try:
                row = next(records, None)
            except (OSError, EOFError, FileFormatError) as error:
                row, failure = None, FileFormatError.from_error(error)
            if row is not None:
                rows.append(row)
                size += sum(len(value) for value in row if isinstance(value, str | bytes))
            if rows and (row is None or len(rows) == CHUNK_ROWS or size > CHUNK_BYTES):
                position = 1.0 if row is None else raw.tell() / max(file.size, 1)
                yield RawRows(start, _transpose(rows, columns), position)
                start, size, rows = start + len(rows), 0, []
            if failure is not None:  # raised only now, when all rows before it have been yielded
                raise failure
            if row is None:
                return


def _transpose(rows: list[list[object]], columns: list[str]) -> dict[str, pa.Array | list[object]]:
    return {name: list(values) for name, values in zip(columns, zip(*rows, strict=True), strict=True)}


def _open_listed(file: InputFile) -> BinaryIO:
    """Open a file for buffered reading; raise StorageError if it cannot be reached or has changed since it was listed."""
    stored = _fetch(file) if is_fetched_whole(file) else storage_of(file.path).open(file.path)
    try:
        _check_unchanged(file, stored.entry)
    except StorageError:
        stored.close()
        raise
    return buffered(stored)


def is_fetched_whole(file: InputFile) -> bool:
    """Return whether a file is read by one request: one of S3 that is no larger than the buffer it is read through."""
    return is_remote(file.path) and file.size <= REMOTE_BUFFER_BYTES


def _fetch(file: InputFile) -> StoredFile:
    found = storage_of(file.path).read(file.path)
    if found is None:
        raise StorageError(f"{file.path}: is gone since it was listed")
    content, version = found
    return StoredFile(Entry(file.path, len(content), version), io.BytesIO(content))


def _check_unchanged(file: InputFile, now: Entry | None) -> None:
    """Raise StorageError unless a file still has the size and version of the listing; checked before and after reading."""
    if now is None or (now.size, now.version) != (file.size, file.version):
        raise StorageError(f"{file.path}: changed after it was listed")


def _check_header(header: list[str], columns: list[str]) -> None:
    """Raise FileFormatError unless the header holds each of these columns exactly once."""
    for name in columns:
        if header.count(name) != 1:
            problem = f"no column '{name}'" if name not in header else f"several columns '{name}'"
            raise FileFormatError(f"{problem}; it has {', '.join(header) or 'no header line'}")


def _decompress(file: InputFile, raw: BinaryIO) -> BinaryIO:
    if file.compression is None:
        return raw
    return io.BufferedReader(pa.CompressedInputStream(raw, file.compression), DECOMPRESSED_BYTES)  # type: ignore[return-value]


def _text_records(file: InputFile, stream: BinaryIO, columns: list[str]) -> Iterator[list[object]]:
    others = [name for name in columns if name != TEXT_COLUMN]
    if others:
        raise FileFormatError(f"a text file has the column '{TEXT_COLUMN}' only, not '{others[0]}'")
    for number, line in enumerate(stream):
        yield [(line.removeprefix(codecs.BOM_UTF8) if number == 0 else line).rstrip(b"\r\n")]


def _jsonl_records(file: InputFile, stream: BinaryIO, columns: list[str]) -> Iterator[list[object]]:
    for line in stream:
        if not line.strip():
            continue  # not a record, here and in every other reader of JSONL
        value = _parse_json(line)
        if isinstance(value, Reject):
            yield [value] * len(columns)
        else:
            yield [value[name] if name in value else _missing(name) for name in columns]


def _missing(name: str) -> Reject:
    return Reject(Reason.MISSING_COLUMN, f"the row has no '{name}'")


def _parse_json(line: bytes) -> dict[str, object] | Reject:
    try:
        value = json.loads(line)  # decodes UTF-8 (or UTF-16/32) strictly
    except UnicodeDecodeError as error:
        return Reject(Reason.INVALID_UTF8, one_line(error, limit=MAX_DETAIL_CHARACTERS))
    except (ValueError, RecursionError) as error:
        return Reject(Reason.INVALID_JSON, one_line(error, limit=MAX_DETAIL_CHARACTERS))
    if not isinstance(value, dict):
        return Reject(Reason.INVALID_JSON, f"the line holds {type(value).__name__}, not an object")
    return value


class _CsvRecords:
    """Records of a CSV or TSV file. A quoted CSV field may span lines; in TSV, as registered with IANA, quotes mean nothing."""

    def __init__(self, file: InputFile, stream: BinaryIO) -> None:
        # surrogateescape carries invalid bytes through the parser, so that only their own row is rejected.
        self._lines = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        self._at_end = False
        dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if file.format == "tsv" else {}
        self._reader = csv.reader(self._lines_to_the_end(), **dialect)

    def next(self) -> list[str] | None:
        """Return the fields of the next record, an empty list for a blank line and None at the end; raise FileFormatError."""
        try:
            fields = next(self._reader, None)
        except csv.Error as error:
            raise FileFormatError.from_error(error) from error
        if fields is not None and self._at_end:  # the parser asked for more lines than there are: it is inside quotes
            raise FileFormatError("a quote is opened there and never closed")
        return fields

    def _lines_to_the_end(self) -> Iterator[str]:
        yield from self._lines
        self._at_end = True


def _csv_records(file: InputFile, stream: BinaryIO, columns: list[str]) -> Iterator[list[object]]:
    records = _CsvRecords(file, stream)
    header = records.next() or []
    _check_header(header, columns)
    indices = [header.index(name) for name in columns]
    while (fields := records.next()) is not None:
        if not fields:
            continue  # the csv module gives no fields for a blank line, which is not a record
        if len(fields) != len(header):
            problem = Reject(Reason.WRONG_FIELD_COUNT, f"{len(fields)} fields where the header has {len(header)}")
            yield [problem] * len(columns)
        else:
            yield [fields[index] for index in indices]
