"""Reading is bounded: what is too long costs itself, what cannot be read is named, and memory does not follow the file."""

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.columns import Columns
from pipeline.corpus.decoders import batches, parquet
from pipeline.corpus.decoders.lines import Lines, content_of
from pipeline.corpus.decoders.pages import read_pages
from pipeline.corpus.decoders.raw import RawRows
from pipeline.corpus.decoders.sizes import row_bytes
from pipeline.corpus.formats import iter_sections
from pipeline.corpus.listing import list_inputs
from pipeline.corpus.reader import SHARD_BYTES, read_shards
from pipeline.rejects import Reject
from tests.support.compressed import COMPRESS, packed
from tests.support.jobs import REPOSITORY

LIMIT = 1000


def rows_of(path: Path, columns: Columns | None = None) -> list[tuple[int, str | None, str | None]]:
    """Return row number, text and reason of every row, in order."""
    (file,) = list_inputs(str(path)).files
    found: list[tuple[int, str | None, str | None]] = []
    for shard in read_shards(file, columns or Columns(text="text")):
        assert shard.read_error is None
        rows: list[dict[str, Any]] = shard.rows.to_pylist() + shard.rejects.to_pylist()
        found += sorted((row["row"], row.get("text"), row.get("reason")) for row in rows)
    return found


@pytest.fixture
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.corpus.decoders.raw.MAX_ROW_BYTES", LIMIT)
    monkeypatch.setattr("pipeline.corpus.decoders.lines.BLOCK_BYTES", 300)


HEADERS = {"txt": "", "jsonl": "", "csv": "text,n\n", "tsv": "text\tn\n"}
ROWS = {"txt": "{}\n", "jsonl": '{{"text": "{}"}}\n', "csv": '"{}",1\n', "tsv": "{}\t1\n"}


@pytest.mark.usefixtures("low_limit")
@pytest.mark.parametrize("suffix", ["", *COMPRESS])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "tsv"])
def test_a_row_that_is_too_long_costs_itself(kind: str, suffix: str, tmp_path: Path) -> None:
    texts = ["first", "x" * 5000, "second", "y" * (LIMIT + 1), "z" * (LIMIT - 20), "ä" * 700]
    path = tmp_path / f"a.{kind}{suffix}"
    content = HEADERS[kind] + "".join(ROWS[kind].format(text) for text in texts)
    path.write_bytes(packed(path, content.encode()))
    long = "too_long"
    assert rows_of(path) == [
        (0, "first", None),
        (1, None, long),
        (2, "second", None),
        (3, None, long),
        (4, texts[4], None),
        (5, None, long),
    ]


@pytest.mark.usefixtures("low_limit")
@pytest.mark.parametrize("options", [{}, {"use_dictionary": False}, {"row_group_size": 2}, {"data_page_size": 1}])
@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_binary(), pa.dictionary(pa.int8(), pa.string()), pa.string_view()]
)
def test_a_row_of_parquet_that_is_too_long_costs_itself(
    kind: pa.DataType, options: dict[str, Any], tmp_path: Path
) -> None:
    texts = ["first", "x" * 5000, "second", "y" * (LIMIT + 1), "z" * LIMIT, None]
    pq.write_table(pa.table({"text": pa.array(texts).cast(kind)}), tmp_path / "a.parquet", **options)
    reasons = [None, "too_long", None, "too_long", None, "null_text"]
    expected = [
        (row, None if reason else text, reason) for row, (text, reason) in enumerate(zip(texts, reasons, strict=True))
    ]
    assert rows_of(tmp_path / "a.parquet") == expected


@pytest.mark.usefixtures("low_limit")
def test_a_row_is_as_long_as_all_that_is_read_of_it(tmp_path: Path) -> None:
    table = pa.table({"text": ["a" * 600] * 2, "k": [["b" * 300, "c" * 300], ["d"]], "unread": ["e" * 5000] * 2})
    pq.write_table(table, tmp_path / "a.parquet")
    columns = Columns(text="text", keep=pa.schema([("k", pa.list_(pa.string()))]))
    assert [reason for _, _, reason in rows_of(tmp_path / "a.parquet", columns)] == ["too_long", None]
    assert [reason for _, _, reason in rows_of(tmp_path / "a.parquet")] == [None, None]


