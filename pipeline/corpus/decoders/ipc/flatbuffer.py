"""FlatBuffers, as far as Arrow's metadata needs them: tables of numbered fields, and vectors of tables and structs.

A table begins with the distance back to its vtable, which has the distance of each field from the table's begin, 0 for none.
Every position is checked, so that damage is a FileFormatError.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.corpus.decoders.raw import FileFormatError


@dataclass(frozen=True, slots=True)
class Table:
    """A table in a buffer."""

    data: bytes
    start: int

    @classmethod
    def root(cls, data: bytes) -> "Table":
        """Return the table that a buffer is about."""
        return cls(data, *unpack("<I", data, 0))

    def number(self, field: int, form: str, default: int = 0) -> int:
        """Return a number by its field and its format of `struct`; the default where it is left out."""
        position = self._position(field)
        if position is None:
            return default
        (value,) = unpack(f"<{form}", self.data, position)
        return int(value)

    def table(self, field: int) -> "Table | None":
        """Return a table inside of this one."""
        position = self._position(field)
        return None if position is None else Table(self.data, _target(self.data, position))

    def tables(self, field: int) -> list["Table"]:
        """Return a vector of tables."""
        start, count = self._vector(field, 4)
        return [Table(self.data, _target(self.data, start + 4 * number)) for number in range(count)]

    def structs(self, field: int, form: str) -> Iterator[tuple[int, ...]]:
        """Return a vector of structs by their format, padding and all."""
        size = struct.calcsize(f"<{form}")
        start, count = self._vector(field, size)
        return struct.iter_unpack(f"<{form}", self.data[start : start + size * count])

    def _position(self, field: int) -> int | None:
        (back,) = unpack("<i", self.data, self.start)
        vtable = self.start - back
        (size,) = unpack("<H", self.data, vtable)
        if 4 + 2 * field >= size:
            return None
        (distance,) = unpack("<H", self.data, vtable + 4 + 2 * field)
        return self.start + distance if distance else None

    def _vector(self, field: int, size: int) -> tuple[int, int]:
        """Return where the elements of a vector begin, and their number."""
        position = self._position(field)
        if position is None:
            return 0, 0
        start = _target(self.data, position)
        (count,) = unpack("<I", self.data, start)
        if start + 4 + count * size > len(self.data):
            raise FileFormatError("its metadata is damaged")
        return start + 4, count


def unpack(form: str, data: bytes, position: int) -> tuple[Any, ...]:
    """Unpack a struct at a position; raise FileFormatError if it is not in the buffer."""
    if not 0 <= position <= len(data) - struct.calcsize(form):
        raise FileFormatError("its metadata is damaged")
    return struct.unpack_from(form, data, position)


def _target(data: bytes, position: int) -> int:
    (distance,) = unpack("<I", data, position)
    return position + int(distance)
