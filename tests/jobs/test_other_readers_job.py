"""Programs that know nothing of offramp read its parts as they are; and what they read is what transformers says."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast, pipeline

from pipeline.benchmark.synthetic import reviews
from pipeline.output.results import open_results, published
from tests.support.arrow_types import CASES
from tests.support.jobs import run_job_here
from tests.support.models import label_set_classifier, random_classifier, spread_weights

pytestmark = pytest.mark.e2e

TEXTS = [review.text for review in reviews(120, seed=3)]
FILES = 3
UNKNOWN_TO_DATASETS = ("map", "map of maps", "decimal32", "decimal64")
"""Types for which `datasets` has no feature."""


@pytest.fixture(scope="module")
def models(
    tmp_path_factory: pytest.TempPathFactory, model_directory: Path, review_tokenizer: PreTrainedTokenizerFast
) -> dict[str, Path]:
    """Make a model of classes, one of label sets and one of a single logit."""
    found = {"classes": model_directory}
    for name in ("labels", "logit"):
        found[name] = tmp_path_factory.mktemp(name)
        (label_set_classifier() if name == "labels" else _one_logit()).save_pretrained(found[name])
        review_tokenizer.save_pretrained(found[name])
    return found


def _one_logit() -> Any:
    config = random_classifier("bert").config
    config.num_labels = 1
    return spread_weights(AutoModelForSequenceClassification.from_config(config)).eval()


@pytest.fixture(scope="module")
def outputs(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run the models over some files each of which has all types of Arrow, into several parts each."""
    folder, found = tmp_path_factory.mktemp("readers"), {}
    (folder / "in").mkdir()
    rows = len(TEXTS) // FILES
    columns = {
        f"k{number}": pa.concat_arrays([case, pa.nulls(rows - len(case), case.type)])
        for number, case in enumerate(CASES.values())
    }
    kept: dict[str, list[str]] = {"classes": [], "labels": [], "logit": []}
    for column, case in zip(columns, CASES, strict=True):
        kept["logit" if case in UNKNOWN_TO_DATASETS else "classes"].append(column)
    for number in range(FILES):
        texts = pa.array(TEXTS[number * rows : (number + 1) * rows])
        pq.write_table(pa.table({"text": texts, **columns}), folder / "in" / f"{number}.parquet")
    for name, model in models.items():
        options = [
            "--model",
            str(model),
            "--input",
            str(folder / "in"),
            "--output",
            str(folder / name),
            "--probabilities",
        ]
        options += ["--bundle-rows", str(rows), "--dtype", "fp32"]
        done = run_job_here("classify.py", *options, *(["--keep", *kept[name]] if kept[name] else []))
        assert done.returncode == 0, done.stderr
        found[name] = folder / name
    return found


def test_all_parts_of_a_run_have_the_columns_that_the_manifest_names(outputs: dict[str, Path]) -> None:
    for out in outputs.values():
        parts = list(out.glob("part-*"))
        assert len(parts) == FILES
        first = pq.read_schema(parts[0]).remove_metadata()
        assert first.equals(published(out).schema)
        for part in parts:
            assert pq.read_schema(part).remove_metadata().equals(first, check_metadata=True)
            assert pq.read_metadata(part).num_rows == len(TEXTS) // FILES


@pytest.mark.parametrize("name", ["classes", "labels", "logit"])
def test_duckdb_reads_the_parts(outputs: dict[str, Path], name: str) -> None:
    duckdb = pytest.importorskip("duckdb")
    ours = open_results(outputs[name]).to_table().sort_by("id")
    with duckdb.connect() as connection:
        glob = f"{outputs[name]}/part-*.parquet"
        theirs = connection.execute("select * from read_parquet(?) order by id", [glob])
        names = [column[0] for column in theirs.description]
        rows = theirs.fetchall()
    assert names == ours.column_names
    for number, column in enumerate(names):
        found = [row[number] for row in rows]
        if column.startswith("k"):  # of some types DuckDB has another value, such as a time in the zone of the session
            assert [value is None for value in found] == ours[column].is_null().to_pylist(), column
        else:
            assert found == ours[column].to_pylist(), column


@pytest.mark.parametrize("name", ["classes", "labels"])
def test_hugging_face_datasets_reads_the_parts(outputs: dict[str, Path], name: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    ours = open_results(outputs[name]).to_table().sort_by("id")
    glob = f"{outputs[name]}/part-*.parquet"
    theirs = datasets.load_dataset("parquet", data_files=glob, split="train", cache_dir=str(tmp_path)).data.table
    theirs = theirs.sort_by("id")
    assert theirs.column_names == ours.column_names
    for column in ours.column_names:
        found, expected = theirs[column], ours[column]
        if column.startswith("k"):
            assert found.null_count == expected.null_count
        else:
            assert found.to_pylist() == expected.to_pylist()


def test_the_probability_of_one_logit_is_that_of_transformers(
    models: dict[str, Path], outputs: dict[str, Path], review_tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = open_results(outputs["logit"]).to_table(columns=["id", "value", "probability"]).sort_by("id")
    order = np.argsort([f"{n // 40}.parquet:{n % 40}" for n in range(len(TEXTS))])
    model = AutoModelForSequenceClassification.from_pretrained(models["logit"])
    classify = pipeline("text-classification", model=model, tokenizer=review_tokenizer)
    for function, column in (("sigmoid", "probability"), ("none", "value")):
        theirs = classify(TEXTS, function_to_apply=function, truncation=True, max_length=64)
        wanted = np.array([result["score"] for result in theirs])[order]
        np.testing.assert_allclose(rows[column].to_numpy(), wanted, atol=1e-5)
    manifest = published(outputs["logit"])
    assert "value, probability, " in manifest.fingerprint["schema"]
    assert np.ptp(rows["probability"].to_numpy()) > 0.001
