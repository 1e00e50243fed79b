"""Columns of every type of Arrow, with values at the edges of each."""

import datetime
from decimal import Decimal

import pyarrow as pa

DAY = datetime.date(2024, 2, 29)
NOON = datetime.datetime(2024, 2, 29, 12, 30, 15)
UTC = datetime.UTC
STRINGS = pa.dictionary(pa.int8(), pa.string())


def times(kind: pa.DataType) -> pa.Array:
    return pa.array([0, -1, 1_709_209_815, None], pa.int64()).cast(kind)


CASES: dict[str, pa.Array] = {
    "null": pa.nulls(4),
    "bool": pa.array([True, False, None, True]),
    **{
        str(kind): pa.array([0, 1, 2 ** (kind.bit_width - 1) - 1, None], kind)
        for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())
    },
    "negative": pa.array([-(2**63), 2**63 - 1, -1, None]),
    "uint64 max": pa.array([2**64 - 1, 0, None, 1], pa.uint64()),
    "half": pa.array([0.5, -2.0, float("inf"), None], pa.float16()),
    "float": pa.array([0.1, float("nan"), -0.0, None], pa.float32()),
    "double": pa.array([0.1, 1e300, float("-inf"), None]),
    "decimal32": pa.array([Decimal("1.25"), Decimal("-999.99"), None], pa.decimal32(5, 2)),
    "decimal64": pa.array([Decimal("1.25"), Decimal("-99999999.99"), None], pa.decimal64(10, 2)),
    "decimal128": pa.array([Decimal("1.250"), Decimal(10) ** 16, None], pa.decimal128(20, 3)),
    "decimal256": pa.array([Decimal("1.250"), Decimal(10) ** 36, None], pa.decimal256(40, 3)),
    "negative scale": pa.array([Decimal("1200"), None], pa.decimal128(5, 0)),
    "date32": pa.array([DAY, None, datetime.date(1, 1, 1)], pa.date32()),
    "date far": pa.array([2**31 - 1, -(2**31), None], pa.int32()).cast(pa.date32()),
    "date64": pa.array([DAY, None, datetime.date(1, 1, 1)], pa.date64()),
    "time32 s": pa.array([1, 86_399, None], pa.time32("s")),
    "time32 ms": pa.array([1, 86_399_999, None], pa.time32("ms")),
    "time64 us": pa.array([1, 86_399_999_999, None], pa.time64("us")),
    "time64 ns": pa.array([1, 86_399_999_999_999, None], pa.time64("ns")),
    **{
        f"timestamp {unit} {zone}": times(pa.timestamp(unit, zone))
        for unit in ("s", "ms", "us", "ns")
        for zone in (None, "UTC", "Europe/Berlin", "+05:30")
    },
    "timestamp far": pa.array([2**62, -(2**62), None], pa.timestamp("us")),
    **{f"duration {unit}": times(pa.duration(unit)) for unit in ("s", "ms", "us", "ns")},
    **{
        str(kind): pa.array(["a", "", "zwei ä", None]).cast(kind)
        for kind in (
            pa.string(),
            pa.large_string(),
            pa.string_view(),
            STRINGS,
            pa.dictionary(pa.int32(), pa.large_string()),
        )
    },
    **{
        str(kind): pa.array([b"\xff\x00", b"", b"a", None], pa.binary()).cast(kind)
        for kind in (pa.binary(), pa.large_binary(), pa.binary_view())
    },
    "fixed_size_binary": pa.array([b"abc", b"\xff\xfe\x00", None], pa.binary(3)),
    "dictionary of int64": pa.array([7, 7, None]).dictionary_encode(),
    **{
        f"{name} of {item}": pa.array([[], [None], None], made(item))
        for name, made in {"list": pa.list_, "large_list": pa.large_list, "list_view": pa.list_view}.items()
        for item in (
            pa.int32(),
            pa.string(),
            STRINGS,
            pa.string_view(),
            pa.list_(pa.float64()),
            pa.timestamp("ns", "UTC"),
        )
    },
    "list": pa.array([["a", "ä"], [], None], pa.list_(pa.string())),
    "fixed list": pa.array([[1, 2], None, [None, 4]], pa.list_(pa.int32(), 2)),
    "fixed list of categories": pa.array([["a", "b"], None, ["a", None]], pa.list_(STRINGS, 2)),
    "large_list_view": pa.array([[1], None, [2, 3]], pa.large_list_view(pa.int16())),
    "struct": pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": "ä"}]),
    "struct of all": pa.array(
        [{"d": Decimal("1.5"), "t": NOON, "l": [b"\xff"]}, None],
        pa.struct([("d", pa.decimal128(3, 1)), ("t", pa.timestamp("ns")), ("l", pa.list_(pa.binary()))]),
    ),
    "struct of null": pa.array([{"a": None}, None], pa.struct([("a", pa.null())])),
    "twins": pa.StructArray.from_arrays([pa.array([1, 2]), pa.array([3, 4])], names=["a", "a"]),
    "map": pa.array([[("k", 1), ("l", None)], None, []], pa.map_(pa.string(), pa.int32())),
    "map of maps": pa.array([[("k", [("x", [1])])], None], pa.map_(pa.string(), pa.map_(STRINGS, pa.list_(pa.int8())))),
    "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0123456789abcdef", None], pa.binary(16))),
    "json": pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": 1}', None])),
    "bool8": pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, None], pa.int8())),
    "tensor": pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.int32(), [2]), pa.array([[1, 2], [3, 4]], pa.list_(pa.int32(), 2))
    ),
}
UNWRITABLE = {
    "no fields": pa.array([{}, None], pa.struct([])),
    "run ends": pa.RunEndEncodedArray.from_arrays([2, 3], ["ab", "c"]),
    "interval": pa.array([(1, 2, 3)], pa.month_day_nano_interval()),
}
"""Types that no Parquet file has."""
TEXTS = {
    "string",
    "large_string",
    "string_view",
    "json",
    *(name for name in CASES if name.startswith("dictionary<values=")),
    "binary",
    "large_binary",
    "binary_view",
}
