"""Folders that give columns to their files, as Hive names them: read as pyarrow and DuckDB do, refused where they differ."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.columns import Columns, resolve_columns
from pipeline.corpus.folders.hive import NULL, partitions_of
from pipeline.corpus.listing import list_inputs
from pipeline.corpus.plan import Piece, decode_task, encode_task
from pipeline.corpus.reader import read_shards
from pipeline.errors import InputError
from pipeline.storage.locate import storage_of

values = st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)


def kept(pattern: str, *keep: str) -> list[dict[str, Any]]:
    files = list_inputs(pattern).files
    columns = resolve_columns(files, Columns(), keep=keep)
    rows = [row for file in files for shard in read_shards(file, columns) for row in shard.rows.to_pylist()]
    return sorted(
        ({"text": row["text"]} | {name: row[f"keep.{name}"] for name in columns.keep.names} for row in rows), key=str
    )


@given(names=st.lists(st.tuples(values, values), min_size=1, max_size=4, unique=True))
def test_values_are_those_of_pyarrow_and_duckdb(
    names: list[tuple[str | None, str | None]], tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("hive")
    for number, pair in enumerate(names):
        lang, day = (NULL if value is None else quote(value, safe="") for value in pair)
        (folder / f"lang={lang}" / f"the%20day={day}").mkdir(parents=True)
        pq.write_table(pa.table({"text": [f"t{number}"]}), folder / f"lang={lang}" / f"the%20day={day}" / "a.parquet")
    expected = sorted(
        ({"text": f"t{number}", "lang": lang, "the day": day} for number, (lang, day) in enumerate(names)), key=str
    )
    assert kept(str(folder), "lang", "the day") == expected
    schema = pa.schema([("lang", pa.string()), ("the day", pa.string())])
    partitioning = ds.HivePartitioning(schema, segment_encoding="uri")
    by_arrow = ds.dataset(folder, partitioning=partitioning).to_table(columns=["text", "lang"]).to_pylist()
    assert sorted(by_arrow, key=str) == [{"text": row["text"], "lang": row["lang"]} for row in expected]
    query = f"from read_parquet('{folder}/*/*/*.parquet', hive_partitioning=true, hive_types_autocast=false)"
    by_duckdb = duckdb.sql(f"select text, lang {query}").to_arrow_table().to_pylist()
    assert sorted(by_duckdb, key=str) == [{"text": row["text"], "lang": row["lang"]} for row in expected]


def test_what_is_no_name_and_value_is_no_partition() -> None:
    assert partitions_of("a=1/b/=x/c=/d=%zz/e=%FF/f=1=2/g=h.csv") == (
        ("a", "1"), ("c", ""), ("d", "%zz"), ("e", "%FF"), ("f", "1=2"),
    )  # fmt: skip


def fill(place: str, files: dict[str, str]) -> None:
    for name, content in files.items():
        storage_of(place).make_folder(f"{place}/{name}".rpartition("/")[0])
        storage_of(place).write(f"{place}/{name}", content.encode())


def test_folders_count_from_the_input_on(place: str) -> None:
    fill(
        place,
        {"in/_year=2026/lang=de/a.jsonl": '{"text": "x", "n": 1}\n', "in/_year=2027/lang=fr/a.csv": "text,n\ny,2\n"},
    )
    expected = [{"text": "x", "lang": "de", "_year": "2026"}, {"text": "y", "lang": "fr", "_year": "2027"}]
    for pattern in ("/in", "/in/**", "/in/_year=*/lang=*/*"):
        assert kept(f"{place}{pattern}", "lang", "_year") == expected
    assert kept(f"{place}/in/_year=2026", "lang=tongue") == [{"text": "x", "tongue": "de"}]
    assert kept(f"{place}/in/_year=2026/*/*.jsonl", "lang") == [{"text": "x", "lang": "de"}]
    with pytest.raises(InputError, match=r"keep _year: .*/a.jsonl has no such column; it has text, n"):
        kept(f"{place}/in/_year=2026", "_year")
    pieces = [Piece(file=file, size=1) for file in list_inputs(f"{place}/in").files]
    assert [left.file for left in decode_task(encode_task(pieces, {}))] == [piece.file for piece in pieces]


def test_the_folder_wins_over_a_column_of_the_file(place: str) -> None:
    """So it is for Spark and DuckDB, and the file's own column is not even looked at."""
    fill(place, {"in/lang=de/a.jsonl": '{"text": "x", "lang": "en"}\n{"text": "y", "lang": [1]}\n'})
    assert kept(f"{place}/in", "lang") == [{"text": "x", "lang": "de"}, {"text": "y", "lang": "de"}]
    assert kept(f"{place}/in/lang=de", "lang") == [{"text": "x", "lang": "en"}, {"text": "y", "lang": "[1]"}]


@pytest.mark.parametrize(
    ("files", "columns", "message"),
    [
        (["lang=de/a.txt", "b.txt"], Columns(), "keep lang: .*/b.txt lies in no folder lang=..., as others do"),
        (["lang=de/a.txt", "day=1/b.txt"], Columns(), "keep lang: .*/day=1/b.txt lies in no folder lang="),
        (["lang=de/lang=fr/a.txt"], Columns(), "keep lang: .*/a.txt lies in several folders lang="),
        (["lang=de/a.txt"], Columns(id="lang"), "id_column lang: .* no such column; a folder lang=... names no row"),
        (["text=de/a.csv"], Columns(), "text_column text: .* no such column; a folder text=... names no row"),
    ],
)
def test_what_folders_do_not_give_to_all_rows_is_refused(
    files: list[str], columns: Columns, message: str, tmp_path: Path
) -> None:
    fill(f"{tmp_path}/in", dict.fromkeys(files, "x\n"))
    listed = list_inputs(f"{tmp_path}/in").files
    with pytest.raises(InputError, match=message):
        resolve_columns(listed, columns, keep=["lang"] if "lang" in files[0] else [])
    if columns == Columns() and "lang" in files[0]:
        with pytest.raises(InputError, match=message):
            resolve_columns(listed, columns, keep=["lang"], recorded=pa.schema([("lang", pa.string())]))


def test_a_label_may_be_a_folder(tmp_path: Path) -> None:
    fill(str(tmp_path), {"in/label=pos/a.txt": "fine\n", "in/label=neg/a.txt": "dull\n"})
    files = list_inputs(f"{tmp_path}/in").files
    columns = resolve_columns(files, Columns(label="label"))
    rows = [row for file in files for shard in read_shards(file, columns) for row in shard.rows.to_pylist()]
    assert [(row["text"], row["keep.label"]) for row in rows] == [("dull", "neg"), ("fine", "pos")]


def test_texts_and_ids_are_those_of_rows_also_where_they_are_kept(tmp_path: Path) -> None:
    fill(str(tmp_path), {"in/text=foo/id=bar/lang=de/a.jsonl": '{"text": "x", "id": 7, "lang": "en"}\n'})
    files = list_inputs(f"{tmp_path}/in").files
    columns = resolve_columns(files, Columns(id="id"), keep=["text", "id", "lang"])
    ((row,),) = [shard.rows.to_pylist() for file in files for shard in read_shards(file, columns)]
    assert (row["text"], row["id"]) == ("x", "7")
    assert (row["keep.text"], row["keep.id"], row["keep.lang"]) == ("x", "7", "de")