@pytest.mark.usefixtures("low_limit")
@given(
    pieces=st.lists(
        st.sampled_from([b"\n", b"\r", b"\r\n", b"", b"a", b"bc" * 40, b"d" * 900, b"e" * 3000]), max_size=40
    ),
    block=st.integers(1, 400),
)
def test_lines_are_those_that_python_finds(pieces: list[bytes], block: int) -> None:
    content = b"".join(pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.corpus.decoders.lines.BLOCK_BYTES", block)
        patch.setattr("pipeline.corpus.decoders.raw.MAX_ROW_BYTES", LIMIT)
        found = list(Lines(io.BytesIO(content), None))
    expected = content.splitlines(keepends=True)
    assert len(found) == len(expected)
    for line, right in zip(found, expected, strict=True):
        if len(right) > LIMIT:
            assert isinstance(line, Reject)
            assert f"the line has {len(right):,} bytes" in line.detail
        else:
            assert line == right
            assert [content_of(right)] == right.splitlines()


@given(
    sizes=st.lists(st.integers(0, 30) | st.integers(0, 3000), min_size=1, max_size=60),
    group=st.integers(1, 60),
    page=st.integers(1, 4000),
    encoding=st.sampled_from([None, "PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"]),
    repeated=st.booleans(),
)
def test_batches_of_parquet_are_bounded_whatever_the_encoding(
    sizes: list[int],
    group: int,
    page: int,
    encoding: str | None,
    repeated: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    texts = [("a" if repeated else str(number) * 9)[:1] * size for number, size in enumerate(sizes)]
    path = tmp_path_factory.mktemp("batches") / "a.parquet"
    how: dict[str, Any] = (
        {"use_dictionary": True}
        if encoding is None
        else {
            "use_dictionary": False,
            "column_encoding": {"text": encoding},
        }
    )
    pq.write_table(
        pa.table({"text": texts}), path, row_group_size=group, data_page_size=page, write_batch_size=3, **how
    )
    taken: list[pa.RecordBatch] = []
    chunks_of = batches.chunks_of

    def watched(batch: pa.RecordBatch, *rest: Any) -> Iterator[RawRows]:
        taken.append(batch)
        return chunks_of(batch, *rest)

    (file,) = list_inputs(str(path)).files
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "BATCH_BYTES", 5000)
        patch.setattr(parquet, "chunks_of", watched)
        for section in iter_sections(file, ["text"]):
            assert sum(map(len, section.chunks)) == len(sizes)
    assert [text for batch in taken for text in batch["text"].to_pylist()] == texts
    for batch in taken:
        assert len(batch) == 1 or row_bytes(batch["text"]).sum() <= 5000


def test_page_headers_are_read_as_they_were_written(tmp_path: Path) -> None:
    for version in ("1.0", "2.0"):
        path = tmp_path / f"{version}.parquet"
        table = pa.table({"text": [f"{number:06}" for number in range(50_000)], "n": [[1, 2]] * 50_000})
        pq.write_table(
            table,
            path,
            data_page_version=version,
            data_page_size=20_000,
            write_statistics=True,
            write_page_checksum=True,
        )
        metadata = pq.read_metadata(path)
        with path.open("rb") as stored:
            for column in (0, 1):
                chunk = metadata.row_group(0).column(column)
                pages = list(read_pages(stored, chunk))
                assert sum(page.values for page in pages if not page.is_dictionary) == chunk.num_values
                assert sum(page.size for page in pages) < chunk.total_uncompressed_size  # which has the headers too
                assert sum(page.size for page in pages) > 0.9 * chunk.total_uncompressed_size


def test_shards_are_bounded_in_bytes_and_their_bounds_do_not_depend_on_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.corpus.reader.SHARD_BYTES", 10_000)
    texts = ["a" * (7 * number % 4000) for number in range(300)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    (file,) = list_inputs(str(tmp_path)).files
    bounds = set()
    for rows in (1, 7, 1024):
        monkeypatch.setattr("pipeline.corpus.decoders.raw.CHUNK_ROWS", rows)
        shards = list(read_shards(file, Columns(text="text")))
        assert all(shard.rows.nbytes < 12_000 for shard in shards)
        bounds.add(tuple((shard.start, shard.span) for shard in shards))
    assert len(bounds) == 1


def test_memory_that_is_not_there_costs_the_file_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"text": ["a"] * 3000}), tmp_path / "a.parquet", row_group_size=1000)
    (file,) = list_inputs(str(tmp_path)).files
    read = batches.chunks_of

    def fail(batch: pa.RecordBatch, columns: list[str], start: int, *rest: Any) -> Iterator[RawRows]:
        if start == 1000:
            raise pa.ArrowMemoryError("malloc of size 9223372036854775744 failed")
        return read(batch, columns, start, *rest)

    monkeypatch.setattr(parquet, "chunks_of", fail)
    monkeypatch.setattr("pipeline.corpus.formats.SECTION_ROWS", 1000)
    shards = list(read_shards(file, Columns(text="text")))
    assert [(shard.start, len(shard), shard.read_error) for shard in shards] == [
        (0, 1000, None),
        (1000, 0, "it takes more memory than there is"),
        (2000, 1000, None),
    ]


