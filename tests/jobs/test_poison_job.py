"""The main job on rows that raise and rows that kill its workers (see tests/support/poison): real Ray, real deaths."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from transformers import PreTrainedTokenizerFast

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.benchmark.synthetic import reviews
from pipeline.corpus.tokenize import Tokenizer, TokenizerSpec
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.rows import Predictions
from tests.support.jobs import REPOSITORY, run_job
from tests.support.poison.sitecustomize import RAISING_TOKENS, UPSETTING_TOKENS

pytestmark = pytest.mark.e2e

GOOD = [review.text for review in reviews(40, seed=2)]


def of_length(tokens: int) -> str:
    return " ".join(["the"] * (tokens - 2))  # beside [CLS] and [SEP]


def test_poison_rows_cost_themselves_and_nothing_else(
    model_directory: Path, review_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    corpus.mkdir()
    clean = {"raises.txt": GOOD[:20], "kills.txt": GOOD[20:21], "kills-later.txt": GOOD[22:23]}
    clean |= {f"others-{number}.txt": GOOD[:20] for number in range(6)}  # at work in the actor beside the poison
    poison = {
        "raises.txt": ["RAISE-TOKENIZE", of_length(RAISING_TOKENS)],
        "kills.txt": ["KILL-TOKENIZE"],
        "kills-later.txt": [of_length(UPSETTING_TOKENS)],
    }
    (corpus / "kills-reader.txt").write_text("\n".join([*GOOD[:3], "KILL-READ"]))
    for name, texts in clean.items():
        (corpus / name).write_text("\n".join([*texts, *poison.get(name, [])]))
    options = [
        "--model",
        str(model_directory),
        "--speed",
        "0.6",
        "--dtype",
        "fp32",
        "--input",
        str(corpus),
        "--bundle-rows",
        "20",
    ]
    path = os.pathsep.join([str(REPOSITORY / "tests" / "support" / "poison"), os.environ.get("PYTHONPATH", "")])
    done = run_job("classify.py", *options, "--output", str(out), PYTHONPATH=path)
    assert done.returncode == 0, done.stdout + done.stderr

    rejects = pd.read_parquet(out / "_rejects").set_index("id").sort_index()
    assert rejects.reason.to_dict() == {
        "kills-later.txt:1": "killed_worker",
        "kills-reader.txt": "unreadable_file",
        "kills.txt:1": "killed_worker",
        "raises.txt:20": "tokenize_failed",
        "raises.txt:21": "classify_failed",
    }
    assert rejects.detail["raises.txt:20"] == "ValueError: this text cannot be tokenized"
    assert rejects.detail["kills.txt:1"].startswith("tokenize: 2 workers died")
    assert rejects.detail["kills-reader.txt"] == "from row 0 on: 2 workers died while they read it"
    totals = json.loads((out / "_manifest.json").read_text())["totals"]
    assert (totals["rows_in"], totals["rows_out"], totals["rows_rejected"]) == (146, 142, 4)
    assert not list(out.glob("_attempts/*"))

    rows = pd.read_parquet(out).set_index("id")
    for name, texts in clean.items():  # as if the poison had never been there
        expected = undisturbed(model_directory, review_tokenizer, texts)
        there = rows.loc[[f"{name}:{row}" for row in range(len(texts))]]
        assert there.label_id.tolist() == expected.label_ids.tolist()
        assert there.exit_layer.tolist() == expected.exit_layers.tolist()
        np.testing.assert_allclose(there.score, expected.scores, atol=1e-5)
    assert rows.exit_layer.nunique() > 1


def undisturbed(model: Path, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Predictions:
    """Classify texts here, without Ray."""
    tokenizer = Tokenizer(TokenizerSpec.from_hugging_face(tokenizer, 64))
    config = EngineConfig(criterion=Criterion(name="entropy", speed=0.6), dtype="fp32")
    return Engine(LoadedModel(EarlyExitModel.from_pretrained(model), config)).run(tokenizer(texts).rows)
