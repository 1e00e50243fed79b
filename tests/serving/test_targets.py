"""Requests that ask for a speed-up or a limit get the thresholds that the model's calibration knows."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient
from transformers import PreTrainedTokenizerFast

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.benchmark.synthetic import reviews
from pipeline.calibration.curve import Calibration, Curve
from pipeline.calibration.drift.signals import reference_of
from pipeline.calibration.fit import fit_curve
from pipeline.calibration.thresholds import Sample
from pipeline.corpus.chunks import Chunk
from pipeline.corpus.tokenize import Tokenizer, TokenizerSpec
from pipeline.engine.config import EngineConfig
from pipeline.errors import UserError
from pipeline.evaluation.recorded import record_as_run
from pipeline.identity import ModelIdentity
from pipeline.serving.app import build_app
from pipeline.serving.classifier import TextClassifier
from pipeline.serving.queue import EngineQueue
from pipeline.serving.spec import engine_criterion, usable_calibration
from tests.support.serving import LIMITS, new_engine

CRITERION = Criterion(speed=0.6)


@pytest.fixture(scope="module")
def tokenizer(review_tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    return Tokenizer(TokenizerSpec.from_hugging_face(review_tokenizer, 64))


@pytest.fixture(scope="module")
def curve(model_directory: Path, tokenizer: Tokenizer) -> Curve:
    model = EarlyExitModel.from_pretrained(model_directory)
    rows = tokenizer([review.text for review in reviews(2000, seed=8)], None).rows
    recorded = record_as_run(model, Chunk(rows=rows, labels=np.zeros(len(rows), np.float32)), "fp32", "cpu")
    return fit_curve(Sample.of(recorded, CRITERION, rows.lengths, model.flops), CRITERION, names=model.labels)


def client_of(directory: Path, tokenizer: Tokenizer, curve: Curve | None) -> TestClient:
    model = EarlyExitModel.from_pretrained(directory)
    queue = EngineQueue(new_engine(engine_criterion(CRITERION, model), model), batch_tokens=256, queue_tokens=1 << 20)
    return TestClient(
        build_app(TextClassifier(queue, tokenizer, CRITERION, LIMITS, curve), token_hash=None, version="1")
    )


def test_a_request_asks_for_a_speedup_or_a_limit(model_directory: Path, tokenizer: Tokenizer, curve: Curve) -> None:
    client = client_of(model_directory, tokenizer, curve)
    assert client.get("/model").json()["calibrated"] is True
    texts = [review.text for review in reviews(400, seed=9)]

    def answers(**asked: object) -> tuple[list[int], list[int]]:
        found = []
        for start in range(0, len(texts), 50):
            answer = client.post("/classify", json={"text": texts[start : start + 50], **asked})
            assert answer.status_code == 200, answer.text
            found += answer.json()["results"]
        return [row["label_id"] for row in found], [row["exit_layer"] for row in found]

    full, depths = answers(speed=0)
    assert set(depths) == {4}
    for speedup in (1.1, 1.3):
        expected = np.dot(curve.at_speedup(speedup).exits, np.arange(1, 5)) / 2000
        assert np.mean(answers(target_speedup=speedup)[1]) == pytest.approx(expected, rel=0.1)
    labels, exits = answers(max_disagreement=0.2)
    assert min(exits) < 4
    assert np.mean(np.array(labels) != full) < 0.3
    assert answers(max_disagreement=1e-6)[1] == depths  # nothing but full depth can be guaranteed
    notes = [
        client.post("/classify", json={"text": "a", **asked}).json().get("note", "")
        for asked in ({}, {"speed": 0}, {"max_disagreement": 0.2}, {"max_disagreement": 1e-6})
    ]
    assert notes[:3] == [""] * 3
    assert notes[3].startswith("full depth, since nothing faster can be guaranteed: ")
    assert notes[3].endswith("more than 0.0001%: no number of rows would do")
    names = client.get("/model").json()["labels"]
    assert answers(max_disagreement=0.2, max_missed={names[0]: 0.9, names[1]: 0.9})[1] == exits
    assert answers(max_disagreement=0.2, max_missed={names[0]: 1e-6})[1] == depths
    assert min(answers(max_missed=0.9)[1]) < 4


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"target_speedup": 50}, "target_speedup 50 cannot be reached"),
        ({"target_speedup": 0.5}, "greater than or equal to 1"),
        ({"max_disagreement": 1}, "less than 1"),
        ({"max_missed": {"good": 1.5}}, "less than 1"),
        ({"max_missed": {}}, "max_missed names no class"),
        ({"max_missed": {"rude": 0.1}}, "max_missed 'rude' is none of the model's labels: "),
        ({"max_missed": 0.1, "target_speedup": 2}, "max_missed and target_speedup exclude each other"),
        ({"max_quality_loss": 0.1}, "max_quality_loss needs a calibration on rows with true labels"),
        ({"max_disagreement": 0.1, "speed": 0.3}, "max_disagreement and speed exclude each other"),
    ],
)
def test_what_cannot_be_asked_is_told(
    model_directory: Path, tokenizer: Tokenizer, curve: Curve, asked: dict[str, object], problem: str
) -> None:
    answer = client_of(model_directory, tokenizer, curve).post("/classify", json={"text": "a", **asked})
    assert answer.status_code == 422
    assert problem in answer.json()["detail"]


@pytest.mark.parametrize("asked", ["target_speedup", "max_disagreement", "max_missed", "max_quality_loss"])
def test_without_a_calibration_there_is_nothing_to_ask(model_directory: Path, tokenizer: Tokenizer, asked: str) -> None:
    client = client_of(model_directory, tokenizer, None)
    answer = client.post("/classify", json={"text": "a", asked: 1 if asked == "target_speedup" else 0.1})
    assert answer.status_code == 422
    assert f"{asked} needs a calibration, and this model is served without one" in answer.json()["detail"]


def test_a_calibration_of_other_settings_is_not_used(model_directory: Path, tmp_path: Path, curve: Curve) -> None:
    shutil.copytree(model_directory, tmp_path, dirs_exist_ok=True)
    identity = ModelIdentity(weights="1a", config="2b", tokenizer="3c", max_tokens=64)
    engine = EngineConfig(criterion=CRITERION, dtype="fp32")
    assert usable_calibration(str(tmp_path), engine, identity) is None
    reference = reference_of([3], [False], [0.1])
    Calibration(model=identity.parts(), precision="fp32", data={}, curve=curve, reference=reference).save(tmp_path)
    for tolerance in (None, 0.1):
        assert usable_calibration(str(tmp_path), engine, identity, tolerance) is not None
    labelled = replace(CRITERION, label_thresholds=(0.3,))
    for settings, tolerance, problem in (
        (engine, 0.5, "about a tolerance of 0.1, and 0.5 is asked for"),
        (
            replace(engine, criterion=replace(CRITERION, name="confidence")),
            None,
            "about entropy, and the model is served",
        ),
        (replace(engine, criterion=labelled), None, "about other thresholds of labels"),
        (replace(engine, dtype="bf16"), None, "calibrated with dtype fp32, now it is bf16"),
    ):
        with pytest.raises(UserError, match=problem):
            usable_calibration(str(tmp_path), settings, identity, tolerance)
