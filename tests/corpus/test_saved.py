"""Folders of Hugging Face datasets: state.json says which files count; splits and orders of their own are refused by name."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.corpus.columns import Columns, resolve_columns
from pipeline.corpus.listing import list_inputs
from pipeline.corpus.reader import read_shards
from pipeline.errors import InputError
from pipeline.storage.locate import storage_of
from tests.corpus.test_listing import names


def save(folder: str, shards: list[list[str]], state: dict[str, Any] | None = None) -> None:
    """Write a folder as `save_to_disk` of datasets 4 does: streams of batches, dataset_info.json and state.json."""
    storage = storage_of(folder)
    storage.make_folder(folder)
    named = [f"data-{number:05d}-of-{len(shards):05d}.arrow" for number in range(len(shards))]
    for name, texts in zip(named, shards, strict=True):
        sink = pa.BufferOutputStream()
        table = pa.table({"text": texts})
        schema = table.schema.with_metadata({"huggingface": '{"info": {"features": {"text": {"dtype": "string"}}}}'})
        with pa.ipc.new_stream(sink, schema) as out:
            out.write_table(table.cast(schema), max_chunksize=1000)
        storage.write(f"{folder}/{name}", sink.getvalue().to_pybytes())
    storage.write(f"{folder}/dataset_info.json", b'{"citation": "", "features": {}}')
    told: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in named],
        "_fingerprint": "0123456789abcdef",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    storage.write(f"{folder}/state.json", json.dumps(told | (state or {})).encode())


def texts(pattern: str) -> list[str]:
    files = list_inputs(pattern).files
    columns = resolve_columns(files, Columns())
    return [text for file in files for shard in read_shards(file, columns) for text in shard.rows["text"].to_pylist()]


def test_the_files_that_state_json_names_count(place: str) -> None:
    save(f"{place}/in/a", [["1", "2"], ["3"]])
    storage_of(place).write(f"{place}/in/a/cache-0123456789abcdef.arrow", b"of a map that was not saved")
    storage_of(place).write(f"{place}/in/b.jsonl", b'{"text": "4"}\n')
    save(f"{place}/in/c", [["5"]])
    assert texts(f"{place}/in/a") == ["1", "2", "3"]
    corpus = list_inputs(f"{place}/in/a")
    assert corpus.remarks == [
        "3 files that state.json does not name are left alone, such as cache-0123456789abcdef.arrow"
    ]
    for pattern in ("/in", "/in/**"):
        assert texts(f"{place}{pattern}") == ["1", "2", "3", "4", "5"]
    assert names(f"{place}/in/*/*.arrow") == names(f"{place}/in/*/data*") == [
        "a/data-00000-of-00002.arrow", "a/data-00001-of-00002.arrow", "c/data-00000-of-00001.arrow",
    ]  # fmt: skip


def test_splits_are_refused_together_and_read_one_by_one(place: str) -> None:
    save(f"{place}/in/train", [["1"]])
    save(f"{place}/in/test", [["2"]])
    storage_of(place).write(f"{place}/in/dataset_dict.json", b'{"splits": ["train", "test"]}')
    for pattern in ("", "/**", "/*/*.arrow"):
        with pytest.raises(InputError, match=f"{place}/in: .* several splits; name the folder of one of them"):
            list_inputs(f"{place}/in{pattern}")
    assert texts(f"{place}/in/train") == ["1"]
    assert texts(f"{place}/in/test/*.arrow") == ["2"]


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ({"_indices_data_files": [{"filename": "indices.arrow"}]}, "its rows have an order of their own"),
        ({"_indices_files": [{"filename": "indices.arrow"}]}, "its rows have an order of their own"),
        ({"_data_files": [{"filename": "data-7.arrow"}]}, "data-7.arrow is missing, which its state.json names"),
        ({"_data_files": [{"filename": "../a.arrow"}]}, "its state.json names files of other folders"),
        ({"_data_files": None}, "a state.json that does not tell which of them count"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(state: dict[str, Any], why: str, tmp_path: Path) -> None:
    save(f"{tmp_path}/in/a", [["1"]], state)
    for pattern in ("in/a", "in", "in/*/*.arrow"):
        with pytest.raises(InputError, match=f"{tmp_path}/in/a: .*{why}"):
            list_inputs(f"{tmp_path}/{pattern}")


def test_a_state_json_beside_what_is_read_refuses_nothing(place: str) -> None:
    """It may be anybody's, and stand in folders of which nothing is asked for."""
    storage = storage_of(place)
    for folder in ("in", "in/sub", "in/_cache", "in/jsonl"):
        storage.make_folder(f"{place}/{folder}")
        storage.write(f"{place}/{folder}/state.json", b'{"last_run": 7}')
        storage.write(f"{place}/{folder}/_of_others.arrow", b"")
        storage.write(f"{place}/{folder}/a.jsonl", b'{"text": "1"}')
    save(f"{place}/in/saved", [["2"]])
    for pattern, found in {
        "/*.jsonl": ["1"],
        "/**/*.jsonl": ["1"] * 3,
        "": ["1"] * 3 + ["2"],
        "/*/data*": ["2"],
    }.items():
        assert sorted(texts(f"{place}/in{pattern}")) == found


def test_a_folder_without_its_state_is_refused(tmp_path: Path) -> None:
    save(f"{tmp_path}/a", [["1"]])
    (tmp_path / "a" / "state.json").write_text("{")
    with pytest.raises(InputError, match=r"a state.json that does not tell"):
        list_inputs(f"{tmp_path}/a")
    (tmp_path / "a" / "state.json").unlink()
    with pytest.raises(InputError, match=r"lacks the state.json of its save_to_disk"):
        list_inputs(f"{tmp_path}/a")


def test_what_datasets_itself_writes_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_dict({"text": [f"text {row}" for row in range(2500)]}).shuffle(seed=0)
    saved.save_to_disk(f"{tmp_path}/a", num_shards=3)
    assert texts(f"{tmp_path}/a") == datasets.load_from_disk(f"{tmp_path}/a")["text"]
