"""Parquet, JSONL, CSV, TSV and text lines as chunks of raw values. What is wrong with a value travels as `Unusable`."""

import codecs
import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.listing import InputFile
from pipeline.errors import StorageError
from pipeline.rejects import Reject
from pipeline.storage.base import Entry, buffered
from pipeline.storage.locate import storage_of

CHUNK_ROWS = 1024
CHUNK_BYTES = 1 << 20
TEXT_COLUMN = "text"
"""The only column of a file of text lines."""
MAX_FIELD_BYTES = 256 << 20
"""A CSV field longer than this is taken for a quote that was never closed."""
MAX_DETAIL = 200


class FileFormatError(Exception):
    """The file cannot be read (further). The message says why, not which file: the caller knows."""

    def __init__(self, why: str) -> None:
        super().__init__(why.encode("utf-8", "backslashreplace").decode())  # it may quote names that are no UTF-8


@dataclass(frozen=True, slots=True)
class RawRows:
    """Neighbouring rows of a file, unchecked."""

    start: int
    columns: dict[str, pa.Array | list[object]]
    position: float
    """Share of the file read so far, in [0, 1]."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


def iter_raw_rows(file: InputFile, columns: list[str]) -> Iterator[RawRows]:
    """Read these columns of a file in chunks.

    Raises FileFormatError where its content cannot be read, StorageError where it cannot be reached or is not what was listed.
    """
    try:
        if file.format == "parquet":
            yield from _parquet(file, columns)
        else:
            yield from _lines(file, columns)
    except pa.ArrowMemoryError:  # tells of this machine and not of the file
        raise
    except (OSError, EOFError, pa.ArrowException) as error:
        raise FileFormatError(_one_line(error)) from error
    _check_unchanged(file, storage_of(file.path).stat(file.path))


def file_columns(file: InputFile) -> dict[str, pa.DataType | None]:
    """Return the columns of a file and their types (None: any JSON value); raise FileFormatError if it cannot be read."""
    try:
        if file.format == "parquet":
            with _stored(file) as disk, pq.ParquetFile(disk) as parquet:
                return dict(zip(parquet.schema_arrow.names, parquet.schema_arrow.types, strict=True))
        if file.format == "text":
            return {TEXT_COLUMN: pa.string()}
        with _stored(file) as disk, _decompress(file, disk) as stream:
            if file.format == "jsonl":
                parsed = (_parse_json(line)[0] for line in islice(stream, CHUNK_ROWS))
                return dict.fromkeys(key for value in parsed if isinstance(value, dict) for key in value)
            return dict.fromkeys(_CsvRecords(file, stream).next() or [], pa.string())
    except (OSError, EOFError, pa.ArrowException) as error:
        raise FileFormatError(_one_line(error)) from error


def is_text(kind: pa.DataType) -> bool:
    """Say whether a column of this type can hold texts."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests) or kind == pa.string_view()


def _parquet(file: InputFile, columns: list[str]) -> Iterator[RawRows]:
    with _stored(file) as disk, pq.ParquetFile(disk) as parquet:
        _check_header(parquet.schema_arrow.names, columns)
        start, total = 0, max(parquet.metadata.num_rows, 1)
        for batch in parquet.iter_batches(batch_size=CHUNK_ROWS, columns=columns):
            values: dict[str, pa.Array | list[object]] = {name: _as_bytes(batch.column(name)) for name in columns}
            yield RawRows(start, values, (start + len(batch)) / total)
            start += len(batch)


