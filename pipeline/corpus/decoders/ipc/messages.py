"""The messages of an Arrow file or stream: where batches and dictionaries lie, by their metadata, of which a few kB are read.

    stream   schema  dictionary*  batch*  end          in the order in which they come; the end may be missing
    file     "ARROW1" schema ... footer "ARROW1"       the footer has the schema too, and says where the rest is

Fields are numbered as in Arrow's Message.fbs, Schema.fbs and File.fbs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa

from pipeline.corpus.decoders.ipc.flatbuffer import Table, unpack
from pipeline.corpus.decoders.raw import FileFormatError

MAGIC, FEATHER_1 = b"ARROW1", b"FEA1"
CONTINUED = 0xFFFFFFFF
"""What a message begins with since version 0.15 of the format."""
SCHEMA, DICTIONARY, BATCH = 1, 2, 3
"""Types of messages."""
MAX_METADATA_BYTES = 64 << 20
"""Bytes of the metadata of a message: some hundred for each column, so that half a million columns fit."""
END_BYTES = 8
"""Bytes that stand for a stream's end; four in versions before 0.15."""
VERSION_5 = 4
"""The value of the field `version` for metadata of version 5, since which unions have no validity."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message without its body."""

    position: int
    """Where it begins in the file."""
    head: bytes
    """Its metadata, as a FlatBuffer."""
    body: int
    """Where its body begins in the file."""
    size: int
    """Bytes of its body."""

    @property
    def kind(self) -> int:
        """Return SCHEMA, DICTIONARY, BATCH, or the number of another type."""
        return self._root.number(1, "B")

    @property
    def version(self) -> int:
        """Return the version of the metadata, VERSION_5 or one before."""
        return self._root.number(0, "h")

    @property
    def header(self) -> Table:
        """Return what it says; raise FileFormatError if it says nothing."""
        header = self._root.table(2)
        if header is None:
            raise FileFormatError("a message without content")
        return header

    @property
    def _root(self) -> Table:
        return Table.root(self.head)


@dataclass(frozen=True, slots=True)
class Layout:
    """A file's schema, and where its messages are."""

    schema: pa.Schema
    fields: list[Table]
    """Its columns as the metadata has them, which alone tells the ids of dictionaries."""
    blocks: tuple[int, ...] | None
    """Where dictionaries and then batches begin, by the footer; None for a stream."""
    first: int = 0
    """Where the message after the schema of a stream begins."""


def read_layout(stored: BinaryIO, size: int) -> Layout:
    """Read the schema of a file or stream, told apart by their first bytes; raise FileFormatError if it is neither."""
    start = _read(stored, 0, min(8, size))
    if not start:
        raise FileFormatError("it is empty: not even a schema")
    if start.startswith(FEATHER_1):
        raise FileFormatError("it is Feather of version 1; write it as version 2")
    return _layout_of_file(stored, size) if start.startswith(MAGIC) else _layout_of_stream(stored, size)


def read_messages(stored: BinaryIO, layout: Layout, size: int) -> Iterator[Message]:
    """Yield dictionaries and batches in their order; raise FileFormatError where there is no message."""
    if layout.blocks is not None:
        for position in layout.blocks:
            message = _message(stored, position, size)
            if message is None:
                raise FileFormatError(f"there is no message at byte {position:,}")
            yield message
        return
    position = layout.first
    while (message := _message(stored, position, size)) is not None:
        yield message
        position = message.body + message.size
    if size - position > END_BYTES:
        raise FileFormatError(f"its stream ends at byte {position:,}, and more follows: several streams, put together")


def _layout_of_stream(stored: BinaryIO, size: int) -> Layout:
    message = _message(stored, 0, size)
    if message is None or message.kind != SCHEMA:
        raise FileFormatError("it is no Arrow file or stream, as its name says")
    _check_order(message.header)
    head = message.head
    schema = pa.ipc.read_schema(pa.py_buffer(CONTINUED.to_bytes(4, "little") + len(head).to_bytes(4, "little") + head))
    return Layout(schema, message.header.tables(1), None, message.body + message.size)


def _layout_of_file(stored: BinaryIO, size: int) -> Layout:
    """Read schema and blocks of the footer: the schema at a file's begin is in another form where Polars wrote it."""
    end = _read(stored, max(size - 10, 0), min(size, 10))
    if end[4:] != MAGIC:
        raise FileFormatError("it has no footer: it was cut off, or has not been written to its end")
    (length,) = unpack("<i", end, 0)
    if not 0 < length <= min(MAX_METADATA_BYTES, size - 10):
        raise FileFormatError("its footer is damaged")
    data = _read(stored, size - 10 - length, length)
    footer = Table.root(data)
    fields = footer.table(1)
    if fields is None:
        raise FileFormatError("its footer is damaged")
    _check_order(fields)
    schema = pa.ipc.open_file(pa.py_buffer(MAGIC + bytes(2) + data + end)).schema
    blocks = tuple(block[0] for field in (2, 3) for block in footer.structs(field, "qi4xq"))
    return Layout(schema, fields.tables(1), blocks)


def _check_order(schema: Table) -> None:
    if schema.number(0, "h"):
        raise FileFormatError("its numbers are big-endian, which are not read")


def _message(stored: BinaryIO, position: int, size: int) -> Message | None:
    """Read the metadata of a message; None at the end of a stream."""
    if position == size:
        return None
    if not 0 <= position < size:
        raise FileFormatError("a message lies outside of the file")
    prefix = _read(stored, position, min(8, size - position))
    (length,) = unpack("<I", prefix, 0)
    start = position + 4
    if length == CONTINUED:
        (length,) = unpack("<I", prefix, 4)
        start += 4
    if length == 0:
        return None
    if length > min(MAX_METADATA_BYTES, size - start):
        raise FileFormatError(f"there is no message at byte {position:,}, or it is cut off")
    head = _read(stored, start, length)
    body, body_size = start + length, Table.root(head).number(3, "q")
    if not 0 <= body_size <= size - body:
        raise FileFormatError(f"the message at byte {position:,} is cut off")
    return Message(position, head, body, body_size)


def _read(stored: BinaryIO, position: int, size: int) -> bytes:
    stored.seek(position)
    data = stored.read(size)
    if len(data) < size:
        raise FileFormatError("it ends in the middle")
    return data
