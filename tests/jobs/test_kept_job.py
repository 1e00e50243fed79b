"""Kept columns of every type, through the whole job: they come back as they went in."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.decoders.plain import plain
from pipeline.output.results import open_results
from pipeline.storage.base import is_remote
from pipeline.storage.locate import storage_of
from tests.support.arrow_types import CASES
from tests.support.jobs import run_job, run_job_here

TEXTS = ["the room was clean", "never again", "it was fine", "dull"]


@pytest.mark.e2e
def test_kept_columns_of_every_type_come_back(model_directory: Path, place: str, tmp_path: Path) -> None:
    values = [pa.concat_arrays([case, pa.nulls(4 - len(case), case.type)]) for case in CASES.values() if len(case) <= 4]
    names = [f"k{number}" for number in range(len(values))]
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": TEXTS} | dict(zip(names, values, strict=True))), file)
    stored = pq.read_table(file)
    storage_of(place).write(f"{place}/kept.parquet", file.read_bytes())
    options = ["--model", str(model_directory), "--input", f"{place}/kept.parquet", "--output", f"{place}/out"]
    run = run_job if is_remote(place) else run_job_here  # workers that are there already have no credentials
    done = run("classify.py", *options, "--keep", *names)
    assert done.returncode == 0, done.stderr
    results = open_results(f"{place}/out").to_table().sort_by("id")
    assert len(results) == len(TEXTS)
    for name, case in zip(names, CASES, strict=True):
        found, expected = results[name].combine_chunks(), plain(stored[name].combine_chunks())
        if case == "null":
            expected = pa.nulls(len(TEXTS), pa.string())
        assert found.to_string(window=100) == expected.to_string(window=100), case
