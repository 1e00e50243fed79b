"""Reading: every row of every format is either good or a reject with a reason, and shards partition a file."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline.source
from pipeline.errors import UserError
from pipeline.formats import file_columns
from pipeline.inputs import InputFile, list_inputs
from pipeline.source import Columns, Shard, read_shards

TEXT = Columns(text="text")


def read(path: Path, columns: Columns = TEXT) -> list[Shard]:
    (file,) = list_inputs(str(path)).files
    return list(read_shards(file, columns))


def rows_of(shards: list[Shard]) -> list[dict[str, Any]]:
    return [row for shard in shards for row in shard.rows.to_pylist()]


def reasons(shards: list[Shard]) -> list[str | None]:
    return [row["reason"] for row in rows_of(shards)]


def write_lines(path: Path, lines: list[bytes]) -> Path:
    data = b"".join(line + b"\n" for line in lines)
    if path.suffix == ".gz":
        data = gzip.compress(data)
    if path.suffix == ".zst":
        data = pa.compress(data, codec="zstd", asbytes=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.csv", "a.tsv.gz", "a.txt", "a.parquet"])
def test_all_formats_give_the_same_rows(name: str, tmp_path: Path) -> None:
    texts = ["first text", "zwei ä", "third, with a comma"]
    path = tmp_path / name
    if "jsonl" in name:
        write_lines(path, [json.dumps({"text": text}).encode() for text in texts])
    elif "csv" in name:
        write_lines(path, [b"n,text", *(f'1,"{text}"'.encode() for text in texts)])
    elif "tsv" in name:
        write_lines(path, [b"text\tn", *(f"{text}\t1".encode() for text in texts)])
    elif "txt" in name:
        write_lines(path, [text.encode() for text in texts])
    else:
        pq.write_table(pa.table({"text": texts}), path)
    (shard,) = read(path)
    assert shard.rows["text"].to_pylist() == texts
    assert shard.rows["id"].to_pylist() == [f"{name}:{row}" for row in range(3)]
    assert (shard.start, shard.last, shard.read_error, shard.share) == (0, True, None, 1.0)


def test_bad_jsonl_rows_cost_themselves_only(tmp_path: Path) -> None:
    lines = [
        b'{"text": "good"}',
        b'{"text": null}',
        b'{"text": "  "}',
        b'{"text": 7}',
        b'{"other": "x"}',
        b'{"text": "\xff\xfe"}',
        b'{"text": "\\ud800"}',
        b"{broken",
        b"[1]",
        b"",
        b'{"text": "good too"}',
    ]
    shards = read(write_lines(tmp_path / "a.jsonl", lines))
    assert reasons(shards) == [
        None,
        "null_text",
        "empty_text",
        "not_text",
        "missing_column",
        "invalid_utf8",
        "invalid_utf8",
        "invalid_json",
        "invalid_json",
        None,  # the blank line is no row
    ]
    assert "column 'text' holds int" in rows_of(shards)[3]["detail"]


def test_bad_csv_rows_cost_themselves_only(tmp_path: Path) -> None:
    lines = [b"id,text", b"1,good", b"2,\xff\xfe", b"3,a,b", b'4,"two\nlines"', b"5,", b"6,good"]
    shards = read(write_lines(tmp_path / "a.csv", lines), Columns(text="text", id="id"))
    assert reasons(shards) == [None, "invalid_utf8", "wrong_field_count", None, "empty_text", None]
    assert [row["id"] for row in rows_of(shards)] == ["1", "2", "a.csv:2", "4", "5", "6"]
    assert rows_of(shards)[3]["text"] == "two\nlines"


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_bad_parquet_rows_cost_themselves_only(kind: pa.DataType, tmp_path: Path) -> None:
    raw = pa.large_binary() if kind == pa.large_string() else pa.binary()
    broken = pa.array([b"good", None, b"\xff", b""], raw).view(kind)
    pq.write_table(pa.table({"text": broken}), tmp_path / "a.parquet")
    assert reasons(read(tmp_path / "a.parquet")) == [None, "null_text", "invalid_utf8", "empty_text"]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_every_arrow_type_of_text_is_read(kind: pa.DataType, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array(["a", "ü"]).cast(kind)}), tmp_path / "a.parquet")
    assert rows_of(read(tmp_path / "a.parquet"))[1]["text"] == "ü"


def test_columns_of_jsonl_are_those_of_its_first_rows_not_of_one(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [b"{broken", b'{"n": 1}', b'{"text": "x", "n": 2}'])
    (file,) = list_inputs(str(path)).files
    assert list(file_columns(file)) == ["n", "text"]


def test_a_pair_needs_both_texts(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": ["x", "x", None], "b": ["y", None, "y"]}), tmp_path / "p.parquet")
    assert reasons(read(tmp_path / "p.parquet", Columns(text="a", pair="b"))) == [None, "null_text", "null_text"]


def test_kept_columns_keep_their_type_and_a_misfit_is_rejected(tmp_path: Path) -> None:
    lines = [b'{"text": "a", "n": 1}', b'{"text": "b", "n": "many"}', b'{"text": "c"}']
    columns = Columns(text="text", keep=pa.schema([("n", pa.int64())]))
    shards = read(write_lines(tmp_path / "a.jsonl", lines), columns)
    assert [row["keep.n"] for row in rows_of(shards)] == [1, None, None]
    assert reasons(shards) == [None, "bad_kept_value", None]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz", "a.jsonl.zst"])
def test_a_truncated_file_gives_what_it_has_and_says_where_it_ends(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    rows = [{"text": f"row {row} {row * 7919 % 1000}"} for row in range(5000)]
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        write_lines(path, [json.dumps(row).encode() for row in rows])
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    shards = read(path)
    assert shards[-1].read_error
    assert [row["row"] for row in rows_of(shards)] == list(range(len(rows_of(shards))))
    assert all(shard.read_error is None for shard in shards[:-1])


def test_an_empty_file_is_one_empty_shard(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.txt"):
        (tmp_path / name).touch()
        (shard,) = read(tmp_path / name)
        assert (len(shard.rows), shard.last, shard.read_error) == (0, True, None)
    (tmp_path / "c.parquet").touch()
    (shard,) = read(tmp_path / "c.parquet")
    assert shard.read_error


@given(count=st.integers(0, 60), limit=st.integers(1, 25), chunk=st.integers(1, 30), huge=st.sets(st.integers(0, 59)))
def test_shards_partition_a_file(
    count: int, limit: int, chunk: int, huge: set[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("shards") / "a.parquet"
    texts = [f"{row} " + "x" * (600 if row in huge else 0) for row in range(count)]
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.source, "SHARD_ROWS", limit)
        patch.setattr(pipeline.source, "SHARD_BYTES", 2000)
        patch.setattr("pipeline.formats.CHUNK_ROWS", chunk)
        shards, again = read(path), read(path)
    assert [row["text"] for row in rows_of(shards)] == texts
    assert all(len(shard.rows) <= limit for shard in shards)
    assert [shard.start for shard in shards] == [sum(len(s.rows) for s in shards[:i]) for i in range(len(shards))]
    assert [shard.last for shard in shards] == [False] * (len(shards) - 1) + [True]
    assert len({shard.id for shard in shards}) == len(shards)
    assert [shard.id for shard in again] == [shard.id for shard in shards]
    assert sum(shard.share for shard in shards) == pytest.approx(1.0)


def test_a_changed_file_has_other_shard_ids(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.txt", [b"one"])
    before = read(path)[0].id
    write_lines(path, [b"other"])
    assert read(path)[0].id != before


def test_listing_takes_a_file_a_folder_or_a_glob_in_name_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.csv", "sub/c.txt.gz", "_manifest.json", ".hidden.txt", "notes.md", "_rejects/p.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    corpus = list_inputs(str(tmp_path))
    assert [file.name for file in corpus.files] == ["a.csv", "b.jsonl", "sub/c.txt.gz"]
    assert corpus.ignored == ["notes.md"]
    assert [file.name for file in list_inputs(f"{tmp_path}/**/*.gz").files] == ["sub/c.txt.gz"]
    (file,) = list_inputs(str(tmp_path / "a.csv")).files
    assert isinstance(file, InputFile)
    assert file.name == "a.csv"


def test_nothing_to_read_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file to read; known extensions are \.parquet"):
        list_inputs(str(tmp_path))
    with pytest.raises(UserError, match="no such file, folder or match"):
        list_inputs(str(tmp_path / "absent"))
    (tmp_path / "x.md").touch()
    with pytest.raises(UserError, match="unknown extension"):
        list_inputs(str(tmp_path / "x.md"))
