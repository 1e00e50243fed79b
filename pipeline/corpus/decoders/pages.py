"""Sizes of the pages of a Parquet column, from their headers: Arrow unpacks a page as a whole, however large it is.

A header is a Thrift struct in the compact protocol. Its fields that count here are numbered as in parquet.thrift:

    PageHeader        1 type   2 uncompressed_page_size   3 compressed_page_size   5, 7, 8 the header of a page of some type
    ...PageHeader     1 num_values
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow.parquet as pq

from pipeline.corpus.decoders.raw import FileFormatError

TYPE, UNCOMPRESSED, COMPRESSED = 1, 2, 3
DATA, DICTIONARY, DATA_V2 = 5, 7, 8
NUM_VALUES = 1
DICTIONARY_PAGE = 2
"""The value of the field `type` for a page that holds the dictionary of a column."""
MAX_DEPTH, MAX_ELEMENTS = 16, 1 << 16
"""Levels of structs within a header, of which there are three, and elements of a list, of which there is none."""

Struct = dict[int, "int | Struct"]


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a column."""

    size: int
    """Bytes when it is unpacked."""
    values: int
    """Number of its values, nulls included."""
    is_dictionary: bool


def read_pages(stored: BinaryIO, column: pq.ColumnChunkMetaData) -> Iterator[Page]:
    """Read the headers of a column chunk in order, its dictionary first; raise FileFormatError where there is none."""
    start = column.data_page_offset
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < start:
        start = column.dictionary_page_offset
    position, end, left = start, start + column.total_compressed_size, column.num_values
    while position < end and left > 0:
        stored.seek(position)
        header = _Header(stored).struct()
        is_dictionary = header.get(TYPE) == DICTIONARY_PAGE
        details = header.get(DICTIONARY if is_dictionary else DATA, header.get(DATA_V2, {}))
        size, stored_size = header.get(UNCOMPRESSED, -1), header.get(COMPRESSED, -1)
        values = details.get(NUM_VALUES, 0) if isinstance(details, dict) else 0
        if (
            not (isinstance(size, int) and isinstance(stored_size, int) and isinstance(values, int))
            or min(size, stored_size) < 0
        ):
            raise FileFormatError(f"column '{column.path_in_schema}' has no page at byte {position:,}")
        yield Page(size, values, is_dictionary)
        position = stored.tell() + stored_size
        left -= 0 if is_dictionary else values


class _Header:
    """A reader of Thrift's compact protocol, which skips what is no number and no struct."""

    def __init__(self, stored: BinaryIO) -> None:
        self._stored = stored

    def struct(self, depth: int = 0) -> Struct:
        """Read a struct: its fields by number."""
        if depth > MAX_DEPTH:
            raise FileFormatError("a page header makes no sense")
        fields: Struct = {}
        number = 0
        while (head := self._byte()) != 0:
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            value = self._value(head & 15, depth)
            if value is not None:
                fields[number] = value
        return fields

    def _value(self, kind: int, depth: int) -> "int | Struct | None":
        match kind:
            case 1 | 2:  # true and false, which are their type
                return None
            case 3:
                return self._byte()
            case 4 | 5 | 6:  # integers of 16, 32 and 64 bits
                return self._zigzag()
            case 7:  # a double
                self._stored.seek(8, 1)
            case 8:  # bytes, such as the least and the greatest value
                self._stored.seek(self._varint(), 1)
            case 9 | 10:  # a list or a set
                head = self._byte()
                count = self._varint() if head >> 4 == 15 else head >> 4
                if count > MAX_ELEMENTS:
                    raise FileFormatError("a page header makes no sense")
                for _ in range(count):
                    self._element(head & 15, depth)
            case 12:
                return self.struct(depth + 1)
            case _:
                raise FileFormatError("a page header makes no sense")
        return None

    def _element(self, kind: int, depth: int) -> None:
        if kind in (1, 2):  # in a list, unlike in a struct, a boolean is a byte of its own
            self._byte()
        else:
            self._value(kind, depth + 1)

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise FileFormatError("a page header makes no sense")

    def _byte(self) -> int:
        byte = self._stored.read(1)
        if not byte:
            raise FileFormatError("a page header is cut off")
        return byte[0]
