"""Read files into shards of checked rows. Nothing is lost: a row that cannot be used becomes a reject with a reason.

A shard holds at most SHARD_ROWS consecutive rows of one section of a file (`formats.iter_sections`), fewer if their texts are
huge. A section that cannot be read, at all or beyond some row, ends with a shard whose `read_error` gives the cause, and the
sections after it are read all the same.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus.columns import Columns
from pipeline.corpus.decoders.raw import FileFormatError, RawRows, Section
from pipeline.corpus.decoders.sizes import row_bytes
from pipeline.corpus.formats import iter_sections
from pipeline.corpus.kept import UNREADABLE, fit
from pipeline.corpus.listing import InputFile
from pipeline.rejects import Reason, Reject
from pipeline.rows import IntArray
from pipeline.schema import DETAIL, FILE, ID, KEPT, PAIR, REASON, REJECTS, ROW, TEXT, read_schema
from pipeline.storage.base import StoredFile

SHARD_ROWS = 16_384
"""About half a minute of BERT-base work on 2 CPU cores at early-exit speed; on a GPU about a second."""
SHARD_BYTES = 64 << 20
"""Bytes of rows after which a shard ends early, so that a folder of books does not become a 16 GB shard."""


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
    span: int
    """Rows of the file that the shard accounts for: its own, and those after them that cannot be read, where their number is
    known."""
    read_error: str | None
    """Cause for which the rows after this shard cannot be read, to the end of its section; None if they can."""
    fraction: float
    """Fraction of the file that this shard is, in [0, 1], for progress."""
    last: bool
    """Whether it is the last shard of its file."""

    def __len__(self) -> int:
        return len(self.rows) + len(self.rejects)


def read_shards(
    file: InputFile,
    columns: Columns,
    sections: range | None = None,
    fetched: StoredFile | None = None,
    given_up: Mapping[int, str] = MappingProxyType({}),
    *,
    shard_rows: int | None = None,
) -> Iterator[Shard]:
    """Read a file, or some of its sections by number, as shards in row order, at least one.

    `fetched` is the file if it has been fetched already. A section whose shard begins with a row in `given_up` is not read from
    there on, for the cause that stands there. `shard_rows`, for samples, takes the place of SHARD_ROWS. Damage of the file
    becomes rejects and `read_error`. Raises StorageError if it cannot be reached or has changed since it was listed.
    """
    opened = iter_sections(file, columns.names_in(file), sections, fetched)
    while True:
        try:
            section = next(opened, None)
        except FileFormatError as problem:
            if sections is None or 0 in sections:  # once, whoever reads the rest of the file
                yield unreadable(file, columns, str(problem))
            return
        if section is None:
            return
        yield from _Cutter(file, columns, section, given_up, shard_rows or SHARD_ROWS).shards()


def unreadable(file: InputFile, columns: Columns, cause: str) -> Shard:
    """Return the only shard of a file of which nothing can be read."""

    def fail() -> Iterator[RawRows]:
        raise FileFormatError(cause)
        yield

    (shard,) = _Cutter(file, columns, Section(0, None, 0.0, True, fail())).shards()
    return shard


@dataclass(slots=True)
class _Cutter:
    """Cuts a section into shards; where it cuts depends on the rows alone, and not on the chunks in which they come."""

    file: InputFile
    columns: Columns
    section: Section
    given_up: Mapping[int, str] = field(default_factory=dict)
    """Starts of shards that are not read, with the cause."""
    most_rows: int = SHARD_ROWS
    """Rows of a shard."""
    pending: list[pa.Table] = field(default_factory=list)
    """Checked rows of the shard to come, which has `count` rows and `size` bytes so far."""
    count: int = 0
    size: int = 0
    start: int = field(init=False)
    position: float = field(init=False)
    """Fraction of the file that lies before the row that is added next, about."""
    reached: float = field(init=False)
    """Fraction that lies before the next chunk."""
    done_until: float = field(init=False)
    """Fraction that lies before the shard to come."""

    def __post_init__(self) -> None:
        self.start = self.section.start
        self.position = self.reached = self.done_until = self.section.position

    def shards(self) -> Iterator[Shard]:
        """Yield the shards of the section, at least one; the last tells whether the file ends with it."""
        schema = self._schema
        while True:
            table, error = None, self.given_up.get(self.start)
            try:
                table = None if error else self._next_rows(schema)
            except FileFormatError as problem:
                error = str(problem)
            except MemoryError as problem:
                error = str(FileFormatError.from_error(problem))
            if table is None:
                self.position = 1.0 if self.section.last else self.position
                yield self._cut(last=self.section.last, error=error)
                return
            yield from self._add(table)

    def _next_rows(self, schema: pa.Schema) -> pa.Table | None:
        """Return the next chunk of rows, checked; None at the end."""
        raw = next(self.section.chunks, None)
        if raw is None:
            return None
        self.reached = max(self.reached, raw.position)  # a decompressor's is about
        return check_rows(self.file, self.columns, raw, schema)

    def _add(self, table: pa.Table) -> Iterator[Shard]:
        """Add rows to the shard to come, and yield each shard that is full before its next row."""
        ends = np.cumsum(_table_bytes(table))
        first, since = 0, self.position
        while first < len(table):
            before = int(ends[first - 1]) if first else 0
            fit = int(np.searchsorted(ends, before + SHARD_BYTES - self.size, "right"))
            end = min(fit, first + self.most_rows - self.count)
            if end == first and not self.count:
                end += 1  # a row that fills a shard by itself
            if end > first:
                self.pending.append(table.slice(first, end - first))
                self.count, self.size = self.count + end - first, self.size + int(ends[end - 1]) - before
            if end < len(table):
                self.position = since + (self.reached - since) * end / len(table)
                yield self._cut()
            first = end
        self.position = self.reached

    @property
    def _schema(self) -> pa.Schema:
        """Columns of checked rows: those of usable ones, and what is wrong with the others."""
        schema = read_schema(self.columns.keep, pairs=self.columns.pair is not None)
        return pa.schema([*schema, (REASON, pa.string()), (DETAIL, pa.string())])

    def _cut(self, *, last: bool = False, error: str | None = None) -> Shard:
        """Make a shard of the pending rows, and begin the next one."""
        checked = pa.concat_tables(self.pending) if self.pending else self._schema.empty_table()
        self.pending = []  # from here on each step lets go of what the one before it made
        usable = pc.is_null(checked[REASON])
        rejects = _rejects(self.file, checked.filter(pc.invert(usable)))
        checked = (checked.filter(usable) if len(rejects) else checked).drop_columns([REASON, DETAIL])
        end = self.start + self.count if error is None else self.section.end
        shard = Shard(
            id=self.file.shard_id(self.start),
            file=self.file,
            start=self.start,
            rows=checked.combine_chunks(),
            rejects=rejects,
            span=self.count if end is None else end - self.start,
            read_error=error,
            fraction=max(self.position - self.done_until, 0.0),
            last=last,
        )
        self.start, self.done_until = self.start + self.count, self.position
        self.count = self.size = 0
        return shard


def _table_bytes(table: pa.Table) -> IntArray:
    """Return the bytes of each row of a table of a single chunk."""
    return np.sum([row_bytes(column.chunk(0)) for column in table.columns if column.num_chunks], 0, np.int64)


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
    given = columns.given(file)
    for kept, source in columns.kept:
        values = pa.array([given[source]] * count, pa.string()) if source in given else raw.columns[source]
        arrays[KEPT + kept.name] = _kept(values, kept, source, problems)
    arrays[TEXT] = texts
    default_ids = [f"{file.name}:{row}" for row in range(raw.start, raw.start + count)]
    ids = raw.columns[columns.id] if columns.id is not None else None
    arrays[ID] = default_ids if ids is None else _ids(ids, default_ids, str(columns.id), problems)
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


def _kept(values: pa.Array | list[object], kept: pa.Field, source: str, problems: list[Reject | None]) -> pa.Array:
    """Convert a kept column to its type; a value that would not come back as it went in makes its row a reject."""
    if not isinstance(values, pa.Array):
        for row, value in enumerate(values):
            if isinstance(value, Reject) and value.reason is not Reason.MISSING_COLUMN:
                reason = value.reason if value.reason is Reason.INVALID_UTF8 else Reason.BAD_KEPT_VALUE
                problems[row] = problems[row] or Reject(reason, value.detail)
        values = [None if isinstance(value, Reject) else value for value in values]
    array, misfits = fit(values, kept.type)
    for row in misfits:
        problems[row] = problems[row] or Reject(Reason.BAD_KEPT_VALUE, f"column '{source}': not {kept.type}")
    return array


def _plain(values: pa.Array) -> list[object]:
    """Convert to Python values; one that Python cannot hold, such as a date in the year 30,000, becomes UNREADABLE."""
    try:
        return list(values.to_pylist())
    except (pa.ArrowException, ValueError, OverflowError):
        return [_plain(values.slice(row, 1))[0] for row in range(len(values))] if len(values) > 1 else [UNREADABLE]


def _ids(values: pa.Array | list[object], defaults: list[str], column: str, problems: list[Reject | None]) -> list[str]:
    """Return ids as text. A row without one is named after its file and number; so is one whose id is none, a reject."""
    given = _plain(values) if isinstance(values, pa.Array) else values
    ids: list[str] = []
    for row, (value, default) in enumerate(zip(given, defaults, strict=True)):
        text = id_text(value)
        if text is None and not is_absent(value):
            problems[row] = problems[row] or Reject(Reason.BAD_KEPT_VALUE, f"column '{column}' holds no id")
        ids.append(default if text is None else text)
    return ids


def is_absent(value: object) -> bool:
    """Return whether a row has no id: null, NaN, or no such key."""
    if isinstance(value, Reject):
        return value.reason is Reason.MISSING_COLUMN
    return value is None or (isinstance(value, float) and math.isnan(value))


def id_text(value: object) -> str | None:
    """Write an id as text; return None for what names nothing: no value, or bytes that are no UTF-8, a list, an object."""
    if is_absent(value) or isinstance(value, Reject | list | tuple | dict):
        return None
    try:
        text = value.decode() if isinstance(value, bytes) else value
        if isinstance(text, bool):
            return str(text).lower()
        text = str(text)
        text.encode()
    except UnicodeError:
        return None
    return text
