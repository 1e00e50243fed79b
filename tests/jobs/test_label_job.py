"""Soft labels from a plain transformers classifier, as a user makes them: real Ray, real files."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer, BertForSequenceClassification

from pipeline.benchmark.synthetic import reviews
from tests.support.jobs import run_job_here
from tests.support.models import CONFIGS

pytestmark = pytest.mark.e2e


def plain_teacher(directory: Path, tokenizer_from: Path) -> Path:
    """Write a classifier made with transformers alone."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_from)
    config = CONFIGS["bert"].__class__.from_dict(CONFIGS["bert"].to_dict() | {"vocab_size": len(tokenizer)})
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        model.classifier.weight *= 20
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def label_options(teacher: Path, corpus: Path, out: Path, *more: str) -> list[str]:
    return ["--model", str(teacher), "--input", str(corpus), "--output", str(out), "--dtype", "fp32", *more]


def test_labels_are_the_logits_of_transformers(model_directory: Path, tmp_path: Path) -> None:
    teacher = plain_teacher(tmp_path / "teacher", model_directory)
    texts = [review.text for review in reviews(120, seed=4)]
    corpus = tmp_path / "corpus.parquet"
    pq.write_table(pa.table({"text": [*texts, None], "row": range(121)}), corpus)
    fast = ["--fast-tokenizer"] if find_spec("nanotoken") else []
    options = ["--keep", "row", "--max-tokens", "40", *fast]
    done = run_job_here("label.py", *label_options(teacher, corpus, tmp_path / "out", *options))
    assert done.returncode == 0, done.stderr
    assert "goes on in its place" not in done.stderr
    rows = pd.read_parquet(tmp_path / "out")
    assert list(rows.columns) == ["id", "logits", "label", "uncertainty", "truncated", "text", "row"]
    rows = rows.sort_values("row")
    assert rows.text.tolist() == texts
    assert pd.read_parquet(tmp_path / "out" / "_rejects").reason.tolist() == ["null_text"]
    theirs = BertForSequenceClassification.from_pretrained(teacher).eval()
    encoded = AutoTokenizer.from_pretrained(teacher)(
        texts, padding=True, truncation=True, max_length=40, return_tensors="pt"
    )
    with torch.inference_mode():
        wanted = theirs(**encoded).logits.numpy()
    np.testing.assert_allclose(np.stack(rows.logits.tolist()), wanted, atol=1e-4)
    assert rows.label.tolist() == [theirs.config.id2label[index] for index in wanted.argmax(1)]
    assert rows.uncertainty.between(0, 1).all()
