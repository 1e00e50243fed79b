"""All types of Arrow in all roles: what is kept comes back as it went in, or its row is a reject."""

import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.bulk.bundle import Bundle
from pipeline.clock import Clock
from pipeline.corpus.columns import Columns, resolve_columns
from pipeline.corpus.decoders.plain import plain, plain_type
from pipeline.corpus.kept import fit
from pipeline.corpus.listing import list_inputs
from pipeline.corpus.reader import Shard, read_shards
from pipeline.errors import InputError
from pipeline.output.parts import parquet_bytes
from tests.support.arrow_types import CASES, DAY, NOON, STRINGS, TEXTS, UNWRITABLE, UTC


def write(folder: Path, name: str, values: pa.Array, **options: Any) -> None:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table({"text": ["a"] * len(values), "k": values}), folder / name, **options)


def read(folder: Path, columns: Columns, keep: list[str]) -> tuple[Columns, list[Shard]]:
    files = list_inputs(str(folder)).files
    resolved = resolve_columns(files, columns, keep=keep)
    return resolved, [shard for file in files for shard in read_shards(file, resolved)]


def through_all_stages(shards: list[Shard]) -> pa.Table:
    """Take rows through a bundle, between processes and into a part, as a run does; return what a reader of the part finds."""
    block = Bundle.of_shards(shards, Clock()).to_arrow()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, block.schema) as out:
        out.write_table(block)
    rows = Bundle.from_arrow(pa.ipc.open_stream(sink.getvalue()).read_all()).rows
    return pq.read_table(pa.BufferReader(parquet_bytes(rows.select(["row", "keep.k"]))))


@pytest.mark.parametrize("case", CASES)
def test_a_kept_column_of_any_type_comes_back(case: str, tmp_path: Path) -> None:
    write(tmp_path / "in", "a.parquet", CASES[case])
    stored = pq.read_table(tmp_path / "in" / "a.parquet")["k"].combine_chunks()
    _, shards = read(tmp_path / "in", Columns(text="text"), ["k"])
    assert sum(len(shard.rejects) for shard in shards) == 0
    found = through_all_stages(shards)["keep.k"].combine_chunks()
    expected = pa.nulls(len(stored), pa.string()) if case == "null" else plain(stored)
    assert found.type == expected.type
    assert found.validate(full=True) is None
    assert exactly(found) == exactly(expected)


def exactly(array: pa.Array) -> str:
    """Write an array so that any difference shows, NaN and nanoseconds among them."""
    return array.to_string(window=100)


@pytest.mark.parametrize("kind", [pa.binary(0), pa.list_(pa.binary(0))])
def test_bytes_of_a_fixed_length_of_none_are_refused_by_name(kind: pa.DataType, tmp_path: Path) -> None:
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), pa.schema({"text": pa.string(), "k": kind})):
        pass
    with pytest.raises(InputError, match=r"keep k: .*which Parquet cannot hold"):
        resolve_columns(list_inputs(str(tmp_path)).files, Columns(), keep=["k"])


@pytest.mark.parametrize("case", UNWRITABLE)
def test_types_that_no_parquet_file_has_are_unpacked_or_refused_too(case: str) -> None:
    array, misfits = fit(plain(UNWRITABLE[case]), plain_type(UNWRITABLE[case].type))
    assert (len(array), misfits) == (len(UNWRITABLE[case]), [])


@pytest.mark.parametrize("case", CASES)
def test_a_column_of_any_type_is_text_or_refused_before_anything_starts(case: str, tmp_path: Path) -> None:
    values = CASES[case]
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": values, "other": ["a"] * len(values)}), tmp_path / "in" / "a.parquet")
    for columns, role in ((Columns(text="text"), "text"), (Columns(text="other", pair="text"), "pair")):
        if case not in TEXTS:
            with pytest.raises(InputError, match=r"in .* it is of type .*, not text"):
                read(tmp_path / "in", columns, [])
            continue
        _, shards = read(tmp_path / "in", columns, [])
        found = {row["row"]: row[role] for shard in shards for row in shard.rows.to_pylist()}
        reasons = {row["row"]: row["reason"] for shard in shards for row in shard.rejects.to_pylist()}
        for row, value in enumerate(plain(values).to_pylist()):
            try:
                text = value.decode() if isinstance(value, bytes) else value
            except UnicodeDecodeError:
                text = None
            assert found.get(row) == (text or None)
            assert (row in reasons) == (not text)


