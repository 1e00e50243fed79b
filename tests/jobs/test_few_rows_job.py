"""Jobs on no row, on rows that are all rejected, on one and on two: a number that is defined, or one line and exit code 2."""

import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.jobs import run_job_here

pytestmark = pytest.mark.e2e

TEXTS: dict[str, list[str | None]] = {
    "no row": [],
    "rows that are all rejected": [None, "", "  "],
    "one row": ["the room was clean"],
    "two rows": ["the room was clean", "never again"],
}
JOBS: dict[str, tuple[str, list[str]]] = {
    "evaluate": ("--data", ["--no-timing"]),
    "evaluate --choose": ("--data", ["--no-timing", "--choose", "1", "--metric", "f1"]),
    "evaluate --output": ("--data", ["--no-timing", "--metric", "mcc"]),
    "calibrate": ("--data", ["--no-timing"]),
    "calibrate --temperature": ("--data", ["--no-timing", "--temperature"]),
    "label": ("--input", []),
    "distill": ("--input", ["--epochs", "1"]),
    "distill --label-column": ("--input", ["--epochs", "1", "--label-column", "label"]),
    "finetune": ("--train", ["--epochs", "1"]),
    "finetune --task regression": ("--train", ["--epochs", "1", "--task", "regression", "--label-column", "value"]),
}
REFUSED = {
    "evaluate": "no usable text in column 'text'",
    "calibrate": "no usable text in column 'text'",
    "distill": "no usable row to hold out at its start; give dev rows|no usable row is left to train on",
    "finetune": "no usable text in column 'text'|no row|all labels are|there is nothing to learn",
}
ENOUGH = {("evaluate", 1), ("calibrate", 1), ("label", 0), ("distill", 2)}
"""Jobs, and the fewest usable rows that they take; two rows are never enough to fine-tune, since one is held out."""


@pytest.mark.parametrize("rows", TEXTS)
@pytest.mark.parametrize("command", JOBS)
def test_few_rows(command: str, rows: str, model_directory: Path, tmp_path: Path) -> None:
    job, option, more = command.split()[0], *JOBS[command]
    model, data, out, texts = tmp_path / "model", tmp_path / "a.parquet", tmp_path / "out", TEXTS[rows]
    shutil.copytree(model_directory, model)
    labels, values = ["positive", "negative", "positive"][: len(texts)], [1.5, 2.5, 3.5][: len(texts)]
    columns = {"text": pa.array(texts, pa.string()), "label": pa.array(labels, pa.string()), "value": values}
    pq.write_table(pa.table(columns), data)
    output = ["--output", str(out)] if job in ("label", "distill", "finetune") or "--output" in command else []
    done = run_job_here(
        f"{job}.py", "--backbone" if job == "finetune" else "--model", str(model), option, str(data), *output, *more
    )
    usable = len([text for text in texts if text and text.strip()])
    enough = any(name == job and usable >= fewest for name, fewest in ENOUGH)
    if command == "calibrate --temperature" and usable:  # a quarter of the rows fits temperatures
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "--temperature cannot be fitted: none of the 0 rows for it can be used" in done.stderr
    elif enough:
        assert done.returncode == 0, done.stderr
        assert not re.search(r"\bnan\b", done.stdout, re.IGNORECASE)
        assert "Warning" not in done.stderr
        if job == "label":
            assert json.loads((out / "_manifest.json").read_text())["totals"]["rows_out"] == usable
    else:
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert re.search(REFUSED[job], done.stderr)
        assert not (out / "config.json").exists()


def test_labels_that_say_nothing_are_refused_before_a_model_is_written(model_directory: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "a.csv", tmp_path / "out"
    options = ["--backbone", str(model_directory), "--train", str(data), "--output", str(out), "--epochs", "1"]
    lines = [f"a room,{label}" for label in ["neg", "pos"] * 28 + [""] * 4]
    data.write_text("\n".join(["text,label", *lines]))
    done = run_job_here("finetune.py", *options)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{data}: column 'label' has a null or empty label in row 56; leave such rows out" in done.stderr
    data.write_text("\n".join(["text,label", *lines[:56]]))
    (tmp_path / "dev.csv").write_text("text,label\na bed,neutral\n")
    done = run_job_here("finetune.py", *options, "--dev", str(tmp_path / "dev.csv"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{tmp_path}/dev.csv: label 'neutral' is none of the model's classes: neg, pos" in done.stderr
    done = run_job_here("finetune.py", *options, "--class-names", "neg,pos,neutral")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"--train {data}: no row to train on is of class 'neutral'" in done.stderr
    assert not (out / "config.json").exists()


def test_agreement_with_the_teacher_is_just_that(model_directory: Path, tmp_path: Path) -> None:
    """The last head is the teacher's own, so that it agrees with it in every row, whatever the labels say."""
    data, out = tmp_path / "a.parquet", tmp_path / "out"
    texts = ["the room was clean", "never again", "the staff was kind", "cold food"] * 100
    labels = ["positive", None, "negative", ""] * 100
    pq.write_table(pa.table({"text": texts, "truth": labels}), data)
    options = ["--model", str(model_directory), "--input", str(data), "--output", str(out), "--epochs", "1"]
    done = run_job_here("distill.py", *options, "--label-column", "truth")
    assert done.returncode == 0, done.stderr
    assert re.search(r"agreement with the teacher by exit: 1: \d\.\d+, .*4: 1\.000$", done.stdout, re.MULTILINE)
    assert re.search(r"accuracy by the labels by exit: 1: \d\.\d+", done.stdout)
    plain = run_job_here("distill.py", *options[:-3], str(tmp_path / "plain"), *options[-2:])
    assert plain.returncode == 0, plain.stderr
    assert "by the labels" not in plain.stdout
    for wrong, problem in (
        (["--temperature", "0"], "--temperature must be above 0"),
        (["--label-share", "2", "--label-column", "truth"], "--label-share must be in"),
    ):
        refused = run_job_here("distill.py", *options, *wrong)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert problem in refused.stderr
