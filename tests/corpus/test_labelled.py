"""What a label is does not depend on the format of the file that it stands in, and rows without one are named."""

import json
import math
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.columns import Columns
from pipeline.corpus.labelled import label_numbers, label_text, read_texts
from pipeline.errors import UserError

COLUMNS = Columns(label="label")


def parquet(folder: Path, labels: list[Any]) -> Path:
    pq.write_table(pa.table({"text": ["a room"] * len(labels), "label": labels}), folder / "a.parquet")
    return folder / "a.parquet"


def jsonl(folder: Path, labels: list[Any]) -> Path:
    lines = [json.dumps({"text": "a room", "label": label}) for label in labels]
    (folder / "a.jsonl").write_text("\n".join(lines))
    return folder / "a.jsonl"


def jsonl_without_key(folder: Path, labels: list[Any]) -> Path:
    lines = [json.dumps({"text": "a room"} | ({} if label is None else {"label": label})) for label in labels]
    (folder / "a.jsonl").write_text("\n".join(lines))
    return folder / "a.jsonl"


def csv(folder: Path, labels: list[Any]) -> Path:
    (folder / "a.csv").write_text("text,label\n" + "".join(f"a room,{'' if x is None else x}\n" for x in labels))
    return folder / "a.csv"


def quoted_csv(folder: Path, labels: list[Any]) -> Path:
    (folder / "a.csv").write_text("text,label\n" + "".join(f'a room,"{"" if x is None else x}"\n' for x in labels))
    return folder / "a.csv"


def tsv(folder: Path, labels: list[Any]) -> Path:
    (folder / "a.tsv").write_text("text\tlabel\n" + "".join(f"a room\t{'' if x is None else x}\n" for x in labels))
    return folder / "a.tsv"


FORMATS = [parquet, jsonl, jsonl_without_key, csv, quoted_csv, tsv]
Write = Callable[[Path, list[Any]], Path]


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.parametrize("absent", [None, "", " ", "\u00a0 "], ids=["null", "empty", "blank", "no-break space"])
def test_a_row_without_a_label_is_named_in_every_format(write: Write, absent: str | None, tmp_path: Path) -> None:
    file = write(tmp_path, ["yes", "no", absent, "yes"])
    with pytest.raises(
        UserError, match=rf"^{file}: column 'label' has a null or empty label in row 2; leave such rows out$"
    ):
        read_texts(str(file), COLUMNS)


def test_a_number_that_is_none_is_no_label(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has a null or empty label in row 1"):
        read_texts(str(parquet(tmp_path, [1.5, math.nan])), COLUMNS)


@pytest.mark.parametrize("write", [parquet, jsonl])
@pytest.mark.parametrize("value", [["yes"], [], {"a": 1}, [[1, 2]]], ids=str)
def test_a_list_or_an_object_is_no_label(write: Write, value: Any, tmp_path: Path) -> None:
    file = write(tmp_path, [value] * 3)
    with pytest.raises(
        UserError, match=rf"^{file}: column 'label': label .* is a list or an object; a label is a name"
    ):
        read_texts(str(file), COLUMNS)


@pytest.mark.parametrize("write", FORMATS)
def test_names_and_numbers_are_the_same_labels_in_every_format(write: Write, tmp_path: Path) -> None:
    assert read_texts(str(write(tmp_path, ["yes", "no", "[neutral]"])), COLUMNS).labels == ["yes", "no", "[neutral]"]
    assert read_texts(str(write(tmp_path, [10, 9, -1])), COLUMNS).labels == ["10", "9", "-1"]


@pytest.mark.parametrize("write", [parquet, jsonl])
def test_truth_values_are_the_same_labels_in_every_format_that_has_them(write: Write, tmp_path: Path) -> None:
    texts = read_texts(str(write(tmp_path, [True, False])), COLUMNS)
    assert (texts.labels, texts.class_names()) == (["true", "false"], ["false", "true"])


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.5, "2.5"), (date(2026, 1, 2), "2026-01-02"), (b"yes", "yes"), ("None", "None"), (0, "0"), (False, "false")],
)
def test_other_values_are_written_out(value: object, text: str) -> None:
    assert label_text(value) == text


def test_bytes_that_are_no_text_are_no_label() -> None:
    with pytest.raises(UserError, match="is no UTF-8"):
        label_text(b"\xff")


def test_integers_that_pandas_made_floats_are_the_same_labels() -> None:
    assert label_numbers(["0.0", "1.0"], ["neg", "pos"]).tolist() == [0.0, 1.0]
    assert label_numbers(["1.0", "5.0", "5"], ["1", "3", "5"]).tolist() == [0.0, 2.0, 2.0]  # names come before indices
    assert label_numbers(["1.0"], ["0", "1.0"]).tolist() == [1.0]
    with pytest.raises(UserError, match=r"label 'v1\.0' is none of"):
        label_numbers(["v1.0", "x"], ["v1.0", "v2"])
    with pytest.raises(UserError, match=r"label '1\.5' is none of"):
        label_numbers(["0.0", "1.5"], ["neg", "pos"])


def test_a_model_of_one_class_takes_values_whatever_the_class_is_called() -> None:
    """Transformers calls it LABEL_0."""
    assert label_numbers(["2.5", "-1", None], ["LABEL_0"]).tolist()[:2] == [2.5, -1.0]
    with pytest.raises(UserError, match="label 'high' is no number"):
        label_numbers(["high"], ["LABEL_0"])
