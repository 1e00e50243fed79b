"""Arrow files and streams: what pyarrow reads, in any stretches; damage costs the rest of a file, and nothing else."""

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.columns import Columns, resolve_columns
from pipeline.corpus.decoders import raw
from pipeline.corpus.decoders.ipc import body, rows
from pipeline.corpus.decoders.ipc.rows import arrow_rows
from pipeline.corpus.decoders.plain import plain
from pipeline.corpus.decoders.raw import FileFormatError
from pipeline.corpus.listing import list_inputs
from pipeline.corpus.reader import Shard, read_shards
from pipeline.errors import InputError
from pipeline.rejects import Reason
from pipeline.storage.locate import storage_of
from tests.support.arrow_types import CASES, UNWRITABLE

ALL = CASES | UNWRITABLE | {
    "runs with nulls": pa.RunEndEncodedArray.from_arrays([1, 3, 4], ["ab", None, "c"]),
    "long views": pa.array(["x" * 50, "short", None, "y" * 13], pa.string_view()),
    "list of views": pa.array([["x" * 50], None, ["y", "z" * 20]], pa.list_(pa.string_view())),
}  # fmt: skip


def written(table: pa.Table, *, stream: bool, batch_rows: int, compression: str | None = None) -> bytes:
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression, unify_dictionaries=not stream)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema, options=options) as out:
        out.write_table(table, max_chunksize=batch_rows)
    return sink.getvalue()


def read_all(data: bytes, names: list[str]) -> list[dict[str, Any]]:
    """Read all rows as Python values, rejects as their reasons; check that they are numbered one after the other."""
    found: list[dict[str, Any]] = []
    for chunk in arrow_rows(io.BytesIO(data), len(data), names):
        assert chunk.start == len(found)
        assert len(chunk) <= raw.CHUNK_ROWS
        values = {
            name: column.to_pylist() if isinstance(column, pa.Array) else column
            for name, column in chunk.columns.items()
        }
        found += [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    return found


@contextlib.contextmanager
def small_bounds(stretch: int, chunk_rows: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "STRETCH_BYTES", stretch)
        patch.setattr(raw, "CHUNK_ROWS", chunk_rows)
        yield


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("case", ALL)
def test_a_column_of_any_type_is_what_pyarrow_reads(case: str, stream: bool, compression: str | None) -> None:
    values = ALL[case]
    table = pa.table({"other": values, "k": values})
    table = table.slice(min(1, len(table) - 1))
    data = written(table, stream=stream, batch_rows=2, compression=compression)
    expected = pa.concat_arrays(list(map(plain, table["k"].chunks)))
    for stretch in (1 << 20, 1):
        with small_bounds(stretch, 1024):
            chunks = [chunk.columns["k"] for chunk in arrow_rows(io.BytesIO(data), len(data), ["k"])]
        found = pa.concat_arrays(chunks).view(expected.type)
        assert found.validate(full=True) is None
        assert found.to_string(window=100) == expected.to_string(window=100)


kinds = st.sampled_from([pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())])
docs = st.lists(
    st.none()
    | st.fixed_dictionaries({"text": st.none() | st.text(max_size=30), "n": st.lists(st.integers(0, 9), max_size=3)}),
    min_size=1,
    max_size=30,
)


@given(
    values=docs, kind=kinds, stream=st.booleans(), size=st.integers(1, 40), stretch=st.integers(1, 400), data=st.data()
)
def test_stretches_of_any_size_give_the_same_rows(
    values: list[Any], kind: pa.DataType, stream: bool, size: int, stretch: int, data: st.DataObject
) -> None:
    texts = pa.array([value and value["text"] for value in values], pa.string()).cast(kind)
    numbers = pa.array([value and value["n"] for value in values], pa.list_(pa.int64()))
    nulls = pa.array([value is None for value in values])
    table = pa.table({"x": texts, "doc": pa.StructArray.from_arrays([texts, numbers], ["text", "n"], mask=nulls)})
    packed = written(table, stream=stream, batch_rows=size, compression=data.draw(st.sampled_from([None, "zstd"])))
    with small_bounds(stretch, data.draw(st.integers(1, 20))):
        found = read_all(packed, ["doc.text", "doc.n", "x"])
    expected = [value or {"text": None, "n": None} for value in values]
    as_text = [{**row, "doc.text": _decoded(row["doc.text"]), "x": _decoded(row["x"])} for row in found]
    assert as_text == [{"doc.text": row["text"], "doc.n": row["n"], "x": row["text"]} for row in expected]


