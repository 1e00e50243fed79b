"""Training as users do it: jobs on real Ray, killed and started again."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from models.early_exit import EarlyExitModel
from pipeline.benchmark.synthetic import CLASSES, reviews
from tests.support.jobs import REPOSITORY, run_job_here

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six files of reviews, with a bad row here and there."""
    folder = tmp_path_factory.mktemp("corpus")
    made = list(reviews(6000, seed=5))
    for number in range(6):
        part = made[number::6]
        texts = [None if row == 7 else review.text for row, review in enumerate(part)]
        labels = [CLASSES[review.label] if row % 2 else None for row, review in enumerate(part)]
        pq.write_table(pa.table({"text": texts, "truth": labels}), folder / f"{number}.parquet")
    return folder


def distill_options(model: Path, corpus: Path, out: Path, *more: str) -> list[str]:
    small = ["--batch-rows", "32", "--checkpoint-seconds", "0"]
    return ["--model", str(model), "--input", str(corpus), "--output", str(out), *small, *more]


def weights(model: Path) -> dict[str, np.ndarray]:
    return load_file(model / "model.safetensors")


def test_a_killed_distillation_goes_on_and_ends_as_an_undisturbed_one(
    model_directory: Path, corpus: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    undisturbed = run_job_here("distill.py", *distill_options(model_directory, corpus, whole, "--epochs", "2"))
    assert undisturbed.returncode == 0, undisturbed.stderr
    options = distill_options(model_directory, corpus, parts, "--epochs", "2")
    log = open(tmp_path / "log", "w")  # noqa: SIM115 - closed below
    job = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "jobs" / "distill.py"), *options],
        stdout=log,
        stderr=log,
        env=os.environ | {"RAY_ADDRESS": "local"},
    )
    state = parts / "_checkpoint" / "state.pt"
    deadline = time.monotonic() + 300
    while not state.exists() and time.monotonic() < deadline and job.poll() is None:
        time.sleep(0.02)
    job.send_signal(signal.SIGKILL)
    job.wait(timeout=200)
    log.close()
    assert state.exists()
    assert not (parts / "config.json").exists()
    again = run_job_here("distill.py", *options)
    assert again.returncode == 0, again.stderr
    assert "going on at epoch" in again.stdout
    seen = "12,000 rows seen"
    assert seen in undisturbed.stdout
    assert seen in again.stdout
    expected, got = weights(whole), weights(parts)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, atol=1e-6, err_msg=name)
    assert not (parts / "_checkpoint").exists()
    assert any("dev" in json.loads(line) for line in (parts / "training.jsonl").read_text().splitlines())


def test_labels_of_a_teacher_train_exits_that_classify(model_directory: Path, corpus: Path, tmp_path: Path) -> None:
    labels, model, out = tmp_path / "labels", tmp_path / "model", tmp_path / "out"
    label = ["--model", str(model_directory), "--input", str(corpus), "--output", str(labels), "--keep", "truth"]
    done = run_job_here("label.py", *label)
    assert done.returncode == 0, done.stderr
    options = ["--model", str(model_directory), "--labels", str(labels), "--output", str(model), "--batch-rows", "64"]
    distilled = run_job_here(
        "distill.py", *options, "--label-column", "truth", "--label-share", "0.2", "--head", "attention"
    )
    assert distilled.returncode == 0, distilled.stderr
    trained = EarlyExitModel.from_pretrained(model)
    assert (trained.branch_head, trained.lte is not None) == ("attention", True)
    before, after = weights(model_directory), weights(model)
    assert all(np.array_equal(after[name], before[name]) for name in after if not name.startswith(("exits.", "lte.")))
    classify = [
        "--model",
        str(model),
        "--input",
        str(corpus),
        "--output",
        str(out),
        "--criterion",
        "lte",
        "--speed",
        "0.7",
    ]
    classified = run_job_here("classify.py", *classify)
    assert classified.returncode == 0, classified.stderr
    rows = pd.read_parquet(out)
    assert len(rows) == 6000 - 6
    early = rows[rows.exit_layer < 4]
    assert len(early) > 0
    assert (early.uncertainty <= 0.7).all()

    student = tmp_path / "student"
    options[options.index(str(model))] = str(student)
    distilled = run_job_here("distill.py", *options, "--layers", "1,3")
    assert distilled.returncode == 0, distilled.stderr
    assert "a student of layers 1, 3 of 4" in distilled.stdout
    assert EarlyExitModel.from_pretrained(student).exit_layers == (2,)
    (agreement,) = re.findall(r"agreement with the teacher by exit: 2: ([0-9.]+)", distilled.stdout)
    assert float(agreement) > 0.8
    for more, why in (
        (["--head", "pooled"], "--head is about exits"),
        (["--layers", "9"], "has 4 layers, and no layer 9"),
        (["--layers", "2,1"], "2,1 does not ascend"),
    ):
        wrong = run_job_here("distill.py", *options, "--layers", "1,3", *more)
        assert (wrong.returncode, wrong.stderr.count("error")) == (2, 1)
        assert why in wrong.stderr

    unfinished = tmp_path / "unfinished"
    (unfinished / "_receipts" / "g1").mkdir(parents=True)
    (unfinished / "_receipts" / "g1" / "run.json").touch()
    refused = run_job_here(
        "distill.py", "--model", str(model), "--labels", str(unfinished), "--output", str(tmp_path / "x")
    )
    assert refused.returncode == 2
    assert "the run that writes there has not ended" in refused.stderr


