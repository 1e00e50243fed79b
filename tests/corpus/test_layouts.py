"""Folders whose own rules say which of their files count are refused by name, also by a part of them."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.corpus.listing import list_inputs
from pipeline.errors import InputError, RefusedError
from pipeline.storage.local import LocalStorage
from pipeline.storage.tree import OwnResultsError
from tests.corpus.test_listing import fill, names

LAYOUTS = {
    "a Delta Lake table": ["part-0.snappy.parquet", "_delta_log/00000000000000000000.json"],
    "a Delta Lake table, by parts": ["date=2024/part-0.parquet", "_delta_log/0.json"],
    "an Apache Iceberg table": ["data/0-0.parquet", "metadata/v1.metadata.json", "metadata/snap-1.avro"],
    "an Apache Iceberg table of Hadoop": ["data/0-0.parquet", "metadata/version-hint.text"],
    "an Apache Hudi table": ["2024/x_0-1-0_2024.parquet", ".hoodie/hoodie.properties"],
    "an Apache Hudi table, by a partition": ["f1_001.parquet", "f1_002.parquet", ".hoodie_partition_metadata"],
    "an Apache Paimon table": ["bucket-0/data-1.parquet", "snapshot/LATEST", "manifest/manifest-1", "schema/schema-0"],
    "a transactional table of Hive": ["delta_0000001_0000001_0000/b.parquet", "base_0000002/b.parquet"],
    "what a stream of Spark wrote": ["part-0.parquet", "_spark_metadata/0"],
    "being written by a job": ["part-0.parquet", "_temporary/0/x.parquet"],
    "being written by a job, of Databricks": ["part-0.parquet", "_started_12", "_started_11", "_committed_11"],
    "a cache of datasets": ["data-00000-of-00001.arrow", "dataset_info.json"],
    "what datasets' save_to_disk wrote": ["dataset_dict.json", "train/data-0.arrow", "train/dataset_info.json"],
    "holds results of offramp": ["part-0123456789abcdef.parquet", "_manifest.json"],
    "holds a run of offramp that has not ended": ["part-0123456789abcdef.parquet", "_receipts/g1/run.json"],
}


@pytest.mark.parametrize("above", ["", "sub/"])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_folder_whose_own_rules_say_what_counts_is_refused_by_name(kind: str, above: str, place: str) -> None:
    fill(f"{place}/in/{above}t", *LAYOUTS[kind])
    fill(f"{place}/in", "plain.jsonl")
    said = re.sub(r"(,| of Hadoop).*", "", kind)
    patterns = ["", "/**", f"/{above}t/**"]
    if "Delta" not in kind:  # which is read as a whole
        patterns.append(f"/{above}t")
    if any(name.endswith(".parquet") and "/" not in name for name in LAYOUTS[kind]):
        patterns += [f"/{above}*/*.parquet", f"/{above}t/*.parquet"]
    for pattern in patterns:
        with pytest.raises(InputError, match=rf"{place}/in/{above}t: .*{said}"):
            list_inputs(f"{place}/in{pattern}")
    assert names(f"{place}/in/*.jsonl") == ["plain.jsonl"]


@pytest.mark.parametrize(
    ("files", "part"),
    [
        (["date=2024/h=1/part-0.parquet", "_delta_log/0.json"], "date=2024"),
        (["date=2024/h=1/part-0.parquet", "_delta_log/0.json"], "date=2024/h=1"),
        (["date=2024/h=1/part-0.parquet", "_delta_log/0.json"], "date=2024/h=1/*.parquet"),
        (["data/x=1/0.parquet", "metadata/1.metadata.json"], "data"),
        (["data/x=1/0.parquet", "metadata/1.metadata.json"], "data/x=1"),
        (["data/x=1/0.parquet", "metadata/1.metadata.json"], "data/*/*.parquet"),
        (["d=1/0.parquet", ".hoodie/hoodie.properties"], "d=1"),
    ],
)
def test_a_part_of_such_a_folder_is_refused_as_well(files: list[str], part: str, place: str) -> None:
    fill(f"{place}/t", *files)
    with pytest.raises(InputError, match=f"{place}/t: is an? .* table"):
        list_inputs(f"{place}/t/{part}")


def test_what_plain_folders_hold_is_no_reason_to_refuse_them(place: str) -> None:
    plain = [
        "_SUCCESS",
        "_committed_11",
        "_started_11",
        "_metadata",
        "metadata/about.json",
        "schema/a.json",
        "state.json",
    ]
    fill(f"{place}/in", "part-0.parquet", *plain, "_manifest.json")
    assert names(f"{place}/in") == ["metadata/about.json", "part-0.parquet", "schema/a.json", "state.json"]


def test_results_are_an_input_as_a_whole_only(place: str) -> None:
    fill(f"{place}/out", "part-0123456789abcdef.parquet", "part-0123456789abcdee.g2.parquet", "_manifest.json")
    with pytest.raises(OwnResultsError):
        list_inputs(f"{place}/out")
    for pattern in ("/*.parquet", "/**"):
        with pytest.raises(InputError) as caught:
            list_inputs(f"{place}/out{pattern}")
        assert not isinstance(caught.value, OwnResultsError)


def test_a_link_leads_to_no_part_of_a_table(tmp_path: Path) -> None:
    fill(str(tmp_path), "ice/data/a.csv", "ice/metadata/v1.metadata.json", "in/b.csv")
    (tmp_path / "mine").symlink_to("ice/data")
    (tmp_path / "in" / "part1").symlink_to("../ice/data")
    for place in ("mine", "in"):
        with pytest.raises(InputError, match=f"{tmp_path}/ice: is an Apache Iceberg table"):
            list_inputs(f"{tmp_path}/{place}")


def test_a_folder_above_that_cannot_be_listed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(str(tmp_path), "data/a.csv")

    def refuse(_storage: object, folder: str) -> Iterator[str]:
        raise RefusedError(f"{folder}: Permission denied")

    monkeypatch.setattr(LocalStorage, "children", refuse)
    corpus = list_inputs(f"{tmp_path}/data")
    assert [file.name for file in corpus.files] == ["a.csv"]
    assert corpus.remarks == [f"{tmp_path} cannot be listed: whether data is a part of a table is not known"]
