"""A Delta table from a first run to a nightly one, a killed one and an overwriting: what others read is what was published."""

import json
import time
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.benchmark.synthetic import reviews
from pipeline.output.results import open_results
from pipeline.storage.local import write_atomically
from tests.support.jobs import classify, shards_kept, start_job
from tests.support.tables import check_against_manifest, open_table, read_by_all

FILES, ROWS = 30, 1000


def ray_is_not_to_start(*_arguments: object) -> None:
    raise AssertionError("Ray was started")


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pipeline.cluster.connect", "pipeline.bulk.run"):
        monkeypatch.setattr(f"{module}.join_or_start", ray_is_not_to_start)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    return folder


def add_file(corpus: Path, name: str, rows: int = 50) -> None:
    lines = [json.dumps({"text": review.text, "source": name}) for review in reviews(rows, seed=len(name))]
    write_atomically(str(corpus / f"{name}.jsonl"), "\n".join([*lines, "{broken"]).encode())


def sorted_rows(table: pa.Table) -> pa.Table:
    return table.cast(pa.schema([field.with_nullable(True) for field in table.schema])).sort_by("id")


def check(out: Path, rows: int) -> None:
    """See that the table, as others read it, is what `open_results` reads."""
    found, published = check_against_manifest(out), open_results(out).to_table()
    assert len(found) == rows
    assert found.schema.names == published.schema.names
    columns = ["id", "label", "label_id", "score", "exit_layer", "uncertainty", "truncated", "source"]
    assert sorted_rows(found.select(columns)).to_pylist() == sorted_rows(published.select(columns)).to_pylist()


@pytest.mark.e2e
def test_a_table_through_the_nights(model_directory: Path, corpus: Path, tmp_path: Path) -> None:
    out, keep = tmp_path / "out", ("--keep", "source")
    add_file(corpus, "first")
    first = classify(model_directory, corpus, out, *keep, "--table", "delta")
    assert first.returncode == 0, first.stderr
    assert "Delta table: version 0, parts added: 1" in first.stdout
    check(out, 50)
    log = [*(out / "_delta_log").iterdir()]
    again = classify(model_directory, corpus, out, *keep, "--table", "delta")
    assert (again.returncode, [*(out / "_delta_log").iterdir()]) == (0, log)

    add_file(corpus, "second")
    nightly = classify(model_directory, corpus, out, *keep)  # nobody asks for the table any more
    assert nightly.returncode == 0, nightly.stderr
    assert "Delta table: version 1, parts added: 1, removed: 0" in nightly.stdout
    check(out, 100)

    before = sorted_rows(read_by_all(out))
    for number in range(FILES):
        add_file(corpus, f"{number:02}", ROWS)
    job = start_job(model_directory, corpus, out, *keep, "--bundle-rows", str(ROWS))
    deadline = time.monotonic() + 300
    while shards_kept(out) < 2 and time.monotonic() < deadline and job.poll() is None:
        time.sleep(0.02)
    job.kill()
    job.communicate(timeout=200)
    assert 2 <= shards_kept(out) < FILES
    assert sorted_rows(read_by_all(out)).equals(before)
    assert open_table(out).version() == 1
    resumed = classify(model_directory, corpus, out, *keep)
    assert resumed.returncode == 0, resumed.stderr
    check(out, 100 + FILES * ROWS)

    for number in range(FILES):
        (corpus / f"{number:02}.jsonl").unlink()
    over = classify(model_directory, corpus, out, *keep, "--speed", "0.5", "--overwrite")
    assert over.returncode == 0, over.stderr
    check(out, 100)
    assert open_table(out).version() == 3
    assert all(".g2." in uri for uri in open_table(out).file_uris())


@pytest.mark.e2e
def test_parts_open_as_they_are(model_directory: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    add_file(corpus, "first")
    done = classify(model_directory, corpus, out, "--keep", "source", "--probabilities")
    assert done.returncode == 0, done.stderr
    expected = open_results(out).to_table().sort_by("id").to_pylist()
    with duckdb.connect() as connection:
        rows = connection.read_parquet(f"{out}/part-*.parquet").order("id")
        names = rows.columns
        assert [dict(zip(names, row, strict=True)) for row in rows.fetchall()] == expected
        rejects = connection.read_parquet(f"{out}/_rejects/part-*.parquet").project("reason").fetchall()
        assert rejects == [("invalid_json",)]
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset("parquet", data_files=f"{out}/part-*.parquet", cache_dir=str(tmp_path / "cache"))
    assert sorted(loaded["train"].to_list(), key=lambda row: row["id"]) == expected


@pytest.mark.usefixtures("no_ray")
def test_a_column_that_the_table_cannot_have_is_named_before_ray_starts(
    model_directory: Path, corpus: Path, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"text": ["a room"], "stars": pa.array([5], pa.uint8())}), corpus / "a.parquet")
    done = classify(model_directory, corpus, tmp_path / "out", "--keep", "stars", "--table", "delta")
    assert done.returncode == 2
    assert done.stderr == (
        "classify.py: error: --keep stars: is of type uint8, which Delta tables have not: "
        "write it as a signed integer that is wide enough, or leave it out\n"
    )
    assert not (tmp_path / "out" / "_delta_log").exists()


@pytest.mark.usefixtures("no_ray")
def test_the_missing_extra_is_named_before_ray_starts(
    model_directory: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.errors.find_spec", lambda name: None)
    done = classify(model_directory, corpus, tmp_path / "out", "--table", "delta")
    assert done.returncode == 2
    assert done.stderr == "classify.py: error: deltalake is not installed: pip install 'offramp[delta]'\n"
    assert not (tmp_path / "out").exists()
