"""Arrow IPC, file or stream: batch after batch, in stretches that are bounded in bytes however large a batch is.

Of a batch the columns that are asked for are read, by ranges of bytes, from disks and from S3 alike. A compressed buffer is
unpacked as a whole, and a dictionary is held as a whole while batches use it; both are bounded.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import BinaryIO

import pyarrow as pa

from pipeline.corpus.decoders import raw
from pipeline.corpus.decoders.batches import chunks_of
from pipeline.corpus.decoders.fields import Path, fields_in, paths_of
from pipeline.corpus.decoders.ipc.arrays import ArrayReader
from pipeline.corpus.decoders.ipc.body import MAX_UNPACKED_BYTES, Body
from pipeline.corpus.decoders.ipc.flatbuffer import Table
from pipeline.corpus.decoders.ipc.layouts import Column, Node, columns_of, node_of
from pipeline.corpus.decoders.ipc.messages import BATCH, DICTIONARY, Layout, Message, read_layout, read_messages
from pipeline.corpus.decoders.raw import FileFormatError, RawRows, too_long

STRETCH_BYTES = 64 << 20
"""Most bytes of the rows of a batch that are read at once, as many as of a batch of Parquet, but for a single row."""
STRETCH_ROWS = 1 << 17
"""Most rows of a batch that are read at once: what tells their bytes, such as views, is read before them."""


def arrow_fields(stored: BinaryIO, size: int, names: list[str]) -> dict[Path, pa.DataType | None]:
    """Return the columns of a file of so many bytes with their types, and the fields that these names lead into."""
    return fields_in(read_layout(stored, size).schema, names)


def arrow_rows(stored: BinaryIO, size: int, columns: list[str]) -> Iterator[RawRows]:
    """Yield the rows of a file or stream of so many bytes; raise FileFormatError where it cannot be read any further."""
    layout = read_layout(stored, size)
    paths = dict(zip(columns, paths_of(layout.schema, columns), strict=True))
    batches = _Batches(stored, layout, {name: layout.schema.get_field_index(path[0]) for name, path in paths.items()})
    start = 0
    for message in read_messages(stored, layout, size):
        if message.kind == DICTIONARY:
            batches.take_dictionary(message)
        elif message.kind == BATCH:
            before, fraction = message.position / size, message.size / size
            for rows, at in batches.stretches(message, {name: path[1:] for name, path in paths.items()}):
                position = before + fraction * at
                if isinstance(rows, pa.RecordBatch):
                    for first in range(0, len(rows), raw.CHUNK_ROWS):
                        part = rows.slice(first, raw.CHUNK_ROWS)
                        yield from chunks_of(part, columns, start + first, partial(_fixed, position))
                    start += len(rows)
                else:
                    yield RawRows(start, {name: [too_long("the row", rows)] for name in columns}, position)
                    start += 1
        else:
            raise FileFormatError(f"there is no batch at byte {message.position:,}")


def _fixed(position: float, _row: int) -> float:
    return position


class _Batches:
    """The batches of a file, and the dictionaries that they use."""

    def __init__(self, stored: BinaryIO, layout: Layout, numbers: Mapping[str, int]) -> None:
        self._stored, self._numbers = stored, numbers
        self._nodes = [node_of(kind, table) for kind, table in zip(layout.schema.types, layout.fields, strict=True)]
        wanted = [self._nodes[number] for number in numbers.values()]
        self._values = dict(_dictionaries(wanted))
        self._dictionaries: dict[int, pa.Array] = {}

    def take_dictionary(self, message: Message) -> None:
        """Read a dictionary that a wanted column uses, or what is added to it."""
        number = message.header.number(0, "q")
        node = self._values.get(number)
        if node is None:
            return
        reader, (column,), rows = self._open(message, [node], message.header.table(1))
        before = self._dictionaries.get(number) if message.header.number(2, "B") else None
        if reader.most_bytes(column, (), 0, rows) + (0 if before is None else before.nbytes) > MAX_UNPACKED_BYTES:
            raise FileFormatError(f"a dictionary has more than {MAX_UNPACKED_BYTES:,} bytes")
        values = reader.array(column, 0, rows)
        self._dictionaries[number] = values if before is None else pa.concat_arrays([before, values])

    def stretches(self, message: Message, paths: Mapping[str, Path]) -> Iterator[tuple[pa.RecordBatch | int, float]]:
        """Yield the rows of a batch, and what fraction of it is read by then; the bytes of a row alone that is too long."""
        reader, columns, rows = self._open(message, self._nodes, message.header)
        wanted = {name: columns[self._numbers[name]] for name in paths}
        reader.body.check_unpacked([buffer for column in wanted.values() for buffer in column.all_buffers()])
        start = 0
        while start < rows:
            end = min(rows, start + STRETCH_ROWS)
            size = _most_bytes(reader, wanted, paths, start, end)
            while size > STRETCH_BYTES and end > start + 1:
                end = start + (end - start) // 2
                size = _most_bytes(reader, wanted, paths, start, end)
            if size > max(STRETCH_BYTES, 16 * raw.MAX_ROW_BYTES):  # 16 are the most that are counted for a byte
                yield size, end / rows
            else:
                arrays = [reader.field(column, paths[name], start, end) for name, column in wanted.items()]
                yield pa.RecordBatch.from_arrays(arrays, names=[*wanted]), end / rows
            start = end

    def _open(self, message: Message, nodes: list[Node], batch: Table | None) -> tuple[ArrayReader, list[Column], int]:
        if batch is None:
            raise FileFormatError("a dictionary without content")
        columns = columns_of(nodes, message, batch)
        return ArrayReader(Body(self._stored, message, batch), self._dictionaries), columns, batch.number(0, "q")


def _most_bytes(
    reader: ArrayReader, columns: Mapping[str, Column], paths: Mapping[str, Path], start: int, end: int
) -> int:
    return sum(reader.most_bytes(column, paths[name], start, end) for name, column in columns.items())


def _dictionaries(nodes: list[Node]) -> Iterator[tuple[int, Node]]:
    """Yield the ids of all dictionaries in columns, each with the column that its values are."""
    for node in nodes:
        if node.dictionary is not None:
            yield node.dictionary, node.children[0]
        yield from _dictionaries(node.children)
