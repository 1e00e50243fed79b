"""Rows of a column of an Arrow batch: the ranges of its buffers that these rows need, and no others.

Nothing of a file is believed: offsets, indices and lengths are checked before memory is read by them.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus.decoders.fields import Path
from pipeline.corpus.decoders.ipc.body import Body
from pipeline.corpus.decoders.ipc.layouts import Column, is_view
from pipeline.corpus.decoders.raw import FileFormatError
from pipeline.rows import IntArray, offsets_of, spans

INLINE_BYTES = 12
"""Bytes of a value that a view holds itself."""


@dataclass(frozen=True, slots=True)
class ArrayReader:
    """Reads columns of one batch."""

    body: Body
    dictionaries: Mapping[int, pa.Array]

    def field(self, column: Column, path: Path, start: int, end: int) -> pa.Array:
        """Return rows of what lies on a path inside of a column, null where a struct around it is."""
        if not path:
            return self.array(column, start, end)
        number = column.node.kind.get_field_index(path[0])
        inner = self.field(column.children[number], path[1:], start, end)
        valid = self._valid(column, start, end)
        if valid is None:
            return inner
        within = pa.Array.from_buffers(pa.struct([("f", inner.type)]), end - start, [valid], children=[inner])
        return pc.struct_field(within, [0])

    def array(self, column: Column, start: int, end: int) -> pa.Array:
        """Return rows of a column; raise FileFormatError where its buffers make no sense."""
        kind, count = _checked(column, start, end)
        if pa.types.is_null(kind):
            return pa.nulls(count)
        if pa.types.is_run_end_encoded(kind):
            return self._runs(column, start, end)
        valid = self._valid(column, start, end)
        if pa.types.is_struct(kind):
            children = [self.array(child, start, end) for child in column.children]
            return pa.Array.from_buffers(column.node.made, count, [valid], children=children)
        if pa.types.is_fixed_size_list(kind):
            child = self.array(column.children[0], start * kind.list_size, end * kind.list_size)
            return pa.Array.from_buffers(column.node.made, count, [valid], children=[child])
        if pa.types.is_dictionary(kind):
            return self._looked_up(column, valid, start, count)
        if _offset_type(kind):
            return self._with_offsets(column, valid, start, count)
        if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
            return self._listed(column, valid, start, count)
        if kind != column.node.made:
            return self._viewed(column, valid, start, count)
        return pa.Array.from_buffers(kind, count, [valid, self._fixed(column, kind, start, count)])

    def most_bytes(self, column: Column, path: Path, start: int, end: int) -> int:
        """Return the bytes of rows of what lies on a path, about, without reading them."""
        if path:
            inner = column.children[column.node.kind.get_field_index(path[0])]
            return self.most_bytes(inner, path[1:], start, end)
        kind, count = _checked(column, start, end)
        if _offset_type(kind):
            first, last = self._offset(column, start), self._offset(column, end)
            inner_bytes = self.most_bytes(column.children[0], (), first, last) if column.children else last - first
            return 8 * count + max(inner_bytes, 0)
        if pa.types.is_fixed_size_list(kind):
            return self.most_bytes(column.children[0], (), start * kind.list_size, end * kind.list_size)
        if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
            starts, sizes = self._list_views(column, start, count)
            first, last = _extent(starts, sizes)
            once = self.most_bytes(column.children[0], (), first, last)
            return 16 * count + once * -(-int(sizes.sum()) // max(last - first, 1))
        if is_view(column.node.kind):
            return 16 * count + int(self._views(column, start, count)[:, 0].astype(np.int64).sum())
        if pa.types.is_run_end_encoded(kind):
            runs = self._run_numbers(column, start, end)
            return 4 * count + (
                self.most_bytes(column.children[1], (), int(runs[0]), int(runs[-1]) + 1) if count else 0
            )
        inside = sum(self.most_bytes(child, (), start, end) for child in column.children)
        return inside + (0 if column.children else count * 16)

    def _valid(self, column: Column, start: int, end: int) -> pa.Buffer | None:
        """Return which rows are no nulls, as bits; None if all are."""
        return self._bits(column.buffers[0], start, end) if self.body.size(column.buffers[0]) else None

    def _bits(self, buffer: tuple[int, int], start: int, end: int) -> pa.Buffer:
        stored = np.frombuffer(self.body.read(buffer, start // 8, -(-end // 8) - start // 8), np.uint8)
        bits = np.unpackbits(stored, bitorder="little")[start % 8 :][: end - start]
        return pa.py_buffer(np.packbits(bits, bitorder="little").tobytes())

    def _fixed(self, column: Column, kind: pa.DataType, start: int, count: int) -> pa.Buffer:
        if pa.types.is_boolean(kind):
            return self._bits(column.buffers[1], start, start + count)
        width = kind.bit_width // 8
        return self.body.read(column.buffers[1], start * width, count * width)

    def _looked_up(self, column: Column, valid: pa.Buffer | None, start: int, count: int) -> pa.Array:
        """Return values of a dictionary, still by their numbers: the same value may be that of all rows."""
        kind = column.node.kind.index_type
        numbers = pa.Array.from_buffers(kind, count, [valid, self._fixed(column, kind, start, count)])
        values = self.dictionaries.get(column.node.dictionary or 0)
        if values is None:
            raise FileFormatError("a dictionary is missing")
        bounds = pc.min_max(numbers).as_py()
        if bounds["min"] is not None and not 0 <= bounds["min"] <= bounds["max"] < len(values):
            raise FileFormatError("a value is not in its dictionary")
        return pa.DictionaryArray.from_arrays(numbers, values, safe=False)

    def _with_offsets(self, column: Column, valid: pa.Buffer | None, start: int, count: int) -> pa.Array:
        """Return strings, lists or maps, whose values lie side by side."""
        kind = _offset_type(column.node.kind)
        if count == 0:
            return pa.array([], column.node.made)
        offsets = self.body.numbers(column.buffers[1], start, count + 1, kind)
        if offsets[0] < 0 or (np.diff(offsets) < 0).any():
            raise FileFormatError("values of a column overlap")
        first, last = int(offsets[0]), int(offsets[-1])
        moved = pa.py_buffer((offsets - first).astype(kind).tobytes())
        if column.children:
            child = self.array(column.children[0], first, last)
            return pa.Array.from_buffers(column.node.made, count, [valid, moved], children=[child])
        data = self.body.read(column.buffers[2], first, last - first)
        return pa.Array.from_buffers(column.node.made, count, [valid, moved, data])

    def _offset(self, column: Column, row: int) -> int:
        if self.body.size(column.buffers[1]) == 0:  # of an array without rows
            return 0
        return int(self.body.numbers(column.buffers[1], row, 1, _offset_type(column.node.kind))[0])

    def _listed(self, column: Column, valid: pa.Buffer | None, start: int, count: int) -> pa.Array:
        """Return list views as lists."""
        starts, sizes = self._list_views(column, start, count)
        first, last = _extent(starts, sizes)
        child = self.array(column.children[0], first, last).take(pa.array(spans(starts - first, sizes)))
        kind = "i8" if pa.types.is_large_list(column.node.made) else "i4"
        offsets = pa.py_buffer(offsets_of(sizes).astype(kind).tobytes())
        return pa.Array.from_buffers(column.node.made, count, [valid, offsets], children=[child])

    def _list_views(self, column: Column, start: int, count: int) -> tuple[IntArray, IntArray]:
        """Return where lists begin, and their lengths; nulls, which may have any, have none."""
        kind = "i8" if pa.types.is_large_list_view(column.node.kind) else "i4"
        starts, sizes = (self.body.numbers(buffer, start, count, kind) for buffer in column.buffers[1:])
        valid = self._valid(column, start, start + count)
        if valid is not None:
            is_valid = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")[:count].astype(np.bool_)
            sizes = np.where(is_valid, sizes, 0)
        starts = np.where(sizes == 0, 0, starts)
        if (starts < 0).any() or (sizes < 0).any() or (starts + sizes > column.children[0].length).any():
            raise FileFormatError("a list lies outside of its column")
        return starts, sizes

    def _viewed(self, column: Column, valid: pa.Buffer | None, start: int, count: int) -> pa.Array:
        """Return views of strings or bytes as what they show."""
        views = self._views(column, start, count)
        raw = views.tobytes()
        values, listed = [b""] * count, views.tolist()
        for row in np.lexsort(
            (views[:, 3], views[:, 2])
        ).tolist():  # as they lie, so that none is fetched several times
            size, _, number, position = listed[row]
            if size <= INLINE_BYTES:
                values[row] = raw[16 * row + 4 : 16 * row + 4 + size]
            elif not 0 <= number < len(column.buffers) - 2:
                raise FileFormatError("a value lies in no buffer")
            else:
                values[row] = self.body.read(column.buffers[2 + number], position, size).to_pybytes()
        offsets = pa.py_buffer(offsets_of(views[:, 0].astype(np.int64)).tobytes())
        return pa.Array.from_buffers(column.node.made, count, [valid, offsets, pa.py_buffer(b"".join(values))])

    def _views(self, column: Column, start: int, count: int) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
        """Return views as [B, 4]: length, begin of the value, number of its buffer, and where in it; nulls have length 0."""
        views = np.frombuffer(self.body.read(column.buffers[1], 16 * start, 16 * count), "<i4").reshape(count, 4).copy()
        valid = self._valid(column, start, start + count)
        if valid is not None:
            views[np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")[:count] == 0] = 0
        if (views[:, 0] < 0).any():
            raise FileFormatError("a value of less than no bytes")
        return views

    def _runs(self, column: Column, start: int, end: int) -> pa.Array:
        """Return runs of equal values, as numbers of the values that they repeat."""
        runs = self._run_numbers(column, start, end)
        first, last = (int(runs[0]), int(runs[-1]) + 1) if len(runs) else (0, 0)
        values = self.array(column.children[1], first, last)
        return pa.DictionaryArray.from_arrays(pa.array(runs - first, pa.int32()), values, safe=False)

    def _run_numbers(self, column: Column, start: int, end: int) -> IntArray:
        """Return the number of the run that each row is in."""
        all_ends = column.children[0]
        first = bisect_right(
            range(all_ends.length), start, key=lambda run: int(self.array(all_ends, run, run + 1).to_numpy()[0])
        )
        ends = self.array(
            all_ends, first, min(first + end - start, all_ends.length)
        ).to_numpy()  # of a row each, or more
        runs = np.searchsorted(ends, np.arange(start, end), "right")
        if (np.diff(ends) <= 0).any() or (len(runs) and runs[-1] >= len(ends)):
            raise FileFormatError("runs of a column do not cover its rows")
        return runs + first


def _checked(column: Column, start: int, end: int) -> tuple[pa.DataType, int]:
    """Return the type of a column and the number of rows; raise FileFormatError if these are not in it or are not read."""
    if pa.types.is_union(column.node.kind):
        raise FileFormatError(f"a column is of type {column.node.kind}, which is not read")
    if not 0 <= start <= end <= column.length:
        raise FileFormatError("a column is shorter than its batch")
    return column.node.kind, end - start


def _extent(starts: IntArray, sizes: IntArray) -> tuple[int, int]:
    """Return the stretch in which all lists lie; (0, 0) if all are empty."""
    used = sizes > 0
    return (int(starts[used].min()), int((starts + sizes)[used].max())) if used.any() else (0, 0)


def _offset_type(kind: pa.DataType) -> str:
    """Return the type of the offsets of strings, lists and maps, as numpy names it; nothing for other types."""
    if any(test(kind) for test in (pa.types.is_string, pa.types.is_binary, pa.types.is_list, pa.types.is_map)):
        return "<i4"
    large = (pa.types.is_large_string, pa.types.is_large_binary, pa.types.is_large_list)
    return "<i8" if any(test(kind) for test in large) else ""