def test_two_workers_train_like_one(model_directory: Path, corpus: Path, tmp_path: Path) -> None:
    losses = {}
    for workers in ("1", "2"):
        out = tmp_path / workers
        options = distill_options(model_directory, corpus, out, "--workers", workers, "--epochs", "2")
        done = run_job_here("distill.py", *options)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "12,000 rows seen" in done.stdout
        lines = [json.loads(line) for line in (out / "training.jsonl").read_text().splitlines()]
        losses[workers] = [line["loss"] for line in lines if "dev" in line]
    np.testing.assert_allclose(losses["2"], losses["1"], rtol=0.25)  # they take the rows in another order
    assert all(last < 0.6 * first for first, last in losses.values())


def test_values_are_learned_classified_and_told(model_directory: Path, tmp_path: Path) -> None:
    made = list(reviews(1500, seed=6))
    table = pa.table({"text": [r.text for r in made], "label": [r.label * 2.5 + 1 for r in made]})
    pq.write_table(table, tmp_path / "data.parquet")
    data, model = str(tmp_path / "data.parquet"), str(tmp_path / "model")
    done = run_job_here(
        "finetune.py", "--backbone", str(model_directory), "--train", data, "--output", model, "--task", "regression",
        "--strategy", "alternating", "--epochs", "1", "--learning-rate", "1e-3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "dev correlation by exit: 1: " in done.stdout
    classify = ["--model", model, "--input", data, "--output", str(tmp_path / "out")]
    classified = run_job_here("classify.py", *classify, "--criterion", "patience", "--tolerance", "10")
    assert classified.returncode == 0, classified.stderr
    rows = pd.read_parquet(tmp_path / "out")
    assert list(rows.columns) == ["id", "value", "exit_layer", "uncertainty", "truncated"]
    assert set(rows.exit_layer) == {2}  # the first neighbours agree within so wide a tolerance
    report = run_job_here("evaluate.py", "--model", model, "--data", data, "--no-timing", "--card")
    assert report.returncode == 0, report.stderr
    assert "pearson" in report.stdout
    card = Path(model, "README.md").read_text()
    assert "| --strategy | alternating |" in card
    assert "| --train | data.parquet |" in card
    assert "| trained | 4 layers, one value; " in card
    assert str(model_directory) not in card
    assert "## What the exits are worth" in card
    assert "| lte | " in card
    refused = run_job_here("classify.py", *classify, "--criterion", "entropy", "--overwrite")
    assert refused.returncode == 2
    assert "the model predicts a value; take lte or patience" in refused.stderr


@pytest.mark.parametrize("job", ["distill.py", "finetune.py"])
def test_a_model_is_trained_on_a_disk(job: str, model_directory: Path, tmp_path: Path) -> None:
    data = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a room", "a bed"] * 20, "label": ["x", "y"] * 20}), data)
    source = ("--model", "--input") if job == "distill.py" else ("--backbone", "--train")
    done = run_job_here(job, source[0], str(model_directory), source[1], str(data), "--output", "s3://bucket/model")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--output s3://bucket/model: training writes to a folder on disk" in done.stderr


def test_workers_that_do_not_fit_are_told_in_one_line(model_directory: Path, corpus: Path, tmp_path: Path) -> None:
    done = run_job_here("distill.py", *distill_options(model_directory, corpus, tmp_path / "out", "--workers", "5000"))
    assert done.returncode == 1
    assert "5000 actors want a core each" in done.stderr
    assert done.stderr.count("\n") == 1