@pytest.mark.parametrize("case", CASES)
def test_a_later_text_column_of_any_type_costs_its_rows_at_most(case: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.txt").write_text("first")
    pq.write_table(pa.table({"text": CASES[case]}), tmp_path / "in" / "a.parquet")
    _, shards = read(tmp_path / "in", Columns(text="text"), [])
    assert all(shard.read_error is None for shard in shards)
    assert sum(map(len, shards)) == 1 + len(CASES[case])


@pytest.mark.parametrize("case", CASES)
def test_an_id_of_any_type_names_its_row_or_is_refused(case: str, tmp_path: Path) -> None:
    values = CASES[case]
    write(tmp_path / "in", "a.parquet", values)
    if pa.types.is_nested(plain_type(values.type)):
        with pytest.raises(InputError, match=r"id_column k: in .* it is of type .*, which names no row"):
            read(tmp_path / "in", Columns(text="text", id="k"), [])
        (tmp_path / "in" / "0.jsonl").write_text('{"text": "a", "k": "7"}\n')
    _, shards = read(tmp_path / "in", Columns(text="text", id="k"), [])
    rows = [
        row
        for shard in shards
        if shard.file.format == "parquet"
        for row in [*shard.rows.to_pylist(), *shard.rejects.to_pylist()]
    ]
    named: dict[str, set[str]] = {}
    for row in rows:
        value, default = exactly(values.slice(row["row"], 1)), f"a.parquet:{row['row']}"
        if row.get("reason"):
            assert (row["reason"], row["id"]) == ("bad_kept_value", default)
        elif pa.types.is_null(values.type) or any(absent in value for absent in ("null", "nan")):
            assert row["id"] == default
        else:
            named.setdefault(row["id"], set()).add(value)
    assert all(len(said) == 1 for said in named.values())  # two values, two names


@pytest.mark.parametrize("first", [name for name in CASES if name != "null"])
def test_a_later_file_of_any_type_is_converted_without_loss_or_rejected(first: str) -> None:
    """Whatever is kept is, converted back, what it was; what that cannot be said of is no value of the column."""
    kind = plain_type(CASES[first].type)
    kept = 0
    for second, values in CASES.items():
        source = plain(values)
        made, misfits = fit(source, kind)
        assert made.type == kind, second
        assert made.validate(full=True) is None
        assert len(made) == len(source)
        for row in range(len(source)):
            if row in misfits:
                assert not made[row].is_valid
                assert source[row].is_valid
            elif source[row].is_valid and not pa.types.is_null(source.type):
                kept += 1
                assert made[row].is_valid, (first, second, row)
                comes_back(made.slice(row, 1), source.slice(row, 1))
            else:
                assert not made[row].is_valid
    assert kept >= len(plain(CASES[first]).drop_null())


def comes_back(made: pa.Array, source: pa.Array) -> None:
    if pa.types.is_nested(source.type) and not pa.types.is_nested(made.type):
        return  # as JSON: see the test of that
    if "null" in str(source.type):
        return  # such as the list of nulls that an empty list is
    if pa.types.is_floating(source.type) and "nan" in str(source[0]):
        assert "nan" in str(made[0])
        return
    if pa.types.is_large_string(plain_type(source.type)) and pa.types.is_temporal(made.type):
        return
    assert made.cast(source.type).equals(source), (made, source)


@pytest.mark.parametrize(
    ("kind", "values", "kept"),
    [
        (pa.int64(), pa.array([1.0, 1.5, 1e300, -0.0]), [1, None, None, 0]),
        (pa.int64(), pa.array([True, False]), [None, None]),
        (pa.int8(), pa.array([1, 300]), [1, None]),
        (pa.bool_(), pa.array([0, 1, 2]), [None, None, None]),
        (pa.float32(), pa.array([0.5, 0.1, 1e300]), [0.5, None, None]),
        (pa.float64(), pa.array([2**53, 2**53 + 1]), [2.0**53, None]),
        (pa.date32(), pa.array([NOON, datetime.datetime(2024, 2, 29)]), [None, DAY]),
        (pa.timestamp("us"), pa.array([DAY]), [datetime.datetime(2024, 2, 29)]),
        (
            pa.timestamp("us"),
            pa.array([1, 1000], pa.timestamp("ns")),
            [None, datetime.datetime(1970, 1, 1, 0, 0, 0, 1)],
        ),
        (pa.timestamp("ns"), pa.array([2**62], pa.timestamp("us")), [None]),
        (pa.timestamp("us"), pa.array([NOON], pa.timestamp("us", "UTC")), [None]),
        (pa.timestamp("us", "UTC"), pa.array([NOON], pa.timestamp("us")), [None]),
        (
            pa.timestamp("us", "UTC"),
            pa.array([0], pa.timestamp("s", "Asia/Tokyo")),
            [datetime.datetime(1970, 1, 1, tzinfo=UTC)],
        ),
        (pa.timestamp("us"), pa.array([5]), [None]),
        (pa.int64(), pa.array([NOON]), [None]),
        (pa.decimal128(5, 2), pa.array([0.25, 0.126]), [Decimal("0.25"), None]),
        (pa.decimal128(5, 2), pa.array([7, 12345], pa.int32()), [Decimal("7.00"), None]),
        (pa.string(), pa.array([b"a", b"\xff"]), ["a", None]),
        (pa.string(), pa.array([1.5, 7.0, float("nan")]), ["1.5", "7", "nan"]),
        (pa.string(), pa.array([[1], [float("nan")]]), ["[1.0]", None]),
        (pa.string(), pa.array([{"a": DAY}, {"a": None}]), [None, '{"a": null}']),
        (pa.string(), CASES["twins"], [None, None]),
        (pa.list_(pa.int8()), pa.array([[1], [300], [1.5]]), [[1], None, None]),
        (pa.list_(pa.bool_()), pa.array([[1], [0]]), [None, None]),
        (pa.struct([("a", pa.int64())]), pa.array([{"a": 1, "b": 2}, {"a": 1, "b": None}]), [None, {"a": 1}]),
        (pa.struct([("a", pa.int64()), ("b", pa.int64())]), pa.array([{"a": 1}]), [{"a": 1, "b": None}]),
    ],
)
def test_conversions_that_arrow_makes_silently_are_misfits(
    kind: pa.DataType, values: pa.Array, kept: list[Any]
) -> None:
    made, misfits = fit(values, kind)
    assert made.to_pylist() == kept
    assert misfits == [row for row, value in enumerate(kept) if value is None]


@pytest.mark.parametrize(
    ("kind", "values", "kept"),
    [
        (pa.int64(), ["5", "007", "5.0", "", "0x1F", " 5", "x", None], [5, None, None, None, None, None, None, None]),
        (pa.float64(), ["1.5", "1.50", "1e5", "0.1", "nan", "1e400"], [1.5, 1.5, 1e5, 0.1, None, None]),
        (pa.float32(), ["0.5", "0.1", "0.10000000149011612"], [0.5, None, 0.10000000149011612]),
        (pa.bool_(), ["true", "false", "1", "True"], [True, False, None, None]),
        (pa.decimal128(5, 2), ["1.25", "1.2", "1.255"], [Decimal("1.25"), Decimal("1.20"), None]),
        (pa.date32(), ["2024-02-29", "2024-02-30", "2024-02-29 05:00"], [DAY, None, None]),
        (pa.timestamp("us"), ["2024-02-29T12:30:15", "2024-02-29T12:30:15Z", "12.5.2024"], [NOON, None, None]),
        (pa.list_(pa.string()), ["a"], [None]),
        (pa.int64(), [1, 1.0, 1.5, True, "1", 2**70, [1], None], [1, 1, None, None, 1, None, None, None]),
        (pa.decimal128(5, 2), [5, 5.25, "5.25", 0.125], [Decimal("5.00"), Decimal("5.25"), Decimal("5.25"), None]),
        (pa.bool_(), [True, 1, "true"], [True, None, True]),
        (pa.float64(), [1, 0.1, 2**53 + 1], [1.0, 0.1, None]),
        (pa.list_(pa.int64()), [[1], [], [1.5], ["a"], {"a": 1}], [[1], [], None, None, None]),
        (pa.struct([("a", pa.int64())]), [{"a": 1}, {"a": "x"}, {}], [{"a": 1}, None, {"a": None}]),
        (pa.string(), [1, True, [1, None], {"ä": 1}, "x", "\ud800"], ["1", "true", "[1, null]", '{"ä": 1}', "x", None]),
    ],
)
def test_values_of_json_and_csv_fit_without_loss_or_not_at_all(
    kind: pa.DataType, values: list[Any], kept: list[Any]
) -> None:
    for some, expected in [(values, kept), *(([value], [right]) for value, right in zip(values, kept, strict=True))]:
        made, misfits = fit(some, kind)
        assert made.to_pylist() == expected
        assert misfits == [row for row, value in enumerate(expected) if value is None and some[row] is not None]


def test_a_string_inside_a_list_that_is_no_utf8_costs_its_row(tmp_path: Path) -> None:
    values = pa.array([[b"a"], [b"\xff"], None], pa.list_(pa.binary())).view(pa.list_(pa.string()))
    write(tmp_path / "in", "a.parquet", values)
    _, (shard,) = read(tmp_path / "in", Columns(text="text"), ["k"])
    assert shard.rows["keep.k"].to_pylist() == [["a"], None]
    assert shard.rejects["row"].to_pylist() == [1]


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["a", "b"] * 10_000).dictionary_encode(),
        pa.array([["a"], ["b", "c"]] * 10_000, pa.list_(STRINGS)),
        pa.array([[{"x": "a"}], []] * 10_000, pa.list_(pa.struct([("x", STRINGS)]))),
    ],
)
def test_categories_in_small_row_groups_come_back(values: pa.Array, tmp_path: Path) -> None:
    times = pa.array([NOON] * len(values), pa.timestamp("us"))
    table = pa.table({"text": ["a"] * len(values), "k": values, "t": times})
    options = {"use_deprecated_int96_timestamps": True, "row_group_size": 1000}
    pq.write_table(table, tmp_path / "a.parquet", **options)
    for keep in (["k"], ["k", "t"]):
        _, shards = read(tmp_path, Columns(text="text"), keep)
        assert sum(len(shard.rejects) for shard in shards) == 0
        found = pa.concat_tables([shard.rows for shard in shards])
        assert found["keep.k"].to_pylist() == plain(values).to_pylist()


