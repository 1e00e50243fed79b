"""Every kind of input in whole runs: one folder of all of them, a Delta table night after night, and the jobs that train."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from pipeline.benchmark.synthetic import reviews
from pipeline.corpus.decoders.compression.zstd import libzstd
from pipeline.output.results import open_rejects, open_results
from tests.corpus.test_saved import save
from tests.corpus.test_zstd import frame, packed
from tests.support.jobs import classify, run_job_here, said

pytestmark = pytest.mark.e2e

ROWS: list[dict[str, Any]] = [
    {"doc": {"text": review.text, "meta": {"stars": row % 5}}, "label": f"l{row}"}
    for row, review in enumerate(reviews(240, seed=3))
]
COLUMNS = ["--text-column", "doc.text", "--keep", "doc.meta.stars", "label=truth", "lang"]


def fill(folder: Path) -> None:
    """Write the rows as every kind of file, in folders by language, and with each kind a row without a text."""
    quarters = [[*ROWS[number::4], {"doc": None, "label": "none"}] for number in range(4)]
    for lang in ("de", "__HIVE_DEFAULT_PARTITION__", "a%20b"):
        (folder / f"lang={lang}").mkdir(parents=True)
    tables = [pa.Table.from_pylist(rows) for rows in quarters]
    pq.write_table(tables[0], folder / "lang=de" / "a.parquet")
    with pa.ipc.new_file(str(folder / "lang=de" / "b.feather"), tables[1].schema) as out:
        out.write_table(tables[1], max_chunksize=7)
    with pa.ipc.new_stream(str(folder / "lang=a%20b" / "c.arrow"), tables[2].schema) as out:
        out.write_table(tables[2], max_chunksize=50)
    lines = "".join(json.dumps(row) + "\n" for row in quarters[3]).encode()
    half = lines.index(b"\n", len(lines) // 2) + 1
    long = frame(lines[half:], 31) if libzstd() else packed(lines[half:], 0)
    (folder / "lang=__HIVE_DEFAULT_PARTITION__" / "d.jsonl.zst").write_bytes(packed(lines[:half], 0) + long)


def test_a_folder_of_all_kinds_is_classified_and_labelled(model_directory: Path, tmp_path: Path) -> None:
    fill(tmp_path / "in")
    (tmp_path / "in" / "lang=de" / "e.arrow").write_bytes(b"ARROW1\0\0, but no more")
    done = classify(model_directory, tmp_path / "in", tmp_path / "out", *COLUMNS)
    assert done.returncode == 0, done.stderr
    rows = open_results(tmp_path / "out").to_table().to_pandas().sort_values("truth").reset_index(drop=True)
    expected = sorted(ROWS, key=lambda row: str(row["label"]))
    stars = [str(row["doc"]["meta"]["stars"]) for row in expected]  # as text, since the first file is JSON
    assert rows.truth.tolist() == [row["label"] for row in expected]
    assert rows.stars.tolist() == stars
    langs = [{"0": "de", "1": "de", "2": "a b", "3": None}[str(int(str(row["label"])[1:]) % 4)] for row in expected]
    assert [None if lang is None or lang != lang else lang for lang in rows.lang.tolist()] == langs
    rejects = open_rejects(tmp_path / "out").to_table().to_pandas()
    assert rejects.reason.value_counts().to_dict() == {"null_text": 4, "unreadable_file": 1}
    assert "nothing to do" in classify(model_directory, tmp_path / "in", tmp_path / "out", *COLUMNS).stdout
    clash = classify(model_directory, tmp_path / "in", tmp_path / "new", "--text-column", "doc.text", "--keep", "label")
    assert (clash.returncode, len(said(clash.stderr))) == (2, 1)
    assert "--keep label: the output has a column of that name itself; write it as another" in clash.stderr
    options = ["--model", str(model_directory), "--input", str(tmp_path / "in"), "--output", str(tmp_path / "soft")]
    labelled = run_job_here("label.py", *options, "--text-column", "doc.text", "--keep", "lang=tongue")
    assert labelled.returncode == 0, labelled.stderr
    soft = open_results(tmp_path / "soft").to_table().to_pandas()
    assert sorted(soft.text) == sorted(row["doc"]["text"] for row in ROWS)
    assert soft.tongue.value_counts().to_dict() == {"de": 120, "a b": 60}


def test_a_saved_data_set_and_a_delta_table_train_exits(model_directory: Path, tmp_path: Path) -> None:
    texts = [review.text for review in reviews(400, seed=6)]
    save(f"{tmp_path}/saved", [texts[:300], texts[300:]])
    write_deltalake(f"{tmp_path}/table", pa.table({"text": texts}))
    for source in ("saved", "table"):
        options = [
            "--model",
            str(model_directory),
            "--input",
            f"{tmp_path}/{source}",
            "--output",
            f"{tmp_path}/{source}-model",
        ]
        done = run_job_here("distill.py", *options, "--batch-rows", "64", "--epochs", "1")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / f"{source}-model" / "model.safetensors").exists()


def test_a_delta_table_is_classified_night_after_night(model_directory: Path, tmp_path: Path) -> None:
    table, out = tmp_path / "table", tmp_path / "out"

    def append(first: int) -> None:
        texts = [review.text for review in reviews(40, seed=first)]
        rows = {"text": texts, "n": range(first, first + 40), "day": [f"d{first}"] * 40}
        write_deltalake(str(table), pa.table(rows), mode="append", partition_by=["day"])

    def night(*more: str) -> tuple[int, pd.DataFrame, str]:
        done = classify(model_directory, table, out, "--keep", "n", "day", "--incremental", *more)
        return done.returncode, open_results(out).to_table().to_pandas().sort_values("n"), done.stdout + done.stderr

    for first in (0, 40):
        append(first)
        code, rows, lines = night()
        assert code == 0, lines
        assert rows.n.tolist() == [*range(first + 40)]
        assert rows.day.tolist() == ["d0"] * 40 + ["d40"] * first
    assert "Delta table at version 1: 2 files" in lines
    DeltaTable(table).delete("day = 'd0'")  # whole files, whose results stay
    append(80)
    code, rows, lines = night()
    assert (code, rows.n.tolist()) == (0, [*range(120)]), lines
    append(120)
    DeltaTable(table).delete("n = 81")  # a row of a file, whose other rows are in a new one
    code, rows, lines = night()
    assert (code, len(rows)) == (2, 120)
    assert "the Delta table has put it in the place of files whose rows have results already" in lines
    code, rows, lines = night("--overwrite")
    assert (code, rows.n.tolist()) == (0, [n for n in range(40, 160) if n != 81]), lines
