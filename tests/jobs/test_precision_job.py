"""What 'auto' stands for is settled once: folders and calibrations are gone on with in the precision that they were made in."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from models.precision import best_dtype
from pipeline.benchmark.synthetic import reviews
from tests.support.jobs import run_job_here

pytestmark = pytest.mark.e2e

TEXTS = [review.text for review in reviews(60, seed=9)]
BEST = best_dtype(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
OTHER = {"fp32": "bf16", "bf16": "fp32"}[BEST]


def recorded(out: Path) -> str:
    dtype: str = json.loads((out / "_manifest.json").read_text())["fingerprint"]["dtype"]
    return dtype


def test_a_folder_is_gone_on_with_in_its_own_precision(model_directory: Path, tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    corpus.mkdir()
    pq.write_table(pa.table({"text": TEXTS}), corpus / "a.parquet")
    options = ["--model", str(model_directory), "--input", str(corpus), "--output", str(out), "--speed", "0.6"]
    first = run_job_here("classify.py", *options, "--dtype", OTHER)
    assert first.returncode == 0, first.stderr
    assert recorded(out) == OTHER
    pq.write_table(pa.table({"text": TEXTS[:20]}), corpus / "b.parquet")
    automatic = run_job_here("classify.py", *options)
    assert automatic.returncode == 0, automatic.stderr
    assert f"computing in {OTHER}, as the results in {out} were; here auto would be {BEST}" in automatic.stdout
    assert recorded(out) == OTHER
    refused = run_job_here("classify.py", *options, "--dtype", BEST)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert f"dtype was {OTHER}, is {BEST}" in refused.stderr
    anew = run_job_here("classify.py", *options, "--overwrite")
    assert anew.returncode == 0, anew.stderr
    assert recorded(out) == BEST


def test_a_calibration_decides_the_precision(model_directory: Path, tmp_path: Path) -> None:
    model, data, out = tmp_path / "model", tmp_path / "a.parquet", tmp_path / "out"
    model.mkdir()
    for file in model_directory.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    pq.write_table(pa.table({"text": TEXTS}), data)
    options = ["--model", str(model), "--data", str(data), "--no-timing", "--dtype", OTHER]
    calibrated = run_job_here("calibrate.py", *options)
    assert calibrated.returncode == 0, calibrated.stderr
    assert json.loads((model / "calibration.json").read_text())["precision"] == OTHER
    options = ["--model", str(model), "--input", str(data), "--output", str(out), "--max-disagreement", "20%"]
    done = run_job_here("classify.py", *options)
    assert done.returncode == 0, done.stderr
    assert recorded(out) == OTHER
    refused = run_job_here("classify.py", *options, "--dtype", BEST)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert f"the model was calibrated with dtype {OTHER}, now it is {BEST}" in refused.stderr
    tokenizer = model / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"lowercase": true', '"lowercase": false'))
    refused = run_job_here("classify.py", *options)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "the model was calibrated with tokenizer " in refused.stderr