def _decoded(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


TABLE = pa.table(
    {
        "text": pa.array([f"text {row} " * 3 for row in range(60)]),
        "view": pa.array([f"a longer view {row}" for row in range(60)], pa.string_view()),
        "word": pa.array([f"w{row % 7}" for row in range(60)]).dictionary_encode(),
        "list": pa.array([[row, None] for row in range(60)]),
        "runs": pa.RunEndEncodedArray.from_arrays([20, 60], ["a", "b"]),
    }
)


@given(
    stream=st.booleans(),
    compression=st.sampled_from([None, "lz4", "zstd"]),
    flips=st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(1, 255)), min_size=1, max_size=4),
    cut=st.none() | st.integers(0, 1 << 30),
)
def test_damage_raises_what_decoders_raise(
    stream: bool, compression: str | None, flips: list[tuple[int, int]], cut: int | None
) -> None:
    data = bytearray(written(TABLE, stream=stream, batch_rows=16, compression=compression))
    for position, change in flips:
        data[position % len(data)] ^= change
    damaged = bytes(data if cut is None else data[: cut % len(data)])
    with contextlib.suppress(*raw.DAMAGE, FileFormatError):
        for row in read_all(damaged, TABLE.column_names):
            assert {*row} == {*TABLE.column_names}


@given(cut=st.integers(0, 1 << 30))
def test_the_batches_before_a_cut_are_read(cut: int) -> None:
    data = written(TABLE, stream=True, batch_rows=16)
    part = data[: cut % len(data)]
    whole, found = read_all(data, ["text"]), []
    with contextlib.suppress(FileFormatError):
        for chunk in arrow_rows(io.BytesIO(part), len(part), ["text"]):
            values = chunk.columns["text"]
            assert isinstance(values, pa.Array)
            found += values.to_pylist()
    assert found == [row["text"] for row in whole[: len(found)]]
    in_file = written(TABLE, stream=False, batch_rows=16)
    with pytest.raises(FileFormatError):
        read_all(in_file[: cut % len(in_file)], ["text"])


def shards_of(path: Path | str, columns: Columns | None = None, keep: list[str] | None = None) -> list[Shard]:
    files = list_inputs(str(path)).files
    resolved = resolve_columns(files, columns or Columns(), keep=keep or [])
    return [shard for file in files for shard in read_shards(file, resolved)]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "it is empty: not even a schema"),
        (b"FEA1" + bytes(60), "it is Feather of version 1; write it as version 2"),
        (b'{"text": "a"}\n' * 9, "it is no Arrow file|there is no message|cut off"),
        (b"ARROW1\0\0", "it has no footer: it was cut off"),
        (written(TABLE, stream=False, batch_rows=9)[:-1], "it has no footer: it was cut off"),
    ],
)  # fmt: skip
def test_what_is_no_arrow_file_is_a_reject_that_says_why(data: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "a.arrow").write_bytes(written(pa.table({"text": ["fine"]}), stream=True, batch_rows=1))
    (tmp_path / "b.feather").write_bytes(data)
    good, bad = shards_of(tmp_path)
    assert good.rows["text"].to_pylist() == ["fine"]
    assert (len(bad), bad.last) == (0, True)
    assert re.search(why, str(bad.read_error))


def test_empty_files_and_batches_have_no_rows(tmp_path: Path) -> None:
    schema = pa.schema([("text", pa.string())])
    for name, stream in {"a.arrow": True, "b.arrow": False}.items():
        (tmp_path / name).write_bytes(written(schema.empty_table(), stream=stream, batch_rows=1))
    empty = pa.record_batch([pa.array([], pa.string())], schema=schema)
    with pa.ipc.new_stream(str(tmp_path / "c.arrow"), schema) as out:
        for batch in (empty, pa.record_batch([pa.array(["x", None])], schema=schema), empty):
            out.write_batch(batch)
    shards = shards_of(tmp_path)
    assert [(shard.rows["text"].to_pylist(), len(shard.rejects), shard.read_error) for shard in shards] == [
        ([], 0, None), ([], 0, None), (["x"], 1, None),
    ]  # fmt: skip


def test_invalid_utf8_and_rows_that_are_too_long_cost_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw, "MAX_ROW_BYTES", 1000)
    values = pa.array([b"a", b"\xff", b"x" * 5000, b"b", b"y" * 90_000, b"c"]).view(pa.string())
    (tmp_path / "a.arrow").write_bytes(written(pa.table({"text": values}), stream=False, batch_rows=6))
    for stretch in (1 << 20, 10_000):
        monkeypatch.setattr(rows, "STRETCH_BYTES", stretch)
        (shard,) = shards_of(tmp_path)
        assert shard.rows["row"].to_pylist() == [0, 3, 5]
        assert list(zip(*(shard.rejects[name].to_pylist() for name in ("row", "reason")), strict=True)) == [
            (1, Reason.INVALID_UTF8), (2, Reason.TOO_LONG), (4, Reason.TOO_LONG),
        ]  # fmt: skip