def _as_bytes(array: pa.Array) -> pa.Array:
    """View strings as bytes: Arrow does not check their UTF-8 when it reads a file, and a bad one raises only later."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if array.type == pa.string_view():
        array = array.cast(pa.large_string())
    if pa.types.is_string(array.type):
        return array.view(pa.binary())
    return array.view(pa.large_binary()) if pa.types.is_large_string(array.type) else array


def _lines(file: InputFile, columns: list[str]) -> Iterator[RawRows]:
    """Read a line-based format in chunks of CHUNK_ROWS rows, or fewer if the rows are long."""
    with _stored(file) as disk, _decompress(file, disk) as stream:
        parsed = {"jsonl": _jsonl, "text": _text}.get(file.format, _csv)(file, stream, columns)
        rows: list[list[object]] = []
        start, size, damage = 0, 0, None
        while True:
            try:
                row = next(parsed, None)
            except (OSError, EOFError, FileFormatError) as error:
                row, damage = None, FileFormatError(_one_line(error))
            if row is not None:
                rows.append(row)
                size += sum(len(value) for value in row if isinstance(value, str | bytes))
            if rows and (row is None or len(rows) == CHUNK_ROWS or size > CHUNK_BYTES):
                position = 1.0 if row is None else disk.tell() / max(file.size, 1)
                yield RawRows(start, _transpose(rows, columns), position)
                start, size, rows = start + len(rows), 0, []
            if damage is not None:  # what came before it is good, and is out
                raise damage
            if row is None:
                return


def _transpose(rows: list[list[object]], columns: list[str]) -> dict[str, pa.Array | list[object]]:
    return {name: list(values) for name, values in zip(columns, zip(*rows, strict=True), strict=True)}


def _stored(file: InputFile) -> BinaryIO:
    """Open a file that still is what was listed; raise StorageError if it is not, or cannot be reached."""
    stored = storage_of(file.path).open(file.path)
    try:
        _check_unchanged(file, stored.entry)
    except StorageError:
        stored.close()
        raise
    return buffered(stored)


def _check_unchanged(file: InputFile, now: Entry | None) -> None:
    """Raise StorageError if a file is not what was listed; looked at before its first row and after its last."""
    if now is None or (now.size, now.version) != (file.size, file.version):
        raise StorageError(f"{file.path}: changed after it was listed")


def _check_header(header: list[str], columns: list[str]) -> None:
    """Raise FileFormatError unless each of these columns is there once."""
    for name in columns:
        if header.count(name) != 1:
            problem = f"no column '{name}'" if name not in header else f"several columns '{name}'"
            raise FileFormatError(f"{problem}; it has {', '.join(header) or 'no header line'}")


def _decompress(file: InputFile, disk: BinaryIO) -> BinaryIO:
    if file.compression is None:
        return disk
    return io.BufferedReader(pa.CompressedInputStream(disk, file.compression), 1 << 20)  # type: ignore[return-value]


def _text(file: InputFile, stream: BinaryIO, columns: list[str]) -> Iterator[list[object]]:
    others = [name for name in columns if name != TEXT_COLUMN]
    if others:
        raise FileFormatError(f"a text file has the column '{TEXT_COLUMN}' only, not '{others[0]}'")
    for number, line in enumerate(stream):
        yield [(line.removeprefix(codecs.BOM_UTF8) if number == 0 else line).rstrip(b"\r\n")]


def _jsonl(file: InputFile, stream: BinaryIO, columns: list[str]) -> Iterator[list[object]]:
    for line in stream:
        if not line.strip():
            continue  # a blank line is no record, here and in every other reader of JSONL
        value, problem = _parse_json(line)
        if problem is not None:
            yield [problem] * len(columns)
        elif isinstance(value, dict):
            yield [value[name] if name in value else _missing(name) for name in columns]


def _missing(name: str) -> Reject:
    return Reject("missing_column", f"the row has no '{name}'")


def _parse_json(line: bytes) -> tuple[object, Reject | None]:
    try:
        value = json.loads(line)  # decodes UTF-8 (or UTF-16/32) strictly
    except UnicodeDecodeError as error:
        return None, Reject("invalid_utf8", _one_line(error))
    except (ValueError, RecursionError) as error:
        return None, Reject("invalid_json", _one_line(error))
    if not isinstance(value, dict):
        return None, Reject("invalid_json", f"the line holds {type(value).__name__}, not an object")
    return value, None


class _CsvRecords:
    """Records of a CSV or TSV file. In CSV a quote may span lines; in TSV, as registered with IANA, quotes mean nothing."""

    def __init__(self, file: InputFile, stream: BinaryIO) -> None:
        csv.field_size_limit(MAX_FIELD_BYTES)
        # surrogateescape carries invalid bytes through the parser, so that they spoil their own row only
        self._lines = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        self._at_end = False
        dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if file.format == "tsv" else {}
        self._reader = csv.reader(self._until_the_end(), **dialect)

    def next(self) -> list[str] | None:
        """Return the fields of the next record, none for a blank line; None at the end. Raises FileFormatError."""
        try:
            fields = next(self._reader, None)
        except csv.Error as error:
            raise FileFormatError(_one_line(error)) from error
        if fields is not None and self._at_end:  # a record ends with its line, unless a quote is open
            raise FileFormatError("a quote is opened there and never closed")
        return fields

    def _until_the_end(self) -> Iterator[str]:
        yield from self._lines
        self._at_end = True


def _csv(file: InputFile, stream: BinaryIO, columns: list[str]) -> Iterator[list[object]]:
    records = _CsvRecords(file, stream)
    header = records.next() or []
    _check_header(header, columns)
    places = [header.index(name) for name in columns]
    while (fields := records.next()) is not None:
        if not fields:
            continue  # csv's own rule: a blank line between records is no record
        if len(fields) != len(header):
            problem = Reject("wrong_field_count", f"{len(fields)} fields where the header has {len(header)}")
            yield [problem] * len(columns)
        else:
            yield [fields[place] for place in places]


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= MAX_DETAIL else text[:MAX_DETAIL] + "..."
