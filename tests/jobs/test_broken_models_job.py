"""Every job refuses a broken model with exit code 2 and one line, before it writes anything."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.broken_models import BROKEN
from tests.support.jobs import run_job_here

pytestmark = pytest.mark.e2e

DATA = {
    "classify": "--input",
    "label": "--input",
    "distill": "--input",
    "calibrate": "--data",
    "evaluate": "--data",
    "finetune": "--train",
    "serve": None,
}
"""Jobs, and the option of each for its texts."""
KINDS = ["config.json cut off", "weights a pointer", "weights that are no numbers", "no tokenizer", "an adapter"]


@pytest.mark.parametrize("what", KINDS)
@pytest.mark.parametrize("job", DATA)
def test_a_job_refuses_a_broken_model(job: str, what: str, model_directory: Path, tmp_path: Path) -> None:
    model, texts, out = tmp_path / "model", tmp_path / "a.parquet", tmp_path / "out"
    shutil.copytree(model_directory, model)
    BROKEN[what][0](model)
    pq.write_table(pa.table({"text": ["a room", "a bed"] * 20, "label": ["x", "y"] * 20}), texts)
    options = ["--backbone" if job == "finetune" else "--model", str(model)]
    options += [str(DATA[job]), str(texts)] if DATA[job] else []
    options += [] if job in ("calibrate", "serve") else ["--output", str(out)]
    before = sorted(model.iterdir())
    done = run_job_here(f"{job}.py", *options)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert str(model) in done.stderr
    assert not [*out.glob("*.parquet"), *out.glob("config.json")]
    assert sorted(model.iterdir()) == before


def test_a_home_folder_is_meant_in_a_config_file_too(
    model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no shell has made a path of it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(model_directory, tmp_path / "m")
    pq.write_table(pa.table({"text": ["a room", "a bed"], "label": ["positive", "negative"]}), tmp_path / "a.parquet")
    config = tmp_path / "job.toml"
    config.write_text(
        'model = "~/m"\ndata = "~/a.parquet"\noutput = "~/report"\nno-timing = true\ncompare = ["other=~/m"]\n'
    )
    done = run_job_here("evaluate.py", "--config", str(config))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report" / "report.html").is_file()
    config.write_text('model = ""\n')
    refused = run_job_here("evaluate.py", "--config", str(config))
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "the name is empty" in refused.stderr


@pytest.mark.parametrize(("job", "more"), [("calibrate", []), ("evaluate", ["--choose", "1"])])
@pytest.mark.parametrize("model", ["org/reviews", "s3://bucket/reviews"])
def test_what_is_written_into_a_model_needs_a_directory(job: str, more: list[str], model: str, tmp_path: Path) -> None:
    done = run_job_here(f"{job}.py", "--model", model, "--data", str(tmp_path), *more)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"--model {model}: this is written into the model, which has to be a directory here" in done.stderr
