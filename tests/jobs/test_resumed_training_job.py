"""A training that did not end goes on with the model that it began with, or not at all."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.train import TrainingFailedError

from models.early_exit import EarlyExitModel
from tests.support.jobs import run_job_here

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("job", ["distill", "finetune"])
@pytest.mark.parametrize("changed", ["weights", "tokenizer"])
def test_an_unfinished_training_does_not_go_on_with_another_model(
    changed: str, job: str, model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data, out = tmp_path / "model", tmp_path / "a.parquet", tmp_path / "out"
    shutil.copytree(model_directory, model)
    pq.write_table(pa.table({"text": ["a room", "a bed"] * 20, "label": ["x", "y"] * 20}), data)
    source, texts = ("--model", "--input") if job == "distill" else ("--backbone", "--train")
    options = [source, str(model), texts, str(data), "--output", str(out), "--epochs", "1"]

    def power_cut(*_: object, **_options: object) -> None:
        raise TrainingFailedError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr("jobs.work.training.run_workers", power_cut)
        assert run_job_here(f"{job}.py", *options).returncode == 1
    if changed == "weights":
        other = EarlyExitModel.from_pretrained(model)
        other.head(4).out.bias.data += 1e-3
        other.save_weights(model)
    else:
        tokenizer = model / "tokenizer.json"
        tokenizer.write_text(tokenizer.read_text().replace('"lowercase": true', '"lowercase": false'))
    refused = run_job_here(f"{job}.py", *options)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert f"holds a training that was not finished, with another {changed}." in refused.stderr
