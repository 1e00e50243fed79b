"""From a calibration to a nightly run that is held to its guarantee, as a user does it."""

import json
import shutil
from collections import Counter
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.benchmark.synthetic import reviews
from pipeline.calibration.drift.cells import BINS, cells_of
from tests.support.jobs import run_job_here

pytestmark = pytest.mark.e2e


def write(path: Path, rows: int, seed: int) -> str:
    pq.write_table(pa.table({"text": [review.text for review in reviews(rows, seed=seed)]}), path)
    return str(path)


@pytest.fixture(scope="module")
def calibrated(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tmp_path_factory.mktemp("calibrated") / "model"
    shutil.copytree(model_directory, model)
    chosen = EarlyExitModel.from_pretrained(model)
    chosen.criterion = Criterion(speed=0.3)
    chosen.save_criterion(model)
    sample = write(model.parent / "sample.parquet", 3000, 0)
    done = run_job_here("calibrate.py", "--model", str(model), "--data", sample, "--rows", "2000", "--temperature")
    assert done.returncode == 0, done.stderr
    assert f"2,000 of 3,000 rows of {sample}, drawn at random (--rows N takes more)" in done.stdout
    assert "| exit after layer | temperature |" in done.stdout
    assert "| 2x |" in done.stdout
    assert "so it is taken out" in done.stdout  # the temperatures have changed what a threshold means
    assert EarlyExitModel.from_pretrained(model).criterion is None
    stored = json.loads((model / "calibration.json").read_text())
    assert (stored["data"]["rows"], stored["curve"]["tested"]) == (2000, 1500)  # the others fitted the temperatures
    assert (model / "calibration.png").stat().st_size > 5000
    assert "| 2x |" in (model / "README.md").read_text()
    return model


def test_a_run_is_asked_for_a_limit_checked_and_withheld(calibrated: Path, tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    corpus.mkdir()
    write(corpus / "a.parquet", 1500, 5)
    options = ["--model", str(calibrated), "--input", str(corpus), "--output", str(out), "--audit", "40%"]
    options += ["--max-disagreement", "0.2", "--audit-fail", "--price-per-hour", "3"]
    first = run_job_here("classify.py", *options)
    assert first.returncode == 0, first.stderr
    manifest = json.loads((out / "_manifest.json").read_text())
    rows = pd.read_parquet(out)
    assert 0 < manifest["audit"]["rows"] < len(rows) == 1500
    assert manifest["audit"]["verdict"] in ("kept", "open")
    assert (
        manifest["audit"]["disagreement"] < 0.3
    )  # the limit, and six deviations of 600 rows drawn by the names of shards
    assert manifest["flops_speedup"] > 1.02
    assert manifest["expected_disagreement"]["rows"] == 1500
    assert {manifest[block]["state"] for block in ("expected_disagreement", "hard_rows")} == {"ok"}
    cells = cells_of(rows.exit_layer.to_numpy(np.int64) - 1, rows.uncertainty)
    assert manifest["totals"]["exit_uncertainty"] == np.bincount(cells, minlength=4 * BINS).tolist()
    assert {name: signal["state"] for name, signal in manifest["drift"].items()} == dict.fromkeys(
        ["exits", "truncation", "length", "uncertainty"], "ok"
    )
    assert manifest["cost"]["full_depth_device_seconds"] > 0
    assert "rows differ from full depth" in first.stdout
    assert "expected     " in first.stdout
    assert "in money" in first.stdout
    calibrate_again(calibrated, out, corpus, tmp_path, manifest["audit"])

    before = (out / "_manifest.json").read_bytes()
    pq.write_table(
        pa.table({"text": ["the room"] * 1500}), corpus / "b.parquet"
    )  # another kind of text, all of one length
    second = run_job_here("classify.py", *options[:6], "--audit", "0.1%", *options[8:])
    assert second.returncode == 1
    assert "not published" in second.stderr
    assert "drift in" in second.stderr
    assert "length (rows of " in second.stderr  # what moved
    assert (out / "_manifest.json").read_bytes() == before
    assert ">Not published<" in (out / "_report.html").read_text()
    again = run_job_here("classify.py", *options[:6], "--audit", "0.1%", *options[8:])
    assert again.returncode == 1  # nothing is left to classify, and still nothing is published
    assert (out / "_manifest.json").read_bytes() == before
    anyway = run_job_here("classify.py", *options[:6], "--audit", "0.1%", "--max-disagreement", "0.2")
    assert anyway.returncode == 0
    assert ">Not published<" not in (out / "_report.html").read_text()
    assert json.loads((out / "_manifest.json").read_text())["totals"]["rows_out"] == 3000


def calibrate_again(model: Path, out: Path, corpus: Path, tmp_path: Path, audit: dict[str, int]) -> None:
    """Calibrate a copy of the model on the audited rows of a run, and classify with that."""
    copy = tmp_path / "again"
    shutil.copytree(model, copy)
    before = (copy / "calibration.json").read_bytes()
    options = ["--model", str(copy), "--from-audits", str(out)]
    planned = run_job_here("calibrate.py", *options, "--max-disagreement", "0.2", "--plan")
    assert planned.returncode == 0, planned.stderr
    assert f"{audit['rows']:,} of {audit['rows']:,} recorded audited rows, of 1 night" in planned.stdout
    # The thresholds that were in force, on the very rows that the audit counted.
    (changed,) = [line.split(" | ") for line in planned.stdout.splitlines() if line.startswith("| 0.2 |")]
    assert abs(float(changed[2].rstrip("%")) / 100 * audit["rows"] - audit["differing"]) <= 2  # but for rounding
    assert "nothing is written" in planned.stdout
    assert (copy / "calibration.json").read_bytes() == before
    done = run_job_here("calibrate.py", *options, "--max-disagreement", "0.2")
    assert done.returncode == 0, done.stderr
    stored = json.loads((copy / "calibration.json").read_text())
    assert (stored["data"]["rows"], stored["data"]["nights"]) == (audit["rows"], 1)
    assert stored["timing"] is not None
    assert stored["timing"] == json.loads(before)["timing"]
    assert stored["scalings"] == json.loads(before)["scalings"] != []
    classified = run_job_here(
        "classify.py", "--model", str(copy), "--input", str(corpus), "--output", str(tmp_path / "out-2"),
        "--max-disagreement", "0.2", "--audit", "40%",
    )  # fmt: skip
    assert classified.returncode == 0, classified.stderr
    pooled = run_job_here("calibrate.py", *options, str(tmp_path / "out-2"), "--max-disagreement", "0.2", "--plan")
    assert pooled.returncode == 0, pooled.stderr
    assert "of 2 nights" in pooled.stdout
    for more, culprit in (
        (["--max-disagreement", "0.1%"], "a limit of 0.100% with 95% confidence takes 2,995 rows or more, and "),
        (["--max-tokens", "8"], "now it is 8; its audits are of that"),
        (["--label-separator", ";"], "--label-separator is of texts, and audits record no labels"),
        (["--data", "x"], "--data or --from-audits says where the rows are: give one of the two"),
        (["--temperature"], "--temperature changes the weights that the audits are of"),
        (["--rows", "5"], "--rows 5 are too few: a limit of 2.000% with 95% confidence takes 149 rows or more"),
    ):
        refused = run_job_here("calibrate.py", *options, *more)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
        assert culprit in refused.stderr
    file = copy / "calibration.json"
    values = json.loads(before)
    points = len(values["curve"]["differing"])
    values["curve"]["quality"] = {"labelled": 9, "right": 8, "lost": [0] * points, "gained": [0] * points}
    file.write_text(json.dumps(values))
    labelled = run_job_here("calibrate.py", *options, "--max-disagreement", "0.2", "--plan")
    assert labelled.returncode == 2
    assert "was calibrated with labels, for --max-quality-loss, and audits have none" in labelled.stderr
    file.write_text("{")
    damaged = run_job_here("calibrate.py", *options, "--max-disagreement", "0.2", "--plan")
    assert damaged.returncode == 0, damaged.stderr
    assert "the calibration so far is left out of account" in damaged.stdout


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        (["--target-speedup", "50"], "--target-speedup 50 cannot be reached"),
        (
            ["--target-speedup", "0.5", "--speedup-in", "time"],
            "--target-speedup must be at least 1, which is full depth",
        ),
        (["--speedup-in", "time"], "--speedup-in says what --target-speedup counts, and none is asked for"),
        (["--target-speedup", "2", "--speed", "0.1"], "--target-speedup and --speed exclude each other"),
        (
            ["--target-speedup", "2", "--exits", "1"],
            "--exits is chosen by --target-speedup, from what calibrate.py found",
        ),
        (["--max-disagreement", "1%", "--dtype", "int8"], "now it is int8; run jobs/calibrate.py again"),
        (["--max-disagreement", "1%", "--tolerance", "1"], "--tolerance 1: the model was calibrated with 0.1"),
        (
            ["--max-disagreement", "1%", "--audit-fail"],
            "--audit-fail needs --audit and a limit, such as --max-disagreement 1%",
        ),
        (["--max-missed", "rude=1%"], "--max-missed 'rude' is none of the model's labels: "),
        (["--max-missed", "rude"], "argument --max-missed: rude is no limit, such as 2%, or spam=2% for a class"),
        (["--max-quality-loss", "1%"], "--max-quality-loss needs a calibration on rows with true labels"),
        (["--max-disagreement", "3"], "argument --max-disagreement: 3 is not between 0 and 1"),
    ],
)
def test_targets_that_cannot_be_met_are_named(
    options: list[str], culprit: str, calibrated: Path, tmp_path: Path
) -> None:
    corpus = write(tmp_path / "a.parquet", 5, 0)
    done = run_job_here(
        "classify.py", "--model", str(calibrated), "--input", corpus, "--output", str(tmp_path / "o"), *options
    )
    assert done.returncode == 2
    assert culprit in done.stderr


