"""Columns are checked before anything is read, in the same words for every job."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.columns import Columns, resolve_columns
from pipeline.corpus.labelled import read_texts
from pipeline.corpus.listing import list_inputs
from pipeline.errors import InputError, UserError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    pq.write_table(
        pa.table({"text": ["fine", "dull"], "stars": [5, 1], "label": ["good", "bad"]}), tmp_path / "a.parquet"
    )
    return tmp_path / "a.parquet"


@pytest.mark.parametrize(
    ("columns", "argument", "message"),
    [
        (Columns(text="body"), "text_column", "body: {} has no such column; it has text, stars, label"),
        (Columns(text="stars"), "text_column", "stars: in {} it is of type int64, not text"),
        (Columns(pair="other"), "pair_column", "other: {} has no such column; it has text, stars, label"),
        (Columns(pair="stars"), "pair_column", "stars: in {} it is of type int64, not text"),
        (Columns(id="key"), "id_column", "key: {} has no such column; it has text, stars, label"),
        (Columns(label="mood"), "label_column", "mood: {} has no such column; it has text, stars, label"),
    ],
)
def test_a_wrong_column_names_argument_file_and_cause(
    columns: Columns, argument: str, message: str, path: Path
) -> None:
    for check in (
        lambda: resolve_columns(list_inputs(str(path)).files, columns),
        lambda: read_texts(str(path), columns),
    ):
        with pytest.raises(InputError) as caught:
            check()
        assert (caught.value.field, caught.value.message) == (argument, message.format(path))


def test_kept_columns_must_exist_and_leave_the_outputs_names_free(path: Path) -> None:
    files = list_inputs(str(path)).files
    with pytest.raises(InputError, match=f"keep user: {path} has no such column"):
        resolve_columns(files, Columns(), keep=["stars", "user"])
    with pytest.raises(InputError, match="keep label: the output has a column of that name itself"):
        resolve_columns(files, Columns(), keep=["label"], results=["id", "label"])


def test_a_label_travels_like_a_kept_column(path: Path) -> None:
    columns = resolve_columns(list_inputs(str(path)).files, Columns(label="label"), keep=["stars", "stars"])
    assert columns.keep == pa.schema([("stars", pa.int64()), ("label", pa.string())])
    assert columns.names == ["text", "stars", "label"]
    texts = read_texts(str(path), Columns(label="stars"))
    assert (texts.texts, texts.labels) == (["fine", "dull"], ["5", "1"])


def test_a_file_that_cannot_be_read_is_passed_over_unless_it_is_the_only_one(path: Path) -> None:
    broken = path.with_name("0.parquet")
    broken.write_bytes(b"PAR1")
    assert resolve_columns(list_inputs(str(path.parent)).files, Columns()).text == "text"
    with pytest.raises(UserError, match=f"^{broken}: "):
        resolve_columns(list_inputs(str(broken)).files, Columns())
    path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match=f"^no input file can be read; the last one: {path}: "):
        resolve_columns(list_inputs(str(path.parent)).files, Columns())


def test_a_wrong_path_of_training_data_is_named_without_an_argument(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{tmp_path}/absent: no such file, folder or match"):
        read_texts(f"{tmp_path}/absent", Columns())
