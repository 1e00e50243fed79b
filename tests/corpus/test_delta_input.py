"""Delta Lake tables as input: the rows that deltalake itself reads, or a refusal in one line."""

import base64
import json
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.columns import Columns, resolve_columns
from pipeline.corpus.folders.delta import check_rewritten
from pipeline.corpus.listing import Corpus, list_inputs
from pipeline.corpus.reader import read_shards
from pipeline.errors import InputError
from pipeline.storage.locate import object_store_options


def write(folder: str, rows: list[tuple[str, str | None]], **how: Any) -> None:
    table = pa.table({"text": [text for text, _ in rows], "lang": pa.array([lang for _, lang in rows], pa.string())})
    write_deltalake(folder, table, storage_options=object_store_options(folder), **how)


def rows_of(folder: str) -> list[tuple[str, str | None]]:
    corpus = list_inputs(folder)
    columns = resolve_columns(corpus.files, Columns(), keep=["lang"])
    shards = [shard for file in corpus.files for shard in read_shards(file, columns)]
    assert not any(shard.read_error or len(shard.rejects) for shard in shards)
    found = [(row["text"], row["keep.lang"]) for shard in shards for row in shard.rows.to_pylist()]
    return sorted(found, key=str)


langs = st.sampled_from(["de", "d e", "x/y=z%", "ü", None])
steps = st.lists(
    st.tuples(
        st.sampled_from(["append", "overwrite", "delete", "optimize", "update"]),
        st.lists(langs, min_size=1, max_size=3),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=15)
@given(steps=steps, partitioned=st.booleans())
def test_the_rows_of_the_newest_version_are_read(steps: list[Any], partitioned: bool, tmp_path_factory: Any) -> None:
    folder = f"{tmp_path_factory.mktemp('delta')}/a table ü"
    by = ["lang"] if partitioned else None
    write(folder, [("first", "de"), ("second", None)], partition_by=by)
    for number, (step, values) in enumerate(steps):
        before, table = list_inputs(folder), DeltaTable(folder)
        done = {file.path for file in before.files}
        if step in ("append", "overwrite"):
            write(folder, [(f"t{number}", lang) for lang in values], mode=step, partition_by=by)
        elif step == "delete":
            table.delete("lang = 'de'")
        elif step == "update":
            table.update(predicate="text = 't0'", new_values={"text": "'changed'"})
        else:
            table.optimize.compact()
        expected = DeltaTable(folder).to_pyarrow_table().select(["text", "lang"]).to_pylist()
        if not expected:
            with pytest.raises(InputError, match="the Delta table is empty at version"):
                list_inputs(folder)
            assert list_inputs(folder, may_be_empty=True).files == []
            return
        assert rows_of(folder) == sorted(((row["text"], row["lang"]) for row in expected), key=str)
        check_twins(folder, before, done, appended=step == "append")


def check_twins(folder: str, before: Corpus, done: set[str], *, appended: bool) -> None:
    """See that fresh files are refused where they hold rows that have results, and only there."""
    now = list_inputs(folder)
    assert now.table == before.table
    assert now.table is not None
    fresh = {file.path for file in now.files} - done
    gone = done - {file.path for file in now.files}
    if appended:
        assert not gone
    if fresh and gone:
        with pytest.raises(InputError, match="in the place of files whose rows have results already"):
            check_rewritten(now.table, fresh, done)
    else:
        check_rewritten(now.table, fresh, done)
    check_rewritten(now.table, fresh, ())


def test_a_table_is_read_as_a_whole_wherever_it_lies(place: str) -> None:
    folder = f"{place}/t"
    write(folder, [("a", "de"), ("b", "fr")], partition_by=["lang"])
    write(folder, [("c", "fr")], mode="append")
    DeltaTable(folder, storage_options=object_store_options(folder)).delete("lang = 'de'")
    assert rows_of(folder) == [("b", "fr"), ("c", "fr")]
    assert list_inputs(folder).remarks == ["Delta table at version 2: 2 files"]
    for pattern in ("/t/**", "/t/*/*.parquet", "", "/t/lang=fr"):
        with pytest.raises(InputError, match=f"{folder}: is a Delta Lake table, .* name the folder of the table"):
            list_inputs(f"{place}{pattern}")
    (file, _) = list_inputs(folder).files
    assert list_inputs(file.path).files[0].size == file.size


def test_without_the_library_a_table_is_refused_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(f"{tmp_path}/t", [("a", "de")])
    monkeypatch.setattr("pipeline.corpus.folders.delta.find_spec", lambda _name: None)
    with pytest.raises(
        InputError, match=r"to read it pip install 'offramp\[delta\]', or export its rows to plain files"
    ):
        list_inputs(f"{tmp_path}/t")


def protocol(*features: str) -> dict[str, Any]:
    """Return the protocol of a table that readers of these features can read."""
    return {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": [*features], "writerFeatures": [*features]}


def deletion_vector() -> dict[str, Any]:
    """Return a deletion vector that takes out the first row: a bitmap by Roaring's format, in Z85, by Delta's protocol."""
    bitmap = struct.pack(
        "<IIHHIH", 12346, 1, 0, 0, 16, 0
    )  # without runs; one container, of one value, at byte 16: row 0
    data = struct.pack("<IQI", 1681511377, 1, 0) + bitmap
    theirs = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
    z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    encoded = base64.b85encode(data + bytes(-len(data) % 4)).decode().translate(str.maketrans(theirs, z85))
    return {"storageType": "i", "pathOrInlineDv": encoded, "sizeInBytes": len(data), "cardinality": 1}


def edit(folder: Path, version: int, **changes: Any) -> None:
    """Change actions of a version, as another program would have written them."""
    path = folder / "_delta_log" / f"{version:020}.json"
    actions = [json.loads(line) for line in path.read_text().splitlines()]
    for action in actions:
        for kind, fields in changes.items():
            if kind in action:
                action[kind] |= fields
    path.write_text("".join(json.dumps(action) + "\n" for action in actions))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"metaData": {"configuration": {"delta.columnMapping.mode": "name"}}} | {"protocol": protocol("columnMapping")},
         "has column mapping .name.|cannot be read: .*olumn"),
        ({"add": {"deletionVector": deletion_vector()}} | {"protocol": protocol("deletionVectors")}, "by deletion vectors"),
        ({"protocol": protocol("variantType")}, "has variantType, which is not read|cannot be read: .*ariant"),
        ({"protocol": protocol("whatever")}, "cannot be read: .*whatever"),
        ({"add": {"path": "s3://elsewhere/a.parquet"}}, "has files of other folders"),
        ({"add": {"path": "gone.parquet"}}, "gone.parquet: is not there, though the Delta table names it"),
        ({"protocol": {"minReaderVersion": "x"}}, "the log of the Delta table cannot be read"),
    ],
)  # fmt: skip
def test_what_plain_files_would_not_say_is_refused_in_one_line(
    changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    write(f"{tmp_path}/t", [("a", "de")])
    edit(tmp_path / "t", 0, **changes)
    with pytest.raises(InputError, match=why) as caught:
        list_inputs(f"{tmp_path}/t")
    assert "\n" not in caught.value.message


def test_features_that_are_not_used_do_no_harm(tmp_path: Path) -> None:
    write(f"{tmp_path}/t", [("a", "de")])
    edit(tmp_path / "t", 0, protocol=protocol("deletionVectors", "timestampNtz", "columnMapping"))
    assert rows_of(f"{tmp_path}/t") == [("a", "de")]


def test_a_column_that_came_later_is_null_before(tmp_path: Path) -> None:
    folder = f"{tmp_path}/t"
    write_deltalake(folder, pa.table({"text": ["a", "b"]}))
    more = pa.table({"text": ["c"], "doc": [{"lang": "de"}], "title": ["C"]})
    write_deltalake(folder, more, mode="append", schema_mode="merge")
    write_deltalake(folder, pa.table({"text": ["d"]}), mode="append", schema_mode="merge")
    files = list_inputs(folder).files
    columns = resolve_columns(files, Columns(id="title"), keep=["doc.lang"])
    rows = [row for file in files for shard in read_shards(file, columns) for row in shard.rows.to_pylist()]
    expected = DeltaTable(folder).to_pyarrow_table().to_pylist()
    langs = [(row["text"], row["doc"] and row["doc"]["lang"]) for row in expected]
    assert sorted((row["text"], row["keep.lang"]) for row in rows) == sorted(langs)
    assert [row["id"] for row in rows if row["text"] == "c"] == ["C"]
    columns = resolve_columns(files, Columns(text="title"))
    shards = [shard for file in files for shard in read_shards(file, columns)]
    assert sorted(reason for shard in shards for reason in shard.rejects["reason"].to_pylist()) == ["null_text"] * 3
    assert not any(shard.read_error for shard in shards)
    with pytest.raises(InputError, match=r"keep x: .* has no such column; it has text"):
        resolve_columns(files, Columns(), keep=["x"])
