"""What decoders give, rows of raw values, and what they raise; how long a row may be.

A value that cannot be decoded is a `Reject` in its place, so that it costs its own row only.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from lzma import LZMAError
from typing import Self

import pyarrow as pa

from pipeline.errors import one_line
from pipeline.rejects import MAX_DETAIL_CHARACTERS, Reason, Reject

MAX_ROW_BYTES = 8 << 20
"""Longest row: a line, a CSV record, or what is read of a Parquet row. It is an eighth of a shard, which is bounded thereby,
and longer than a novel; a JSON line takes up to some thirty times its length while it is parsed."""
CHUNK_ROWS = 1024
"""Most rows of a chunk of raw values."""
CHUNK_BYTES = 1 << 20
"""Bytes of rows after which a chunk ends early."""

DAMAGE = (
    ArithmeticError,
    EOFError,
    LookupError,
    LZMAError,
    MemoryError,
    OSError,
    RecursionError,
    ValueError,
    pa.ArrowException,
)
"""What decoders raise for content that makes no sense, or that makes them ask for more memory than there is."""


class FileFormatError(Exception):
    """Raised when a file cannot be read, or read any further; the message gives the cause, and the caller names the file."""

    def __init__(self, cause: str) -> None:
        if len(cause) > MAX_DETAIL_CHARACTERS:  # it may quote a header of any length
            cause = f"{cause[: MAX_DETAIL_CHARACTERS - 3]}..."
        # The message may quote names of the file that are not valid UTF-8, and must be storable all the same.
        super().__init__(cause.encode("utf-8", "backslashreplace").decode())

    @classmethod
    def from_error(cls, error: BaseException) -> Self:
        """Take over the message of a reader's or a decoder's error."""
        if isinstance(error, MemoryError):
            return cls("it takes more memory than there is")
        return cls(one_line(error, limit=MAX_DETAIL_CHARACTERS))


@dataclass(frozen=True, slots=True)
class RawRows:
    """A chunk of consecutive rows of a file, unchecked.

    `RawRows(start=1024, columns={"text": [b"fine", Reject(...)]}, position=0.5)` holds rows 1024 and 1025.
    """

    start: int
    """Number of the first row, counted from 0."""
    columns: Mapping[str, pa.Array | list[object]]
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


def too_long(what: str, size: int) -> Reject:
    """Return the reject of a row that is too long: `too_long("the line", 9_000_000)`."""
    return Reject(Reason.TOO_LONG, f"{what} has {size:,} bytes; {MAX_ROW_BYTES:,} are the most")


def check_header(header: list[str], columns: list[str]) -> None:
    """Raise FileFormatError unless the header holds each of these columns exactly once."""
    for name in columns:
        if header.count(name) != 1:
            problem = f"no column '{name}'" if name not in header else f"several columns '{name}'"
            raise FileFormatError(f"{problem}; it has {', '.join(header) or 'no header line'}")
