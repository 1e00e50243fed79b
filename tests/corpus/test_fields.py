"""Columns inside structs, and names for what is kept: found by a slow oracle too, read alone, and refused in one line."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.corpus.columns import Columns, resolve_columns
from pipeline.corpus.decoders.fields import splits
from pipeline.corpus.listing import list_inputs
from pipeline.corpus.reader import Shard, read_shards
from pipeline.errors import InputError
from pipeline.rejects import Reason

NAMES = ["a", "b", "a.b", "b.a"]


def read(path: Path, columns: Columns, keep: list[str], results: tuple[str, ...] = ()) -> tuple[Columns, list[Shard]]:
    files = list_inputs(str(path)).files
    resolved = resolve_columns(files, columns, keep=keep, results=results)
    return resolved, [shard for file in files for shard in read_shards(file, resolved)]


structs = st.recursive(
    st.just(pa.string()),
    lambda inner: st.lists(
        st.tuples(st.sampled_from(NAMES), inner), min_size=1, max_size=3, unique_by=lambda f: f[0]
    ).map(lambda fields: pa.struct(fields)),
    max_leaves=8,
)


def values_of(kind: pa.DataType, draw: Any) -> Any:
    if draw(st.integers(0, 4)) == 0:
        return None
    if kind == pa.string():
        return draw(st.text("xyz", max_size=3))
    return {kind.field(number).name: values_of(kind.field(number).type, draw) for number in range(kind.num_fields)}


def leaf_paths(kind: pa.DataType) -> list[tuple[str, ...]]:
    """Return the paths of the strings in a struct, in the order in which a name is looked up: longest names first."""
    if kind == pa.string():
        return [()]
    fields = sorted((kind.field(number) for number in range(kind.num_fields)), key=lambda f: -f.name.count("."))
    return [(field.name, *rest) for field in fields for rest in leaf_paths(field.type)]


@given(data=st.data())
def test_a_name_with_dots_means_the_same_by_a_slow_oracle(data: st.DataObject, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("fields")
    kind = data.draw(structs.filter(lambda kind: kind != pa.string()))
    rows = [{"text": "t"} | (values_of(kind, data.draw) or {}) for _ in range(data.draw(st.integers(1, 5)))]
    schema = pa.schema([("text", pa.string()), *(kind.field(number) for number in range(kind.num_fields))])
    table = pa.Table.from_pylist(rows, schema)
    paths = leaf_paths(kind)
    path = data.draw(st.sampled_from(paths))
    wanted = ".".join(path)
    assume(
        not any(".".join(p[:n]) == wanted for p in paths for n in range(len(p)))
    )  # a struct of that name comes first
    oracle = next(p for p in paths if ".".join(p) == wanted)
    expected = []
    for row in table.to_pylist():
        value: Any = row
        for step in oracle:
            value = None if value is None else value[step]
        expected.append(value)
    pq.write_table(table, folder / "a.parquet")
    columns, (shard,) = read(folder / "a.parquet", Columns(), [f"{wanted}=k"])
    assert shard.rows["keep.k"].to_pylist() == expected
    columns, _ = read(folder / "a.parquet", Columns(), [wanted])
    assert columns.keep.names == [oracle[-1]]
    assert columns.names == ["text", wanted]
    # In JSON an object that is null tells of no fields, so that such rows may mean another path.
    lines = [row for row in table.to_pylist() if None not in row.values()] if len(oracle) > 1 else table.to_pylist()
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    if lines and len({".".join(p) for p in paths}) == len(paths):
        columns, (shard,) = read(folder / "a.jsonl", Columns(), [f"{wanted}=k"])
        of_lines = [value for row, value in zip(table.to_pylist(), expected, strict=True) if row in lines]
        assert shard.rows["keep.k"].to_pylist() == of_lines


DOCS = [
    {"id": 1, "doc": {"text": "fine", "other": "dull", "meta": {"lang": "en", "stars": 5}}},
    {"id": 2, "doc": {"text": None, "other": "x", "meta": None}},
    {"id": 3, "doc": None},
    {"id": 4, "doc": {"text": "good", "other": "bad", "meta": {"lang": None, "stars": 1}}},
]


def write(folder: Path, kind: str) -> Path:
    path = folder / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(DOCS), path, row_group_size=3)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in DOCS))
    return path


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_texts_pairs_ids_and_kept_columns_lie_in_structs(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path, kind)
    columns = Columns(text="doc.text", pair="doc.other", id="doc.meta.stars")
    resolved, (shard,) = read(path, columns, ["doc.meta.lang", "id=number"], ("id", "label"))
    assert resolved.keep.names == ["lang", "number"]
    assert shard.rows.drop_columns("row").to_pylist() == [
        {"id": "5", "text": "fine", "pair": "dull", "keep.lang": "en", "keep.number": "1" if kind == "jsonl" else 1},
        {"id": "1", "text": "good", "pair": "bad", "keep.lang": None, "keep.number": "4" if kind == "jsonl" else 4},
    ]
    assert shard.rejects["reason"].to_pylist() == [Reason.NULL_TEXT] * 2
    assert shard.rejects["detail"].to_pylist() == ["column 'doc.text' is null"] * 2


def test_an_object_without_the_field_is_a_row_without_the_column(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"doc": {"text": "a"}}\n{"doc": {}}\n{"doc": "b"}\n{"doc": [1]}\n{}\n{"doc.text": "c"}\n'
    )
    _, (shard,) = read(tmp_path / "a.jsonl", Columns(text="doc.text"), ["doc"])
    assert shard.rows["text"].to_pylist() == ["a", "c"]
    assert shard.rejects["reason"].to_pylist() == [Reason.MISSING_COLUMN] * 4


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize(
    ("columns", "keep", "message"),
    [
        (Columns(text="doc.body"), [], "text_column doc.body: {} has no such column; doc has text, other, meta"),
        (Columns(text="dok.text"), [], "text_column dok.text: {} has no such column; it has id, doc"),
        (Columns(text="id.text"), [], "text_column id.text: {} has no such column; id {}"),
        (Columns(text="doc.text"), ["doc.meta.x"], "keep doc.meta.x: {} has no such column; doc.meta has lang, stars"),
        (Columns(text="doc.text"), ["doc.id"], "keep doc.id: {} has no such column; doc has"),
        (Columns(text="doc.text"), ["id"], "keep id: the output has a column of that name itself; write it as another"),
        (Columns(text="doc.text"), ["id=ID"], "keep id: the output has a column of that name itself"),
        (Columns(text="doc.text"), ["doc.text=x", "id=X"], "keep id: doc.text is written as x already"),
        (Columns(text="doc.text"), ["id="], "keep id=: a name is missing beside the ="),
        (Columns(text="doc.text"), ["=id"], "keep =id: a name is missing beside the ="),
        (Columns(text="doc.text"), ["id=a b"], "keep id=a b: name it by letters, digits and _"),
        (Columns(text="doc.text"), ["id=a.b"], "keep id=a.b: name it by letters, digits and _"),
    ],
)  # fmt: skip
def test_what_is_not_there_or_clashes_is_one_line(
    kind: str, columns: Columns, keep: list[str], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path, kind)
    no_fields = "has no fields" if kind == "jsonl" else "is of type int64, which has no fields"
    with pytest.raises(InputError) as caught:
        read(path, columns, keep, ("id", "label"))
    line = f"{caught.value.field} {caught.value.message}"
    assert line.startswith(message.format(path, no_fields))
    assert "\n" not in line


def test_lists_have_no_fields(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["t"], "doc": [[{"text": "a"}]]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"doc.text: .* no such column; doc is of type list<.*>, which has no fields"):
        read(tmp_path / "a.parquet", Columns(text="doc.text"), [])


def test_a_file_with_another_struct_is_unreadable_and_says_what_it_has(tmp_path: Path) -> None:
    write(tmp_path, "parquet")
    pq.write_table(pa.table({"id": [1], "doc": [{"body": "a"}]}), tmp_path / "b.parquet")
    _, (_, other) = read(tmp_path, Columns(text="doc.text"), [])
    assert other.read_error == "no column 'doc.text'; doc has body"


def test_only_the_field_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other field's pages are larger than what may be unpacked, so that looking at them would end the file."""
    docs = [{"text": f"text {row}", "html": "x" * 5000} for row in range(500)]
    pq.write_table(pa.table({"doc": docs}), tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    monkeypatch.setattr("pipeline.corpus.decoders.parquet.MAX_PAGE_BYTES", 100_000)
    _, (shard,) = read(tmp_path, Columns(text="doc.text"), [])
    assert shard.rows["text"].to_pylist() == [doc["text"] for doc in docs]
    _, (whole,) = read(tmp_path, Columns(text="doc.text"), ["doc.html"])
    assert "to unpack at once" in str(whole.read_error)


def test_times_of_96_bits_in_a_struct_are_checked(tmp_path: Path) -> None:
    times = pa.array([1_000, 1_001, None], pa.timestamp("ns"))
    docs = pa.StructArray.from_arrays([times, pa.array(["a", "b", "c"])], ["at", "text"])
    pq.write_table(pa.table({"doc": docs}), tmp_path / "a.parquet", use_deprecated_int96_timestamps=True)
    _, (shard,) = read(tmp_path, Columns(text="doc.text"), ["doc.at"])
    assert shard.rows["text"].to_pylist() == ["a", "c"]
    assert shard.rejects["detail"].to_pylist() == ["the time has digits below microseconds"]


@pytest.mark.parametrize("recorded", [["id", "lang", "n"], ["id", "doc.lang", "n"]])
def test_types_that_are_recorded_are_found_under_the_name_that_was_written(recorded: list[str]) -> None:
    schema = pa.schema([(name, pa.string()) for name in recorded])
    columns = resolve_columns([], Columns(), keep=["doc.lang", "x=n"], recorded=schema)
    assert columns.keep.names == recorded[1:]
    assert [source for _, source in columns.kept] == ["doc.lang", "x"]


@pytest.mark.parametrize(
    "keep", [["a.b.c", "b.c"], ["b.c", "a.b.c"], ["a.b.c", "b.c=x"], ["c", "a.b.c=y", "b.c"], ["a.b.c"]]
)
def test_a_folder_is_gone_on_with_under_the_names_that_were_written(keep: list[str], tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["t"], "a": [{"b": {"c": 1}}], "b.c": ["x"], "c": [0.5]}), tmp_path / "a.parquet")
    files = list_inputs(str(tmp_path)).files
    columns = resolve_columns(files, Columns(), keep=keep)
    assert resolve_columns(files, Columns(), keep=keep, recorded=columns.keep) == columns


def test_a_name_with_a_sign_of_equality_stays_one_where_it_is_recorded() -> None:
    columns = resolve_columns(
        [], Columns(), keep=["a=b", "c=d"], recorded=pa.schema({"a=b": pa.int64(), "d": pa.string()})
    )
    assert [source for _, source in columns.kept] == ["a=b", "c"]


def test_every_way_to_read_a_name_is_tried_once() -> None:
    for parts in product(["a", ""], repeat=3):
        name = ".".join(parts)
        assert [*splits(name)] == [(name, None), (".".join(parts[:2]), parts[2]), (parts[0], ".".join(parts[1:]))]
