"""Plain types: each Arrow type as the one that every stage can carry and Parquet can hold, for the same values.

Dictionaries, views, run ends and extensions are other ways to store values of a plain type; what is read is unpacked to it.
"""

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.rows import offsets_of


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the plain type of these values: `plain_type(pa.dictionary(pa.int8(), pa.string()))` is string."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if kind == pa.string_view() or kind == pa.binary_view():
        return pa.large_string() if kind == pa.string_view() else pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct(
            [kind.field(number).with_type(plain_type(kind.field(number).type)) for number in range(kind.num_fields)]
        )
    if pa.types.is_map(kind):
        return pa.map_(
            plain_type(kind.key_type), kind.item_field.with_type(plain_type(kind.item_type)), kind.keys_sorted
        )
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain_values(kind), kind.list_size)
    if pa.types.is_large_list(kind) or pa.types.is_large_list_view(kind):
        return pa.large_list(_plain_values(kind))
    return pa.list_(_plain_values(kind)) if pa.types.is_list(kind) or pa.types.is_list_view(kind) else kind


def _plain_values(kind: pa.DataType) -> pa.Field:
    return kind.value_field.with_type(plain_type(kind.value_type))


def plain(array: pa.Array) -> pa.Array:
    """Unpack an array to its plain type."""
    kind = plain_type(array.type)
    if kind == array.type:
        return array
    if isinstance(array, pa.ExtensionArray):
        return plain(array.storage)
    if pa.types.is_dictionary(array.type):
        return plain(array.dictionary_decode())
    if pa.types.is_run_end_encoded(array.type):
        return plain(pc.run_end_decode(array))
    return _rebuilt(array, kind) if pa.types.is_nested(kind) else array.cast(kind)


def _rebuilt(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Unpack what a nested array holds. Arrow's own cast of a list view leaves out the last offset."""
    nulls = array.is_null()
    if pa.types.is_struct(kind):
        children = [plain(array.field(number)) for number in range(kind.num_fields)]
        return pa.StructArray.from_arrays(children, fields=list(kind), mask=nulls)
    if pa.types.is_fixed_size_list(kind):
        values = array.values.slice(array.offset * kind.list_size, len(array) * kind.list_size)
        return pa.FixedSizeListArray.from_arrays(plain(values), type=kind, mask=nulls)
    if pa.types.is_map(kind):
        first, end = array.offsets[0].as_py(), array.offsets[-1].as_py()
        keys, items = (plain(values.slice(first, end - first)) for values in (array.keys, array.items))
        return pa.MapArray.from_arrays(_offsets(array, pa.int32()), keys, items, type=kind, mask=nulls)
    is_large = pa.types.is_large_list(kind)
    made = pa.LargeListArray if is_large else pa.ListArray
    offsets = _offsets(array, pa.int64() if is_large else pa.int32())
    return made.from_arrays(offsets, plain(array.flatten()), type=kind, mask=nulls)


def _offsets(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return where the values of each list begin, and the end, side by side as `flatten` gives them."""
    lengths = array if not pa.types.is_map(array.type) else array.cast(_as_list(array.type))
    return pa.array(offsets_of(pc.list_value_length(lengths).fill_null(0).to_numpy()), kind)


def _as_list(kind: pa.MapType) -> pa.DataType:
    return pa.list_(pa.struct([kind.key_field, kind.item_field]))