MIB = 1 << 20
PEAK_OF = f"""
import re, sys
sys.path.insert(0, {str(REPOSITORY)!r})
from pipeline.corpus.columns import Columns
from pipeline.corpus.listing import list_inputs
from pipeline.corpus.reader import read_shards
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
(file,) = list_inputs(sys.argv[1]).files
before = peak()
rows = 0
for shard in read_shards(file, Columns(text="text")):
    rows += len(shard)
print(rows, peak() - before, shard.read_error)
"""


@pytest.mark.parametrize(
    "name", ["line.txt.gz", "quote.csv.zst", "array.jsonl.gz", "dictionary.parquet", "group.parquet", "batch.arrow"]
)
def test_memory_does_not_follow_the_file(name: str, tmp_path: Path) -> None:
    """Each of these took from 0.4 to 1.5 GB, more the longer it was; docs/results/odd-inputs has worse ones, measured."""
    path = tmp_path / name
    if name == "dictionary.parquet":
        pq.write_table(pa.table({"text": ["a" * 300_000] * 1024}), path, compression="zstd")
    elif name in ("group.parquet", "batch.arrow"):
        texts = pa.array([f"{number}" * 100 for number in range(600_000)])
        if name == "group.parquet":
            pq.write_table(pa.table({"text": texts}), path, row_group_size=600_000, use_dictionary=False)
        else:
            with pa.ipc.new_file(str(path), pa.schema([("text", pa.string())])) as writer:
                writer.write_table(pa.table({"text": texts}))
    else:
        start = {"line.txt.gz": b"", "quote.csv.zst": b'text,n\n"', "array.jsonl.gz": b"["}[name]
        with pa.output_stream(path, compression="zstd" if name.endswith("zst") else "gzip") as out:
            out.write(start)
            for _ in range(400):
                out.write((b"a" * 1023 + b"\n") * 1024 if name == "quote.csv.zst" else b"a" * MIB)
    done = subprocess.run([sys.executable, "-c", PEAK_OF, str(path)], capture_output=True, text=True, check=True)
    rows, peak, _ = done.stdout.split(" ", 2)
    assert int(rows) == {
        "dictionary.parquet": 1024,
        "group.parquet": 600_000,
        "batch.arrow": 600_000,
        "array.jsonl.gz": 0,
    }.get(name, 1)
    assert float(peak) < 8 * SHARD_BYTES / MIB


def test_a_bomb_of_good_rows_among_small_files_is_not_read_at_once(tmp_path: Path) -> None:
    """A file is a stream of shards, however much it holds: the first is there before the rest is unpacked."""
    with pa.output_stream(tmp_path / "a.jsonl.gz", compression="gzip") as out:
        for _ in range(50):
            out.write(b'{"text": "a"}\n' * 20_000)
    (file,) = list_inputs(str(tmp_path)).files
    assert next(read_shards(file, Columns(text="text"))).last is False
