"""A multi-label model through the jobs: calibrated, run over a corpus, labelled and evaluated, as a user does it."""

import json
from itertools import compress
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
from tests.support.models import TAGS, label_set_model

pytestmark = pytest.mark.e2e

TEXTS = [review.text for review in reviews(400, seed=7)]
THRESHOLDS = ["--label-threshold", "0.5", "staff=0.9"]
BOUNDARIES = [0.5, 0.9, 0.5, 0.5, 0.5]


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory, review_tokenizer: PreTrainedTokenizerFast) -> Path:
    directory = tmp_path_factory.mktemp("tagger")
    label_set_model(directory)
    review_tokenizer.save_pretrained(directory)
    return directory


def names(probabilities: np.ndarray) -> list[list[str]]:
    return [list(compress(TAGS, row)) for row in probabilities > BOUNDARIES]


def test_a_calibrated_run_over_a_corpus_keeps_its_limit_and_writes_lists_of_labels(
    tagger: Path, review_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    corpus, out = tmp_path / "corpus.parquet", tmp_path / "out"
    drawn = np.random.default_rng(0).random((len(TEXTS), 5)) < 0.5
    true = [list(compress(TAGS, row)) if number % 3 else None for number, row in enumerate(drawn)]
    pq.write_table(pa.table({"text": [*TEXTS, None], "row": range(len(TEXTS) + 1), "true": [*true, None]}), corpus)
    common = ["--model", str(tagger), "--dtype", "fp32"]
    labels = ["--label-column", "true"]
    done = run_job_here("calibrate.py", *common, "--data", str(corpus), "--no-timing", *THRESHOLDS, *labels)
    assert done.returncode == 0, done.stderr
    assert "266 have a label" in done.stdout
    assert "| quality | 266 | 1.63% | 658 |" in done.stdout
    assert "| 'staff' | 0 | 100.00% | ? |" in done.stdout  # no row has it at this threshold
    run = [*common, "--input", str(corpus), "--output", str(out), "--keep", "row", "--probabilities"]
    limit = ["--max-disagreement", "0.3", "--max-missed", "view=30%", "clean=20%", "--max-quality-loss", "0.1"]
    limit += ["--audit", "0.99"]
    other = run_job_here("classify.py", *run, *limit)
    assert other.returncode == 2
    assert "--label-threshold is not what the model was calibrated with: above 0.5 0.9 0.5 0.5 0.5" in other.stderr
    done = run_job_here("classify.py", *run, *limit, *THRESHOLDS, "--examples")
    assert done.returncode == 0, done.stderr
    assert "labels above 0.5 0.9 0.5 0.5 0.5" in done.stdout
    assert "calibration rows that full depth gives 'clean' get another answer, so at most" in done.stdout
    assert "of 266 labelled rows lose a right answer and" in done.stdout
    assert "guarantee    at most 30% of all rows differ from full depth; at most 30% of the rows that" in done.stdout
    rows = open_results(out).to_table().to_pandas().sort_values("row")
    columns = ["id", "labels", "score", "probabilities", "exit_layer", "uncertainty", "truncated", "row"]
    assert list(rows.columns) == columns
    assert pq.read_schema(next(out.glob("part-*"))).field("labels").type == pa.list_(pa.string())
    probabilities = np.stack(rows.probabilities.tolist())
    assert [list(labels) for labels in rows.labels] == names(probabilities)
    manifest = json.loads((out / "_manifest.json").read_text())
    assert manifest["audit"]["differing"] <= 0.3 * manifest["audit"]["rows"]
    counted = {name: sum(name in labels for labels in rows.labels) for name in TAGS}
    assert manifest["predictions"]["classes"] == counted | {"no label": int((rows.labels.map(len) == 0).sum())}
    assert manifest["guarantee"] == {
        "max_disagreement": 0.3,
        "max_missed_by_class": {"view": 0.3, "clean": 0.2},
        "max_quality_loss": 0.1,
        "confidence": 0.95,
    }
    page = (out / "_report.html").read_text()
    assert "labels above" in page
    assert "accuracy is at most 10% below that of full depth" in page
    # Rows at full depth have what transformers computes.
    theirs = AutoModelForSequenceClassification.from_pretrained(tagger).eval()
    encoded = review_tokenizer(TEXTS, padding=True, truncation=True, max_length=64, return_tensors="pt")
    with torch.inference_mode():
        wanted = theirs(**encoded).logits.sigmoid().numpy()
    deepest = (rows.exit_layer == 4).to_numpy()
    np.testing.assert_allclose(probabilities[deepest], wanted[deepest], atol=1e-4)
    differing = [labels != full for labels, full in zip(names(probabilities), names(wanted), strict=True)]
    assert abs(sum(differing) - manifest["audit"]["differing"]) <= 8  # the audit leaves some rows out
    audited = {each["name"]: each for each in manifest["audit"]["classes"]}
    assert audited.keys() == {"view", "clean"}
    for name, each in audited.items():
        having = [
            (name in labels, name in full) for labels, full in zip(names(probabilities), names(wanted), strict=True)
        ]
        assert abs(sum(full for _, full in having) - each["rows"]) <= 12
        assert abs(sum(full and not now for now, full in having) - each["missed"]) <= 8
        assert each["verdict"] != "broken"
    assert "nothing to do" in run_job_here("classify.py", *run, *limit, *THRESHOLDS).stdout
    another = run_job_here("classify.py", *run, "--speed", "0.5", "--label-threshold", "0.4")
    assert another.returncode == 2
    assert "criterion" in another.stderr


def test_soft_labels_and_an_evaluation_of_label_sets(tagger: Path, tmp_path: Path) -> None:
    labels = [list(compress(TAGS, row)) for row in np.random.default_rng(0).random((len(TEXTS), 5)) < 0.4]
    data = tmp_path / "data.parquet"
    pq.write_table(pa.table({"text": TEXTS, "label": labels}), data)
    common = ["--model", str(tagger), "--dtype", "fp32"]
    done = run_job_here("label.py", *common, "--input", str(data), "--output", str(tmp_path / "soft"), "--no-text")
    assert done.returncode == 0, done.stderr
    rows = pd.read_parquet(tmp_path / "soft")
    assert list(rows.columns) == ["id", "logits", "labels", "uncertainty", "truncated"]
    predicted = np.stack(rows.logits.tolist()) > 0
    assert [list(row) for row in rows.labels] == [list(compress(TAGS, row)) for row in predicted]
    report = ["--output", str(tmp_path / "report"), "--no-timing", "--label-threshold", "0.6", "--choose", "100"]
    done = run_job_here("evaluate.py", *common, "--data", str(data), *report)
    assert done.returncode == 0, done.stderr
    assert "micro-f1" in done.stdout
    assert "subset-accuracy" in done.stdout
    assert (tmp_path / "report" / "luha.png").is_file()
    stored = json.loads((tagger / "config.json").read_text())["early_exit"]["criterion"]
    assert stored["label_thresholds"] == [0.6]
