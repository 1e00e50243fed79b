"""Batches of Arrow as chunks of raw values, bounded in bytes; a row that is too long costs itself."""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.corpus.decoders import raw
from pipeline.corpus.decoders.plain import plain
from pipeline.corpus.decoders.raw import RawRows, too_long
from pipeline.corpus.decoders.sizes import row_bytes
from pipeline.rejects import Reason, Reject

CUT = Reject(Reason.BAD_KEPT_VALUE, "the time has digits below microseconds")
NO_CUTS: Mapping[str, npt.NDArray[np.bool_]] = MappingProxyType({})


def chunks_of(
    batch: pa.RecordBatch,
    columns: list[str],
    start: int,
    position: Callable[[int], float],
    cut: Mapping[str, npt.NDArray[np.bool_]] = NO_CUTS,
) -> Iterator[RawRows]:
    """Cut a batch, whose first row is row `start` of its file, into chunks of CHUNK_BYTES.

    `position` returns what fraction of the file lies before a row. A row that is too long is a chunk of its own, and a reject;
    so is one with a time that is `cut`, by column.
    """
    sizes = np.sum([row_bytes(batch.column(name)) for name in columns], 0)
    totals = np.append(0, np.cumsum(sizes))
    are_long = sizes > raw.MAX_ROW_BYTES
    are_alone = np.any([are_long, *cut.values()], 0)
    lone_rows = np.append(np.flatnonzero(are_alone), len(batch))
    first = 0
    while first < len(batch):
        fit = int(np.searchsorted(totals, totals[first] + raw.CHUNK_BYTES, "right")) - 1
        end = min(max(fit, first + 1), int(lone_rows[np.searchsorted(lone_rows, first + 1)]))
        if are_alone[first]:
            end = first + 1
        if are_long[first]:
            values: Mapping[str, pa.Array | list[object]] = {
                name: [too_long("the row", int(sizes[first]))] for name in columns
            }
        else:
            rows = batch.slice(first, end - first)
            arrays = {name: _as_bytes(plain(rows.column(name))) for name in columns}
            if are_long.any():  # copies, so that the long row is not kept in memory with its neighbours
                arrays = {name: array.take(pa.array(range(len(rows)))) for name, array in arrays.items()}
            values = arrays | {name: [CUT] for name, are_cut in cut.items() if are_cut[first]}
        yield RawRows(start + first, values, position(start + end))
        first = end


def _as_bytes(array: pa.Array) -> pa.Array:
    """View strings as bytes: Arrow does not validate UTF-8 when it reads a file, and raises only when a value is converted."""
    if pa.types.is_string(array.type):
        return array.view(pa.binary())
    return array.view(pa.large_binary()) if pa.types.is_large_string(array.type) else array
