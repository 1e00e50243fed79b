"""Read files into shards of checked rows. Nothing is lost: what cannot be used leaves with a reason.

A shard is a run of at most SHARD_ROWS rows, or fewer when the texts are huge. A bad row becomes a reject of its own; a file
that cannot be read, from its start or from some row on, ends its last shard with one reject that names the file.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from pipeline.corpus.columns import Columns
from pipeline.corpus.formats import FileFormatError, RawRows, iter_raw_rows
from pipeline.corpus.listing import InputFile
from pipeline.rejects import Reject
from pipeline.schema import DETAIL, ID, KEPT, PAIR, REASON, ROW, TEXT, read_schema

SHARD_ROWS = 16_384
"""About half a minute of BERT-base work on 2 CPU cores at early-exit speed; on a GPU about a second."""
SHARD_BYTES = 64 << 20
"""Texts of this many bytes end a shard early, so that a folder of books does not become a 16 GB shard."""

UNREADABLE = Reject("not_text", "the value cannot be read")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A run of rows of one file, read and checked."""

    id: str
    file: InputFile
    start: int
    rows: pa.Table
    """By `schema.read_schema`; rejects among them."""
    read_error: str | None
    """Why reading stopped here for good, if it did."""
    share: float
    """Share of the file's bytes read since the shard before, for progress."""
    last: bool
    """No shard of this file comes after it."""


def read_shards(file: InputFile, columns: Columns) -> Iterator[Shard]:
    """Read one file as shards, at least one, in row order. Never raises for what is wrong with the file."""
    pending: list[pa.Table] = []
    start = count = size = 0
    position, done_until, error = 0.0, 0.0, None
    schema = read_schema(columns.keep, pairs=columns.pair is not None)

    def shard(last: bool) -> Shard:
        nonlocal pending, start, count, size, done_until
        until = 1.0 if last else position
        rows = pa.concat_tables(pending) if pending else schema.empty_table()
        made = Shard(
            id=file.shard_id(start),
            file=file,
            start=start,
            rows=rows.combine_chunks(),
            read_error=error,
            share=max(until - done_until, 0.0),
            last=last,
        )
        pending, start, count, size, done_until = [], start + count, 0, 0, until
        return made

    raw_rows = iter_raw_rows(file, columns.names)
    while True:
        try:
            raw = next(raw_rows, None)
        except FileFormatError as problem:
            error, raw = str(problem), None
        if raw is None:
            yield shard(last=True)
            return
        table = check_rows(file, columns, raw, schema)
        while count + len(table) > SHARD_ROWS:
            pending.append(table.slice(0, SHARD_ROWS - count))
            table = table.slice(SHARD_ROWS - count)
            count = SHARD_ROWS
            yield shard(last=False)
        if size and size + table.nbytes > SHARD_BYTES:
            yield shard(last=False)
        if len(table):
            pending.append(table)
        count, size, position = count + len(table), size + table.nbytes, raw.position


def check_rows(file: InputFile, columns: Columns, raw: RawRows, schema: pa.Schema) -> pa.Table:
    """Turn raw values into a table by `schema`; rows that cannot be used keep id and row and get a reason."""
    count = len(raw)
    texts, problems = _check_texts(raw.columns[columns.text], columns.text)
    arrays: dict[str, object] = {ROW: pa.array(range(raw.start, raw.start + count), pa.int64())}
    if columns.pair is not None:
        arrays[PAIR], pair_problems = _check_texts(raw.columns[columns.pair], columns.pair)
        problems = [first or second for first, second in zip(problems, pair_problems, strict=True)]
    for kept in columns.keep:
        arrays[KEPT + kept.name] = _typed(raw.columns[kept.name], kept, problems)
    arrays[TEXT] = texts
    default_ids = [f"{file.name}:{row}" for row in range(raw.start, raw.start + count)]
    given = raw.columns[columns.id] if columns.id is not None else None
    arrays[ID] = default_ids if given is None else _ids(given, default_ids)
    arrays[REASON] = [problem and problem.reason for problem in problems]
    arrays[DETAIL] = [problem and problem.detail for problem in problems]
    return pa.table([pa.array(arrays[f.name], f.type) for f in schema], schema=schema)


def _check_texts(values: pa.Array | list[object], column: str) -> tuple[list[str | None], list[Reject | None]]:
    """Return usable texts (None where there is none) and what is wrong with the others."""
    texts: list[str | None] = []
    problems: list[Reject | None] = []
    for value in _plain(values) if isinstance(values, pa.Array) else values:
        text, problem = check_text(value, column)
        texts.append(text)
        problems.append(problem)
    return texts, problems


def check_text(value: object, column: str) -> tuple[str | None, Reject | None]:
    """Return a value as text, or what keeps it from being one."""
    if isinstance(value, Reject):
        return None, value
    if value is None:
        return None, Reject("null_text", f"column '{column}' is null")
    try:
        if isinstance(value, bytes):
            value = value.decode()
        elif isinstance(value, str) and not value.isascii():
            value.encode()  # a lone surrogate, as in the JSON escape \ud800, is no text either
    except UnicodeDecodeError as error:
        return None, Reject("invalid_utf8", f"column '{column}': {error}")
    except UnicodeEncodeError:
        return None, Reject("invalid_utf8", f"column '{column}' holds bytes, or an escape, that is no UTF-8")
    if not isinstance(value, str):
        return None, Reject("not_text", f"column '{column}' holds {type(value).__name__}, not text")
    if not value.strip():
        return None, Reject("empty_text", f"column '{column}' is empty")
    return value, None


def _typed(values: pa.Array | list[object], kept: pa.Field, problems: list[Reject | None]) -> pa.Array:
    """Give a kept column its type; a value that does not fit makes its row a reject."""
    if isinstance(values, pa.Array):
        try:
            return values.cast(kept.type)
        except pa.ArrowException:
            values = _plain(values)
    fitting: list[object] = []
    for row, value in enumerate(values):
        try:
            usable = None if isinstance(value, Reject) and value is not UNREADABLE else value
            fitting.append(pa.scalar(_as_text(usable) if pa.types.is_string(kept.type) else usable, kept.type).as_py())
        except (pa.ArrowException, UnicodeError, TypeError, ValueError, OverflowError):
            fitting.append(None)
            problems[row] = problems[row] or Reject("bad_kept_value", f"column '{kept.name}': not {kept.type}")
    return pa.array(fitting, kept.type)


def _as_text(value: object) -> object:
    """Write what JSON has beside strings as JSON."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, bool | int | float | list | dict) else value


def _plain(values: pa.Array) -> list[object]:
    """Return values as Python's; UNREADABLE for those that Python has no value for, such as a date in the year 30,000."""
    try:
        return list(values.to_pylist())
    except (pa.ArrowException, ValueError, OverflowError):
        return [_plain(values.slice(row, 1))[0] for row in range(len(values))] if len(values) > 1 else [UNREADABLE]


def _ids(values: pa.Array | list[object], defaults: list[str]) -> list[str]:
    """Ids as strings; a row whose id is null, unreadable or nested goes by its place in the file."""
    given = _plain(values) if isinstance(values, pa.Array) else values
    return [_id(value, default) for value, default in zip(given, defaults, strict=True)]


def _id(value: object, default: str) -> str:
    try:
        text = value.decode() if isinstance(value, bytes) else value
        if isinstance(text, str):
            text.encode()
            return text
    except UnicodeError:
        return default
    return default if value is None or isinstance(value, Reject | list | dict | bool) else str(value)
