"""How many bytes each row of an Arrow array takes, whatever its type: by its buffers, without a look at the values."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.rows import IntArray


def row_bytes(array: pa.Array) -> IntArray:
    """Return the bytes of each of B rows: `row_bytes(pa.array(["ab", None, "abc"]))` is `[2, 0, 3]`."""
    kind, count = array.type, len(array)
    if isinstance(array, pa.ExtensionArray):
        return row_bytes(array.storage)
    if pa.types.is_dictionary(kind):
        codes, inverse = np.unique(array.indices.cast(pa.int64()).fill_null(-1).to_numpy(), return_inverse=True)
        used = array.dictionary.take(pa.array(codes, mask=codes < 0))  # the whole of it may be much larger
        return row_bytes(used)[inverse]
    if pa.types.is_run_end_encoded(kind):
        return row_bytes(pc.run_end_decode(array))
    if pa.types.is_struct(kind):
        return np.sum([row_bytes(child) for child in array.flatten()], 0, np.int64, initial=0) + np.zeros(
            count, np.int64
        )
    if pa.types.is_map(kind) or _is_list(kind):
        return _list_bytes(array)
    lengths = _lengths(array)
    if lengths is not None:
        return lengths
    return np.full(count, 0 if pa.types.is_null(kind) else max(kind.bit_width // 8, 1), np.int64)


def _lengths(array: pa.Array) -> IntArray | None:
    """Return the bytes of strings, without an offset; None for other types."""
    kind = array.type
    if kind == pa.string_view() or kind == pa.binary_view():
        array = array.cast(pa.large_binary() if kind == pa.binary_view() else pa.large_string())
    elif not any(
        test(kind)
        for test in (pa.types.is_string, pa.types.is_binary, pa.types.is_large_string, pa.types.is_large_binary)
    ):
        return None
    lengths: IntArray = pc.binary_length(array).fill_null(0).to_numpy().astype(np.int64)
    return lengths


def _is_list(kind: pa.DataType) -> bool:
    tests = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    return any(test(kind) for test in tests)


def _list_bytes(array: pa.Array) -> IntArray:
    """Return the bytes of lists: those of their values, and eight for the list."""
    if pa.types.is_map(array.type):
        array = array.cast(pa.list_(pa.struct([array.type.key_field, array.type.item_field])))
    lengths = pc.list_value_length(array).fill_null(0).to_numpy().astype(np.int64)
    ends = np.cumsum(lengths)
    totals = np.append(0, np.cumsum(row_bytes(array.flatten())))  # a null list has no values here
    return 8 + totals[ends] - totals[ends - lengths]