def test_rows_without_finite_numbers_cost_themselves(model_directory: Path, tmp_path: Path) -> None:
    texts, model = [review.text for review in reviews(4400, seed=3)], tmp_path / "model"
    shutil.copytree(model_directory, model)
    spoiled = EarlyExitModel.from_pretrained(model)
    tokens = [set(ids) for ids in AutoTokenizer.from_pretrained(model)(texts)["input_ids"]]
    rows_of = Counter(chain.from_iterable(tokens))
    rare = min((token for token in rows_of if rows_of[token] > 20), key=lambda token: rows_of[token])
    spoiled.backbone.embeddings.word_embeddings.weight.data[rare] = 1e30  # finite, and its square is not
    spoiled.save_pretrained(model)
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    broken = rows_of[rare]
    for more in ([], ["--temperature"]):
        options = ["--model", str(model), "--data", str(tmp_path / "a.parquet"), "--dtype", "fp32", "--no-timing"]
        done = run_job_here("calibrate.py", *options, *more)
        assert done.returncode == 0, done.stderr
        assert f"{broken} of the rows are left out: an exit makes no finite numbers of them" in done.stdout
        stored = json.loads((model / "calibration.json").read_text())
        whole = 4400 - broken
        assert (stored["data"]["rows"], stored["data"]["rejected"]) == (whole, broken)
        fitted = np.random.default_rng(0).permutation(4400)[:1100] if more else np.arange(whole // 4)
        tested = whole - sum(rare not in tokens[row] for row in fitted) if more else whole - len(fitted)
        assert stored["curve"]["tested"] == tested


@pytest.mark.skipif(find_spec("nanotoken") is None, reason="needs nanotoken")
def test_a_calibration_holds_for_a_faster_tokenizer(calibrated: Path, tmp_path: Path) -> None:
    corpus = write(tmp_path / "a.parquet", 50, 8)
    options = ["--model", str(calibrated), "--input", corpus, "--max-disagreement", "0.2", "--audit", "50%"]
    results = []
    for more in ([], ["--fast-tokenizer"]):
        done = run_job_here("classify.py", *options, "--output", str(out := tmp_path / f"out{len(more)}"), *more)
        assert done.returncode == 0, done.stderr
        results.append(pd.read_parquet(out).sort_values("id", ignore_index=True))
    assert results[0].equals(results[1])
    made = json.loads((tmp_path / "out1" / "_manifest.json").read_text())["fingerprint"]
    assert made["fast-tokenizer"].startswith("nanotoken ")
    audits = ["--from-audits", str(tmp_path / "out0"), str(tmp_path / "out1"), "--max-disagreement", "0.2", "--plan"]
    done = run_job_here("calibrate.py", "--model", str(calibrated), *audits)
    assert done.returncode == 0, done.stderr


def test_targets_need_a_calibration_and_a_calibration_needs_exits(model_directory: Path, tmp_path: Path) -> None:
    corpus = write(tmp_path / "a.parquet", 5, 0)
    options = ["--model", str(model_directory), "--input", corpus, "--output", str(tmp_path / "o")]
    done = run_job_here("classify.py", *options, "--target-speedup", "2")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{model_directory}: not calibrated" in done.stderr
    assert "(jobs/calibrate.py)" in done.stderr
    done = run_job_here("calibrate.py", "--model", str(model_directory), "--data", corpus, "--label-separator", ";")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--label-separator is of the values of --label-column, and none is named" in done.stderr