def test_values_that_are_stored_once_are_not_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand views, or lists, or numbers of one value: as rows they would take a thousand times its memory."""
    monkeypatch.setattr(rows, "STRETCH_BYTES", 100_000)
    text = "x" * 50_000
    _, one, data = pa.array([text], pa.string_view()).buffers()
    view = pa.Array.from_buffers(pa.string_view(), 1000, [None, pa.py_buffer(one.to_pybytes() * 1000), data])
    lists = pa.ListViewArray.from_arrays([0] * 1000, [5000] * 1000, pa.array(range(5000)))
    for values in (view, lists, pa.RunEndEncodedArray.from_arrays([1000], [text])):
        data = written(pa.table({"k": values}), stream=False, batch_rows=1000)
        most = 0
        for chunk in arrow_rows(io.BytesIO(data), len(data), ["k"]):
            assert isinstance(chunk.columns["k"], pa.Array)
            most = max(most, chunk.columns["k"].nbytes)
        assert most <= raw.CHUNK_BYTES + 200_000


def test_compressed_buffers_and_dictionaries_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "MAX_UNPACKED_BYTES", 1000)
    monkeypatch.setattr(rows, "MAX_UNPACKED_BYTES", 1000)
    table = pa.table({"text": ["a" * 400] * 3, "other": ["b"] * 3})
    data = written(table, stream=True, batch_rows=3, compression="zstd")
    with pytest.raises(FileFormatError, match=r"a batch has 1,2\d\d bytes to unpack at once; 1,000 are the most"):
        read_all(data, ["text"])
    assert len(read_all(data, ["other"])) == 3
    words = pa.table({"text": pa.array(["a" * 600, "b" * 600]).dictionary_encode()})
    with pytest.raises(FileFormatError, match="a dictionary has more than 1,000 bytes"):
        read_all(written(words, stream=True, batch_rows=3), ["text"])


def test_dictionaries_of_a_stream_grow_and_are_replaced() -> None:
    sink = io.BytesIO()
    batches = [
        pa.record_batch({"k": pa.array(words).dictionary_encode()}) for words in (["a", "b"], ["a", "b", "c"], ["z"])
    ]
    options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)
    with pa.ipc.new_stream(sink, batches[0].schema, options=options) as out:
        for batch in batches:
            out.write_batch(batch)
    assert [row["k"] for row in read_all(sink.getvalue(), ["k"])] == [b"a", b"b", b"a", b"b", b"c", b"z"]


def test_structs_and_errors_are_those_of_other_formats(place: str) -> None:
    table = pa.table({"doc": [{"text": "a", "n": 1}, None], "u": [[1], [2]]})
    storage_of(place).make_folder(f"{place}/in")
    storage_of(place).write(f"{place}/in/a.arrow", written(table, stream=True, batch_rows=1))
    storage_of(place).write(f"{place}/in/b.feather", written(table, stream=False, batch_rows=2, compression="lz4"))
    for shard in shards_of(f"{place}/in", Columns(text="doc.text"), ["doc.n"]):
        assert shard.rows.select(["text", "keep.n"]).to_pylist() == [{"text": "a", "keep.n": 1}]
        assert shard.rejects["reason"].to_pylist() == [Reason.NULL_TEXT]
    with pytest.raises(InputError, match=r"doc.x: .*a.arrow has no such column; doc has text, n"):
        shards_of(f"{place}/in", Columns(text="doc.x"))


def test_a_union_is_refused_by_name_and_costs_no_other_column() -> None:
    types = pa.array([0, 1], pa.int8())
    sparse = pa.UnionArray.from_sparse(types, [pa.array([1, 2]), pa.array(["a", "b"])])
    dense = pa.UnionArray.from_dense(types, pa.array([0, 0], pa.int32()), [pa.array([1]), pa.array(["b"])])
    data = written(pa.table({"s": sparse, "d": dense, "k": ["x", "y"]}), stream=True, batch_rows=2)
    assert [row["k"] for row in read_all(data, ["k"])] == [b"x", b"y"]
    for name in ("s", "d"):
        with pytest.raises(FileFormatError, match=r"a column is of type .*union.*, which is not read"):
            read_all(data, [name])
