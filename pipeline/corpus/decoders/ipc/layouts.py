"""How columns lie in the body of an Arrow batch: which of its nodes and buffers are those of which column.

A batch lists nodes (lengths) and buffers of all its columns, in the order of the schema, a parent before its children. How many
a column has is up to its type: Columnar.rst of the Arrow specification.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.corpus.decoders.ipc.flatbuffer import Table
from pipeline.corpus.decoders.ipc.messages import VERSION_5, Message
from pipeline.corpus.decoders.raw import FileFormatError


@dataclass(frozen=True, slots=True)
class Node:
    """A column, or what is inside of one, by its type."""

    kind: pa.DataType
    """Its type in the file, that of what an extension stores."""
    made: pa.DataType
    """The type as which it is read: views as strings and lists, runs as dictionaries."""
    children: list["Node"] = field(default_factory=list)
    dictionary: int | None = None
    """The id of its dictionary; its child is then what that holds."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column, or what is inside of one, in a batch."""

    node: Node
    length: int
    buffers: list[tuple[int, int]]
    """Where its buffers begin in the body, and their bytes as they are stored."""
    children: list["Column"]

    def all_buffers(self) -> list[tuple[int, int]]:
        """Return its buffers and those of all that is inside."""
        return [*self.buffers, *(buffer for child in self.children for buffer in child.all_buffers())]


def node_of(kind: pa.DataType, table: Table) -> Node:
    """Return a column by its type, and by its metadata, which has the ids of dictionaries."""
    if isinstance(kind, pa.BaseExtensionType):
        return node_of(kind.storage_type, table)
    if pa.types.is_dictionary(kind):
        encoding = table.table(4)
        values = _plain_node(kind.value_type, table)
        made = pa.dictionary(kind.index_type, values.made)
        return Node(kind, made, [values], encoding.number(0, "q") if encoding else 0)
    return _plain_node(kind, table)


def _plain_node(kind: pa.DataType, table: Table) -> Node:
    """Return a column that has no dictionary itself."""
    if isinstance(kind, pa.BaseExtensionType):
        return _plain_node(kind.storage_type, table)
    tables = table.tables(5)
    kinds = [kind.field(number) for number in range(kind.num_fields)]
    if len(tables) != len(kinds):
        raise FileFormatError("its metadata is damaged")
    children = [node_of(inner.type, child) for inner, child in zip(kinds, tables, strict=True)]
    return Node(kind, _made(kind, children), children)


def _made(kind: pa.DataType, children: list[Node]) -> pa.DataType:
    inner = [kind.field(number).with_type(child.made) for number, child in enumerate(children)]
    if pa.types.is_struct(kind):
        return pa.struct(inner)
    if pa.types.is_map(kind):
        return pa.map_(inner[0].type.field(0), inner[0].type.field(1), kind.keys_sorted)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(inner[0], kind.list_size)
    if pa.types.is_large_list(kind) or pa.types.is_large_list_view(kind):
        return pa.large_list(inner[0])
    if pa.types.is_list(kind) or pa.types.is_list_view(kind):
        return pa.list_(inner[0])
    if pa.types.is_run_end_encoded(kind):
        return pa.dictionary(pa.int32(), children[1].made)
    if is_view(kind):
        return pa.large_string() if kind == pa.string_view() else pa.large_binary()
    return kind


def is_view(kind: pa.DataType) -> bool:
    """Return whether values of a type are views, so that one stored value may be that of many rows."""
    return bool(kind == pa.string_view() or kind == pa.binary_view())


def columns_of(nodes: list[Node], message: Message, batch: Table) -> list[Column]:
    """Return the columns of a batch with their buffers; raise FileFormatError if it has more or fewer than its schema."""
    lengths, buffers = batch.structs(1, "qq"), batch.structs(2, "qq")
    variadic = batch.structs(4, "q")
    try:
        columns = [_column(node, message, lengths, buffers, variadic) for node in nodes]
    except (StopIteration, RuntimeError) as error:  # of a generator that ended too early
        raise FileFormatError("a batch has fewer columns than the schema") from error
    rows = batch.number(0, "q")
    if any(column.length != rows for column in columns) or next(lengths, None) or rows < 0:
        raise FileFormatError("a batch has other columns than the schema")
    return columns


def _column(
    node: Node,
    message: Message,
    lengths: Iterator[tuple[int, ...]],
    buffers: Iterator[tuple[int, ...]],
    variadic: Iterator[tuple[int, ...]],
) -> Column:
    length = next(lengths)[0]
    count = _count(node.kind, message.version) + (next(variadic)[0] if is_view(node.kind) else 0)
    mine: list[tuple[int, int]] = []
    for _ in range(count):
        start, size = next(buffers)
        if start < 0 or size < 0 or start + size > message.size:
            raise FileFormatError("a buffer lies outside of its batch")
        mine.append((start, size))
    inside = [] if node.dictionary is not None else node.children
    children = [_column(child, message, lengths, buffers, variadic) for child in inside]
    return Column(node, length, mine, children)


def _count(kind: pa.DataType, version: int) -> int:
    """Return how many buffers a column of this type has, without those that only its views know."""
    if pa.types.is_null(kind) or pa.types.is_run_end_encoded(kind):
        return 0
    if pa.types.is_union(kind):
        return (1 if kind.mode == "sparse" else 2) + (version < VERSION_5)
    if pa.types.is_struct(kind) or pa.types.is_fixed_size_list(kind):
        return 1
    three = (
        pa.types.is_string,
        pa.types.is_binary,
        pa.types.is_large_string,
        pa.types.is_large_binary,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    return 3 if any(test(kind) for test in three) else 2
