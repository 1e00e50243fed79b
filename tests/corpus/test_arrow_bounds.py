"""Arrow of other writers, and how much of a file is read and held at once, however its values lie."""

import dataclasses
import io
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from pipeline.corpus.decoders import raw
from pipeline.corpus.decoders.ipc import rows
from pipeline.corpus.decoders.ipc.arrays import ArrayReader
from pipeline.corpus.decoders.ipc.body import Body
from pipeline.corpus.decoders.ipc.layouts import Column, Node
from pipeline.corpus.decoders.ipc.messages import read_layout, read_messages
from pipeline.corpus.decoders.ipc.rows import arrow_rows
from pipeline.corpus.decoders.plain import plain
from pipeline.corpus.decoders.raw import FileFormatError
from pipeline.rejects import Reason
from tests.corpus.test_arrow import TABLE, read_all, shards_of, small_bounds, written


@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
def test_what_polars_writes_is_read(compression: Any, tmp_path: Path) -> None:
    """Its schema lies before the batches without the length that pyarrow writes there, and strings are views."""
    words = ["ab", "a longer word than a view holds", None, "c"] * 9
    frame = pl.DataFrame({"text": words, "n": range(36)}).with_columns(
        category=pl.col("text").cast(pl.Categorical),
        enum=pl.col("text").cast(pl.Enum(sorted({word for word in words if word}))),
        lists=pl.concat_list("text", "text"),
        doc=pl.struct("text", "n"),
    )
    frame.write_ipc(tmp_path / "a.arrow", compression=compression)
    frame.write_ipc_stream(tmp_path / "b.arrow", compression=compression)
    keep = ["category", "enum", "lists", "doc"]
    expected = frame.filter(pl.col("text").is_not_null()).select("text", *keep).rows()
    for shard in shards_of(tmp_path, keep=keep):
        assert shard.read_error is None
        assert [
            tuple(row.values()) for row in shard.rows.select(["text", *(f"keep.{k}" for k in keep)]).to_pylist()
        ] == expected


class Watched(io.BytesIO):
    """A file that notes which ranges of it are read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.ranges: list[tuple[int, int]] = []

    def read(self, size: int | None = -1, /) -> bytes:
        self.ranges.append((self.tell(), size or 0))
        return super().read(size)


def shuffled(views: pa.Array) -> pa.Array:
    """Return views in another order, which show the same stored values."""
    valid, shown, *data = views.buffers()
    mixed = np.random.default_rng(0).permutation(np.frombuffer(shown, "V16", len(views)))
    return pa.Array.from_buffers(views.type, len(views), [valid, pa.py_buffer(mixed.tobytes()), *data])


LONG = pa.array([f"a text of more than twelve bytes {row}" for row in range(5000)])
LAID = {
    "views": shuffled(LONG.cast(pa.string_view())),
    "lists": pa.ListViewArray.from_arrays(range(5000), [1] * 5000, LONG),
    "runs": pa.RunEndEncodedArray.from_arrays(range(1, 5001), LONG),
}


@pytest.mark.parametrize("case", LAID)
def test_what_is_read_at_once_does_not_grow_with_a_batch(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "STRETCH_ROWS", 50)
    table = pa.table({"k": LAID[case]})
    file = Watched(written(table, stream=True, batch_rows=5000))
    found = [chunk.columns["k"] for chunk in arrow_rows(file, len(file.getvalue()), ["k"])]
    assert max(size for _, size in file.ranges) <= 50 * 60
    assert max(map(len, found)) == 50
    chunks = [values for values in found if isinstance(values, pa.Array)]
    expected = pa.concat_arrays(map(plain, table["k"].chunks)).cast(chunks[0].type)
    assert pa.concat_arrays(chunks).to_pylist() == expected.to_pylist()


def test_values_of_views_are_read_in_the_order_in_which_they_lie() -> None:
    """In that of the rows, each would be fetched with all that lies around it."""
    data = written(pa.table({"k": LAID["views"]}), stream=False, batch_rows=5000)
    file = Watched(data)
    assert sum(map(len, arrow_rows(file, len(data), ["k"]))) == 5000
    values = [position for position, size in file.ranges if data[position : position + size].startswith(b"a text")]
    assert len(values) == 5000
    assert values == sorted(values)


def test_streams_that_were_put_together_are_not_cut_to_the_first() -> None:
    one = written(TABLE, stream=True, batch_rows=16)
    chunks = arrow_rows(io.BytesIO(one * 2), 2 * len(one), ["text"])
    assert sum(len(chunk) for chunk in islice(chunks, 4)) == len(TABLE)
    with pytest.raises(FileFormatError, match=f"ends at byte {len(one) - 8:,}, and more follows: several streams"):
        next(chunks)


@pytest.mark.parametrize(
    "values",
    [
        pa.array([bytes(5000)]).cast(pa.large_binary()),
        pa.array([[True] * 5000]),
        pa.array([[7] * 900], pa.list_(pa.uint8())),
    ],
)
def test_a_row_is_judged_by_its_own_bytes(values: pa.Array, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by those that are counted before it is read."""
    monkeypatch.setattr(raw, "MAX_ROW_BYTES", 5100)
    data = written(pa.table({"k": values}), stream=True, batch_rows=1)
    with small_bounds(100, 9):
        (row,) = read_all(data, ["k"])
    assert row["k"] == values[0].as_py()


def test_lists_of_nothing_are_no_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "MAX_ROW_BYTES", 1000)
    data = written(pa.table({"k": pa.array([[None] * 100_000])}), stream=True, batch_rows=1)
    with small_bounds(1000, 9):
        (row,) = read_all(data, ["k"])
    assert row["k"].reason is Reason.TOO_LONG


def test_what_is_added_to_a_dictionary_counts_with_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = io.BytesIO()
    words = [chr(65 + number) * 300 for number in range(6)]
    batches = [pa.record_batch({"k": pa.array(words[:end]).dictionary_encode()}) for end in (2, 4, 6)]
    options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)
    with pa.ipc.new_stream(sink, batches[0].schema, options=options) as out:
        for batch in batches:
            out.write_batch(batch)
    assert len(read_all(sink.getvalue(), ["k"])) == 12
    monkeypatch.setattr(rows, "MAX_UNPACKED_BYTES", 1500)
    with pytest.raises(FileFormatError, match="a dictionary has more than 1,500 bytes"):
        read_all(sink.getvalue(), ["k"])


def test_the_compression_of_arrow_0_17_is_refused_by_name() -> None:
    sink = io.BytesIO()
    batch = pa.record_batch({"k": ["a"]})
    with pa.ipc.new_stream(sink, batch.schema) as out:
        out.write_batch(batch, custom_metadata={"ARROW:experimental_compression": "lz4"})
    with pytest.raises(FileFormatError, match=r"compressed as only Arrow 0.17 did; write it anew"):
        read_all(sink.getvalue(), ["k"])


def test_a_compressed_buffer_of_nothing_has_nothing() -> None:
    """Java writes one as its length, which is 0."""
    data = written(pa.table({"k": ["a"]}), stream=True, batch_rows=1, compression="lz4")
    file = io.BytesIO(data)
    (message,) = read_messages(file, read_layout(file, len(data)), len(data))
    stored = Body(io.BytesIO(bytes(8)), dataclasses.replace(message, body=0), message.header)
    column = Column(Node(pa.string(), pa.string()), 0, [(0, 8)] * 3, [])
    assert ArrayReader(stored, {}).most_bytes(column, (), 0, 0) == 0
    assert ArrayReader(stored, {}).array(column, 0, 0).to_pylist() == []