def test_a_struct_may_have_fields_that_are_required(tmp_path: Path) -> None:
    kind = pa.struct([pa.field("a", pa.int64(), nullable=False)])
    write(tmp_path / "in", "a.parquet", pa.array([{"a": 1}, {"a": 2}], kind))
    _, (shard,) = read(tmp_path / "in", Columns(text="text"), ["k"])
    assert shard.rows["keep.k"].to_pylist() == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.list_(pa.float64()), pa.array([[float("nan"), 1.0]], pa.list_(pa.float32()))),
        (pa.struct([("a", pa.float64())]), pa.array([{"a": float("nan")}], pa.struct([("a", pa.float32())]))),
        (pa.float32(), pa.array([float("nan")], pa.float32()).cast(pa.float16())),
    ],
)
def test_nan_is_nan_wherever_it_is(kind: pa.DataType, values: pa.Array) -> None:
    made, misfits = fit(values, kind)
    assert misfits == []
    assert repr(made.to_pylist()) == repr(values.to_pylist())


def test_no_values_fit_every_type() -> None:
    assert fit(pa.array([], pa.string()), pa.time64("us")) == (pa.array([], pa.time64("us")), [])


def test_a_name_with_a_dot_is_no_struct(tmp_path: Path) -> None:
    table = pa.table({"text": ["a"], "k": [1], "k.x": pa.array([NOON], pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "a.parquet", use_deprecated_int96_timestamps=True)
    _, (shard,) = read(tmp_path, Columns(text="text"), ["k"])
    assert shard.rows["keep.k"].to_pylist() == [1]


def test_times_of_96_bits_are_not_turned_round(tmp_path: Path) -> None:
    """As nanoseconds, which Arrow makes of them, the year 9999 is 1816; microseconds hold it, but no thousandth of one."""
    far = [datetime.datetime(9999, 12, 31), NOON, datetime.datetime(1, 1, 1), None]
    write(tmp_path / "far", "a.parquet", pa.array(far, pa.timestamp("us")), use_deprecated_int96_timestamps=True)
    _, (shard,) = read(tmp_path / "far", Columns(text="text"), ["k"])
    assert shard.rows["keep.k"].to_pylist() == far
    fine = pa.array([1, 2000, None, -1], pa.timestamp("ns"))
    write(tmp_path / "fine", "a.parquet", fine, use_deprecated_int96_timestamps=True)
    _, (shard,) = read(tmp_path / "fine", Columns(text="text"), ["k"])
    assert shard.rows["row"].to_pylist() == [1, 2]
    assert shard.rejects.select(["row", "reason"]).to_pylist() == [
        {"row": 0, "reason": "bad_kept_value"},
        {"row": 3, "reason": "bad_kept_value"},
    ]
