"""Types of Delta Lake: which columns of parts a Delta table can have, and how its readers see them.

A table is laid over Parquet files that are there already, and nothing is converted. So a type is taken only where every reader
of the table finds in the file what the table's schema says: unsigned numbers, times of day, nanoseconds and more are refused.
"""

from collections import Counter
from collections.abc import Callable, Iterable

import pyarrow as pa

from pipeline.errors import InputError, printable

FORBIDDEN = " ,;{}()\n\t="
"""Characters that Spark takes in no name of a Delta table's columns."""
MOST_DIGITS = 38
"""Digits of a decimal number, at most (https://github.com/delta-io/delta/blob/master/PROTOCOL.md, Primitive Types)."""
AS_THEY_ARE = (
    pa.types.is_boolean,
    pa.types.is_signed_integer,
    pa.types.is_float32,
    pa.types.is_float64,
    pa.types.is_decimal128,
    pa.types.is_date32,
)
"""Types of Arrow that Delta has too."""
INSTEAD: list[tuple[Callable[[pa.DataType], bool], str]] = [
    (pa.types.is_unsigned_integer, "a signed integer that is wide enough"),
    (pa.types.is_float16, "float32"),
    (pa.types.is_decimal, f"decimal128 of at most {MOST_DIGITS} digits"),
    (pa.types.is_date, "date32"),
    (lambda kind: _has_offset(kind), "a timestamp of UTC in microseconds"),
    (pa.types.is_timestamp, "a timestamp in microseconds"),
    (pa.types.is_time, "an integer or text"),
    (pa.types.is_duration, "an integer"),
    (pa.types.is_fixed_size_binary, "binary"),
    (pa.types.is_fixed_size_list, "a list without a fixed size"),
]
"""What a column of another type may be written as; the first that holds."""


def delta_schema(schema: pa.Schema) -> pa.Schema:
    """Return the columns of parts as those of a Delta table, in the types of Arrow that stand for Delta's; all may be null.

    Raises InputError naming a column that Delta has no type for, or no name, and what to do.
    """
    _check_names("", schema.names)
    return pa.schema([pa.field(field.name, _delta_type(field.name, field.type)) for field in schema])


def needs_timestamps_without_zone(schema: pa.Schema) -> bool:
    """Return whether a column is a timestamp without a time zone, which a Delta table has to be given as a feature."""
    return any(_has_timestamp_without_zone(field.type) for field in schema)


def _has_timestamp_without_zone(kind: pa.DataType) -> bool:
    if pa.types.is_timestamp(kind):
        return kind.tz is None
    return any(_has_timestamp_without_zone(kind.field(number).type) for number in range(kind.num_fields))


def _delta_type(name: str, kind: pa.DataType) -> pa.DataType:
    """Return the type of a column, or of what is inside of one, such as "user.age"; raise InputError if there is none."""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.string()
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return pa.binary()
    if pa.types.is_timestamp(kind) and kind.unit == "us" and not _has_offset(kind):
        return pa.timestamp("us", "UTC" if kind.tz else None)  # Parquet has instants, and no zones
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_delta_type(f"{name}.element", kind.value_type))
    if pa.types.is_map(kind):
        return pa.map_(_delta_type(f"{name}.key", kind.key_type), _delta_type(f"{name}.value", kind.item_type))
    if pa.types.is_struct(kind):
        fields = [kind.field(number) for number in range(kind.num_fields)]
        _check_names(f"{name}.", [field.name for field in fields])
        return pa.struct([pa.field(field.name, _delta_type(f"{name}.{field.name}", field.type)) for field in fields])
    if any(is_kind(kind) for is_kind in AS_THEY_ARE):
        return kind
    instead = next((f"write it as {instead}, or " for is_kind, instead in INSTEAD if is_kind(kind)), "")
    raise _refusal(name, f"is of type {kind}, which Delta tables have not: {instead}leave it out")


def _has_offset(kind: pa.DataType) -> bool:
    """Return whether a type is a timestamp with an offset, such as +05:30, in place of a zone: Polars 2.1 panics at those."""
    return pa.types.is_timestamp(kind) and kind.tz is not None and kind.tz[0] in "+-"


def _check_names(prefix: str, names: Iterable[str]) -> None:
    """Raise InputError for a name that readers of Delta cannot have, or cannot tell from another one."""
    counts = Counter(name.lower() for name in names)
    for name in names:
        if not name or set(name) & set(FORBIDDEN):
            raise _refusal(f"{prefix}{name}", f"a column of a Delta table has a name, without any of {FORBIDDEN!r}")
        if counts[name.lower()] > 1:
            raise _refusal(
                f"{prefix}{name}", "Delta tables do not tell names by capital letters, and it is there twice"
            )


def _refusal(name: str, what: str) -> InputError:
    return InputError("keep", f"{printable(name, 200)}: {what}")
