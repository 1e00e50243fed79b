"""Read files into shards of checked rows. Nothing is lost: a row that cannot be used becomes a reject with a reason.

A shard holds at most SHARD_ROWS consecutive rows, fewer if their texts are huge. A file that cannot be read, at all or beyond
some row, ends with a shard whose `read_error` gives the cause.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus.columns import Columns
from pipeline.corpus.formats import FileFormatError, RawRows, iter_raw_rows
from pipeline.corpus.listing import InputFile
from pipeline.rejects import Reason, Reject
from pipeline.schema import DETAIL, FILE, ID, KEPT, PAIR, REASON, REJECTS, ROW, TEXT, read_schema

SHARD_ROWS = 16_384
"""About half a minute of BERT-base work on 2 CPU cores at early-exit speed; on a GPU about a second."""
SHARD_BYTES = 64 << 20
"""Bytes of text after which a shard ends early, so that a folder of books does not become a 16 GB shard."""

UNREADABLE = Reject(Reason.NOT_TEXT, "the value cannot be read")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Consecutive rows of one file, read and checked."""

    id: str
    file: InputFile
    start: int
    rows: pa.Table
    """Rows that can be used, by `schema.read_schema`."""
    rejects: pa.Table
    """All other rows of the run, by `schema.REJECTS`."""
    read_error: str | None
    """Cause for which the file cannot be read beyond this shard; None if it can."""
    fraction: float
    """Fraction of the file that this shard is, in [0, 1], for progress."""
    last: bool
    """Whether it is the last shard of its file."""


def read_shards(file: InputFile, columns: Columns) -> Iterator[Shard]:
    """Read one file as shards, at least one, in row order; damage of the file becomes rejects and `read_error`."""
    pending: list[pa.Table] = []
    start = count = size = 0
    position, done_until, error = 0.0, 0.0, None
    schema = read_schema(columns.keep, pairs=columns.pair is not None)
    schema = pa.schema([*schema, (REASON, pa.string()), (DETAIL, pa.string())])

    def shard(last: bool) -> Shard:
        nonlocal pending, start, count, size, done_until
        until = 1.0 if last else position
        checked = pa.concat_tables(pending) if pending else schema.empty_table()
        usable = pc.is_null(checked[REASON])
        made = Shard(
            id=file.shard_id(start),
            file=file,
            start=start,
            rows=checked.filter(usable).drop_columns([REASON, DETAIL]).combine_chunks(),
            rejects=_rejects(file, checked.filter(pc.invert(usable))),
            read_error=error,
            fraction=max(until - done_until, 0.0),
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


def _rejects(file: InputFile, rows: pa.Table) -> pa.Table:
    """Make rejects, by `schema.REJECTS`, of checked rows that have a reason."""
    files = pa.array([file.path] * len(rows), pa.string())
    return rows.select([ID, ROW, REASON, DETAIL]).append_column(FILE, files).select(REJECTS.names).cast(REJECTS)


def check_rows(file: InputFile, columns: Columns, raw: RawRows, schema: pa.Schema) -> pa.Table:
    """Convert raw values to a table by `schema`; rows that cannot be used keep their id and row number and get a reason."""
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
    """Return the text of every row, or None, and what is wrong with it, or None."""
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
        return None, Reject(Reason.NULL_TEXT, f"column '{column}' is null")
    try:
        if isinstance(value, bytes):
            value = value.decode()
        elif isinstance(value, str) and not value.isascii():
            value.encode()  # raises for a lone surrogate, as in the JSON escape \ud800
    except UnicodeDecodeError as error:
        return None, Reject(Reason.INVALID_UTF8, f"column '{column}': {error}")
    except UnicodeEncodeError:
        return None, Reject(Reason.INVALID_UTF8, f"column '{column}' holds bytes, or an escape, that is no UTF-8")
    if not isinstance(value, str):
        return None, Reject(Reason.NOT_TEXT, f"column '{column}' holds {type(value).__name__}, not text")
    if not value.strip():
        return None, Reject(Reason.EMPTY_TEXT, f"column '{column}' is empty")
    return value, None


def _typed(values: pa.Array | list[object], kept: pa.Field, problems: list[Reject | None]) -> pa.Array:
    """Convert a kept column to its type; a value that does not fit makes its row a reject."""
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
            problems[row] = problems[row] or Reject(Reason.BAD_KEPT_VALUE, f"column '{kept.name}': not {kept.type}")
    return pa.array(fitting, kept.type)


def _as_text(value: object) -> object:
    """Write numbers, booleans, lists and objects as JSON, and leave all other values as they are."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, bool | int | float | list | dict) else value


def _plain(values: pa.Array) -> list[object]:
    """Convert to Python values; one that Python cannot hold, such as a date in the year 30,000, becomes UNREADABLE."""
    try:
        return list(values.to_pylist())
    except (pa.ArrowException, ValueError, OverflowError):
        return [_plain(values.slice(row, 1))[0] for row in range(len(values))] if len(values) > 1 else [UNREADABLE]


def _ids(values: pa.Array | list[object], defaults: list[str]) -> list[str]:
    """Return ids as strings; a row whose id is null, unreadable or nested is named after its file and number."""
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
