"""Reading: every row of every format is either good or a reject with a reason, and shards partition a file."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline.corpus.reader
from pipeline.corpus.columns import Columns, resolve_columns
from pipeline.corpus.formats import file_columns
from pipeline.corpus.listing import InputFile, list_inputs
from pipeline.corpus.reader import Shard, read_shards
from pipeline.errors import StorageError, UserError
from tests.support.compressed import packed

TEXT = Columns(text="text")


def read(path: Path, columns: Columns = TEXT) -> list[Shard]:
    (file,) = list_inputs(str(path)).files
    return list(read_shards(file, columns))


def rows_of(shards: list[Shard]) -> list[dict[str, Any]]:
    """Return all rows, rejects among them, in the order of the file; each is in one table of its shard."""
    rows: list[dict[str, Any]] = []
    for shard in shards:
        rejects = [{"text": None} | row for row in shard.rejects.to_pylist()]
        checked = sorted(shard.rows.to_pylist() + rejects, key=lambda row: int(row["row"]))
        assert [row["row"] for row in checked] == [*range(shard.start, shard.start + len(checked))]
        rows += checked
    return rows


def reasons(shards: list[Shard]) -> list[str | None]:
    return [row.get("reason") for row in rows_of(shards)]


def write_lines(path: Path, lines: list[bytes]) -> Path:
    data = b"".join(line + b"\n" for line in lines)
    path.write_bytes(packed(path, data))
    return path


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.csv.xz", "a.tsv.bz2", "a.txt", "a.parquet"]
)
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
    assert (shard.start, shard.last, shard.read_error, shard.fraction) == (0, True, None, 1.0)


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
    assert [row.get("keep.n") for row in rows_of(shards)] == [1, None, None]
    assert reasons(shards) == [None, "bad_kept_value", None]


@pytest.mark.parametrize("kind", [pa.string(), pa.int32(), pa.bool_(), pa.timestamp("us"), pa.list_(pa.string())])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_kept_value_of_any_kind_costs_its_row_at_most(name: str, kind: pa.DataType, tmp_path: Path) -> None:
    values = [b"5", b"\xff", b"null", b"true", b"1e400", b"99999999999999999999"]
    if name == "a.csv":
        lines = [b"text,k", *(b"a," + value for value in values)]
    else:
        values += [b'"\\ud83d"', b'{"a": [1]}', b'["x"]']
        lines = [b'{"text": "a", "k": ' + value + b"}" for value in values]
    columns = Columns(text="text", keep=pa.schema([("k", kind)]))
    found = reasons(read(write_lines(tmp_path / name, lines), columns))
    assert len(found) == len(values)
    assert set(found) <= {None, "bad_kept_value", "invalid_utf8"}
    assert found[1] is not None


def test_json_of_any_kind_is_kept_as_text(tmp_path: Path) -> None:
    lines = [
        b'{"text": "a", "k": ' + value + b"}" for value in (b'"x"', b"5", b"true", b'{"\xc3\xa4": [1.5]}', b"null")
    ]
    columns = Columns(text="text", keep=pa.schema([("k", pa.string())]))
    shards = read(write_lines(tmp_path / "a.jsonl", lines), columns)
    assert [row["keep.k"] for row in rows_of(shards)] == ["x", "5", "true", '{"ä": [1.5]}', None]
    assert reasons(shards) == [None] * 5


@pytest.mark.parametrize(
    "values",
    [
        pa.array([[1], [2]]),
        pa.array([{"a": 1}, {"a": 2}]),
        pa.array([2**62, 0], pa.timestamp("ms")),
        pa.array([b"\xff", b"x"]),
        pa.array(["x", "y"]).dictionary_encode(),
    ],
)
@pytest.mark.parametrize("kind", [pa.string(), pa.timestamp("us"), pa.bool_(), pa.float32()])
def test_a_parquet_column_of_another_type_than_the_first_files_costs_its_rows_at_most(
    values: pa.Array, kind: pa.DataType, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"text": ["a", "b"], "k": values}), tmp_path / "a.parquet")
    found = reasons(read(tmp_path / "a.parquet", Columns(text="text", keep=pa.schema([("k", kind)]))))
    assert len(found) == 2
    assert set(found) <= {None, "bad_kept_value"}


def test_a_time_that_python_does_not_know_is_no_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([2**62, 0], pa.timestamp("ms"))}), tmp_path / "a.parquet")
    assert reasons(read(tmp_path / "a.parquet")) == ["not_text", "not_text"]


def test_categories_may_grow_from_file_to_file(tmp_path: Path) -> None:
    few, many = pa.array(["a", "b"]), pa.array([str(n) for n in range(300)])
    pq.write_table(
        pa.table({"text": few, "k": few.cast(pa.dictionary(pa.int8(), pa.string()))}), tmp_path / "a.parquet"
    )
    pq.write_table(pa.table({"text": many, "k": many.dictionary_encode()}), tmp_path / "b.parquet")
    corpus = list_inputs(str(tmp_path))
    columns = resolve_columns(corpus.files, Columns(), keep=["k"])
    shards = [shard for file in corpus.files for shard in read_shards(file, columns)]
    assert [row["keep.k"] for row in rows_of(shards)] == few.to_pylist() + many.to_pylist()


def test_a_column_that_is_null_in_the_first_file_is_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "k": pa.nulls(1)}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["b"], "k": [7]}), tmp_path / "b.parquet")
    corpus = list_inputs(str(tmp_path))
    columns = resolve_columns(corpus.files, Columns(), keep=["k"])
    shards = [shard for file in corpus.files for shard in read_shards(file, columns)]
    assert [row["keep.k"] for row in rows_of(shards)] == [None, "7"]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"text,a,text", "several columns 'text'"),
        ("caf\xe9,a,b".encode("latin-1"), "no column 'text'; it has caf\\udce9"),
        ("text,a,b".encode("utf-16"), "it is UTF-16, by its first bytes FF FE; write it as UTF-8"),
        (b"", "no column 'text'; it has 1, 2, 3"),
        (b'id,"te"xt', "its header cannot be read: field 2: text follows a closing quote"),
    ],
)
def test_an_unusable_header_is_reported_in_text_that_can_be_stored(header: bytes, message: str, tmp_path: Path) -> None:
    (shard,) = read(write_lines(tmp_path / "a.csv", [header, b"1,2,3"]))
    assert message in str(shard.read_error)
    assert str(shard.read_error).encode()


def test_two_columns_of_one_name_in_parquet_are_reported(tmp_path: Path) -> None:
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), tmp_path / "a.parquet")
    (shard,) = read(tmp_path / "a.parquet")
    assert "several columns 'text'" in str(shard.read_error)


def test_a_quote_that_is_never_closed_swallows_nothing_in_silence(tmp_path: Path) -> None:
    lines = [b"id,text", b"1,good", b'2,"unclosed', b"3,x", b"4,y"]
    shards = read(write_lines(tmp_path / "a.csv", lines))
    assert [row["text"] for row in rows_of(shards)] == ["good", None, "x", "y"]
    assert rows_of(shards)[1]["detail"] == "field 2: a quote is opened and never closed"
    whole = tmp_path / "b.csv"
    whole.write_bytes(b'id,text\n1,"closed at the very end"')
    assert [row["text"] for row in rows_of(read(whole))] == ["closed at the very end"]


def test_quotes_mean_nothing_in_tsv(tmp_path: Path) -> None:
    lines = [b"id\ttext", b'1\t"unclosed', b"2\thello", b'3\t"x', b'4\tsays "y"']
    texts = [row["text"] for row in rows_of(read(write_lines(tmp_path / "a.tsv", lines)))]
    assert texts == ['"unclosed', "hello", '"x', 'says "y"']


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    for name in ("a.txt", "a.csv", "a.jsonl"):
        first = {"a.txt": b"x", "a.csv": b"text\nx", "a.jsonl": b'{"text": "x"}'}[name]
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + first + b"\n")
        assert [row["text"] for row in rows_of(read(tmp_path / name))] == ["x"]


def test_a_file_that_grows_while_it_is_read_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.corpus.reader, "SHARD_ROWS", 1024)
    path = write_lines(tmp_path / "a.txt", [b"a line"] * 3000)
    (file,) = list_inputs(str(path)).files
    shards = read_shards(file, TEXT)
    assert next(shards).last is False
    with path.open("ab") as more:
        more.write(b"half of a li")
    with pytest.raises(StorageError, match="changed after it was listed"):
        list(shards)


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
        patch.setattr(pipeline.corpus.reader, "SHARD_ROWS", limit)
        patch.setattr(pipeline.corpus.reader, "SHARD_BYTES", 2000)
        patch.setattr("pipeline.corpus.decoders.raw.CHUNK_ROWS", chunk)
        shards, again = read(path), read(path)
    assert [row["text"] for row in rows_of(shards)] == texts
    assert all(len(shard.rows) <= limit for shard in shards)
    assert [shard.start for shard in shards] == [sum(len(s.rows) for s in shards[:i]) for i in range(len(shards))]
    assert [shard.last for shard in shards] == [False] * (len(shards) - 1) + [True]
    assert len({shard.id for shard in shards}) == len(shards)
    assert [shard.id for shard in again] == [shard.id for shard in shards]
    assert sum(shard.fraction for shard in shards) == pytest.approx(1.0)


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
    assert any("such as notes.md" in remark for remark in corpus.remarks)
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
