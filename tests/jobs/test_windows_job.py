"""Long texts through the jobs: windows, resume, refusals, a plan, a calibration and its guarantee, as a user does it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from pipeline.benchmark.synthetic import reviews
from pipeline.output.results import open_results
from tests.support.jobs import run_job_here

pytestmark = pytest.mark.e2e

WINDOWS = ["--long-texts", "windows", "--window-stride", "16", "--dtype", "fp32"]


def documents(count: int, seed: int) -> list[str]:
    """Join reviews, up to thirty of them, into documents."""
    sizes = np.random.default_rng(seed).choice([1, 3, 8, 30], count).tolist()
    return [" ".join(review.text for review in reviews(size, seed=seed + row)) for row, size in enumerate(sizes)]


def write(path: Path, texts: list[str | None]) -> None:
    pq.write_table(pa.table({"text": texts, "row": range(len(texts))}), path)


def test_a_run_over_long_texts_goes_on_and_is_what_transformers_makes_of_windows(
    model_directory: Path,
    review_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    corpus, out, whole = tmp_path / "corpus", tmp_path / "out", tmp_path / "whole"
    corpus.mkdir()
    texts: list[str | None] = [*documents(150, 0)]
    write(corpus / "a.parquet", [*texts[:100], None])
    run = ["--model", str(model_directory), "--input", str(corpus), "--keep", "row", "--probabilities", *WINDOWS]
    early = [*run, "--speed", "0.5", "--window-combine", "first-certain", "--window-certain", "0.4"]
    first = run_job_here("classify.py", *early, "--output", str(out), "--incremental", "--bundle-rows", "30")
    assert first.returncode == 0, first.stderr
    assert "windows      " in first.stdout
    write(corpus / "b.parquet", [*texts[100:], "x" * 50_000, "a . " * 9000])
    for other, why in (
        (
            ["--window-certain", "0.3"],
            "long-texts was windows, 16 tokens shared, 256 at most, first-certain up to 0.4, is",
        ),
        (["--max-windows", "4"], "256 at most, first-certain up to 0.4, is windows, 16 tokens shared, 4 at most"),
    ):
        refused = run_job_here("classify.py", *early, *other, "--output", str(out), "--incremental")
        assert refused.returncode == 2
        assert why in refused.stderr
    monkeypatch.setattr("pipeline.bulk.forecast.LEAST_SECONDS", 0.0)
    plan = run_job_here("classify.py", *early, "--output", str(out), "--incremental", "--plan")
    assert plan.returncode == 0, plan.stderr
    assert "windows      about" in plan.stdout
    resumed = run_job_here("classify.py", *early, "--output", str(out), "--incremental")
    assert resumed.returncode == 0, resumed.stderr
    again = run_job_here("classify.py", *early, "--output", str(whole), "--audit", "99%")
    assert again.returncode == 0, again.stderr
    rows, at_once = (
        open_results(folder).to_table().to_pandas().sort_values("id", ignore_index=True) for folder in (out, whole)
    )
    here, there = (np.stack(frame.pop("probabilities").tolist()) for frame in (rows, at_once))
    np.testing.assert_allclose(here, there, atol=1e-4)
    exact = ["id", "label", "exit_layer", "truncated", "windows", "row"]
    pd.testing.assert_frame_equal(rows[exact], at_once[exact])
    assert list(rows.columns) == [
        "id",
        "label",
        "label_id",
        "score",
        "exit_layer",
        "uncertainty",
        "truncated",
        "windows",
        "row",
    ]
    totals = [json.loads((folder / "_manifest.json").read_text())["totals"] for folder in (out, whole)]
    for name in ("rows_in", "rows_out", "windows", "tokens", "layer_tokens", "truncated", "exits"):
        assert totals[0][name] == totals[1][name]
    assert totals[0]["windows"] == rows.windows.sum() > len(rows)
    assert (totals[0]["rows_in"], totals[0]["rows_out"], totals[0]["truncated"]) == (153, 152, 1)
    audited = json.loads((whole / "_manifest.json").read_text())["audit"]
    assert 0 < audited["differing"] < audited["rows"]

    mean = run_job_here("classify.py", *run, "--speed", "0", "--output", str(tmp_path / "mean"))
    assert mean.returncode == 0, mean.stderr
    means = open_results(tmp_path / "mean").to_table().to_pandas().set_index("id")
    skipped = means.windows.sum() - rows.windows.sum()
    assert skipped > 50
    theirs = AutoModelForSequenceClassification.from_pretrained(model_directory).eval()
    for row, text in enumerate(texts[:20]):
        cut = review_tokenizer(text, truncation=True, max_length=64, stride=16, return_overflowing_tokens=True)
        with torch.inference_mode():
            wanted = torch.stack([theirs(input_ids=torch.tensor([ids])).logits[0] for ids in cut["input_ids"]])
        got = means.loc[f"a.parquet:{row}"]
        assert got.windows == len(wanted)
        np.testing.assert_allclose(got.probabilities, wanted.softmax(-1).mean(0).numpy(), atol=1e-4)


def test_a_limit_holds_for_texts_by_a_calibration_on_windows(model_directory: Path, tmp_path: Path) -> None:
    model, sample, corpus = tmp_path / "model", tmp_path / "sample.parquet", tmp_path / "corpus.parquet"
    shutil.copytree(model_directory, model)
    write(sample, [*documents(400, 1000)])
    write(corpus, [*documents(300, 5000)])
    common = ["--model", str(model), *WINDOWS, "--window-combine", "max"]
    done = run_job_here("calibrate.py", *common, "--data", str(sample), "--no-timing")
    assert done.returncode == 0, done.stderr
    stored = json.loads((model / "calibration.json").read_text())
    assert stored["data"]["rows"] == stored["curve"]["tested"] == 400
    assert stored["model"]["long-texts"] == "windows, 16 tokens shared, 256 at most, max"
    run = ["--input", str(corpus), "--output", str(tmp_path / "out"), "--max-disagreement", "0.2", "--audit", "99%"]
    for name, options in (("classify.py", common[:-2]), ("classify.py", ["--model", str(model), "--dtype", "fp32"])):
        other = run_job_here(name, *options, *run)
        assert other.returncode == 2
        assert (
            "the model was calibrated with long-texts windows, 16 tokens shared, 256 at most, max, now" in other.stderr
        )
    scaled = run_job_here("calibrate.py", *common, "--data", str(sample), "--temperature")
    assert scaled.returncode == 2
    assert "--temperature scales exits by rows that are texts" in scaled.stderr
    kept = run_job_here("classify.py", *common, *run)
    assert kept.returncode == 0, kept.stderr
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert manifest["audit"]["verdict"] in ("kept", "open")
    assert 0 < manifest["audit"]["disagreement"] < 0.3
    assert {name: signal["state"] for name, signal in manifest["drift"].items()} == dict.fromkeys(
        ["exits", "truncation", "length", "uncertainty"], "ok"
    )
