"""Label sets from Python and over HTTP: lists of texts, batches of every kind, bad rows, and thresholds of labels."""

import asyncio
from itertools import compress
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from fastapi import HTTPException
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from jobs.serve import build_parser
from jobs.work.serve import serving_spec
from pipeline.api.classifier import Classifier
from pipeline.benchmark.synthetic import reviews
from pipeline.bulk.codec import name_lists
from pipeline.cluster.resources import ActorPlan
from pipeline.errors import InputError
from pipeline.serving import deployment
from pipeline.serving.schema import ClassifyRequest, Result
from tests.support.models import TAGS, label_set_model

TEXTS = [review.text for review in reviews(60, seed=3)]


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory, review_tokenizer: PreTrainedTokenizerFast) -> Path:
    directory = tmp_path_factory.mktemp("tagger")
    label_set_model(directory)
    review_tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def probabilities(tagger: Path, review_tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """Compute the sigmoid of transformers' logits for TEXTS."""
    theirs = AutoModelForSequenceClassification.from_pretrained(tagger).eval()
    encoded = review_tokenizer(TEXTS, padding=True, truncation=True, max_length=64, return_tensors="pt")
    with torch.inference_mode():
        sigmoids: np.ndarray = theirs(**encoded).logits.sigmoid().numpy()
    return sigmoids


def names(predicted: np.ndarray) -> list[list[str]]:
    return [list(compress(TAGS, row)) for row in predicted]


def test_full_depth_gives_the_label_sets_that_transformers_gives(tagger: Path, probabilities: np.ndarray) -> None:
    results = Classifier(tagger, speed=0, dtype="fp32", probabilities=True)(TEXTS)
    assert results.label_sets == names(probabilities > 0.5)
    np.testing.assert_allclose(results.probabilities, probabilities, atol=1e-4)
    np.testing.assert_allclose(results.scores, np.maximum(probabilities, 1 - probabilities).min(1), atol=1e-4)
    middle = float(np.median(probabilities))
    assert Classifier(tagger, speed=0, dtype="fp32", label_threshold=middle)(TEXTS).label_sets == names(
        probabilities > middle
    )
    never = Classifier(tagger, speed=0, dtype="fp32", label_threshold=dict.fromkeys(TAGS, 0.999999))(TEXTS)
    assert never.label_sets == [[]] * len(TEXTS)
    with pytest.raises(InputError, match="'rude' is none of the model's labels"):
        Classifier(tagger, label_threshold={"rude": 0.1})


def test_batches_of_every_kind_get_lists_and_nulls_for_bad_rows(tagger: Path, probabilities: np.ndarray) -> None:
    classify = Classifier(tagger, speed=0, dtype="fp32", probabilities=True)
    wanted = [names(probabilities > 0.5)[0], None, names(probabilities > 0.5)[1]]
    texts = [TEXTS[0], None, TEXTS[1]]
    table = classify(pa.table({"text": texts}))
    assert table.schema.field("labels").type == pa.list_(pa.string())
    assert table["labels"].to_pylist() == wanted
    frame = classify(pd.DataFrame({"text": texts}))
    assert [None if value is None else list(value) for value in frame["labels"]] == wanted
    arrays = classify({"text": np.array(texts, object)})
    assert arrays["labels"].tolist() == wanted
    assert arrays["probabilities"].shape == (3, len(TAGS))


def test_lists_of_names_keep_the_order_of_the_labels_and_rows_without_any() -> None:
    made = name_lists(np.array([[False, True, True], [False, False, False], [True, False, True]]), ["c", "b", "a"])
    assert made.to_pylist() == [["b", "a"], [], ["c", "a"]]
    assert name_lists(np.zeros((0, 3), np.bool_), ["c", "b", "a"]).to_pylist() == []


def test_the_server_answers_with_lists_of_labels(tagger: Path, probabilities: np.ndarray) -> None:
    plan = ActorPlan(actors=1, max_actors=1, cpus=1, gpus=0, threads=1)
    options = ["--model", str(tagger), "--speed", "0.6", "--dtype", "fp32", "--label-threshold", "0.5", "staff=0.9"]
    replica = deployment.Replica(deployment.settled(serving_spec(build_parser().parse(options)), plan), plan)
    classifier = replica.classifier
    described = classifier.describe()
    assert (described["task"], described["labels"]) == ("labels", TAGS)
    assert described["criterion"] == "entropy 0.6, labels above 0.5 0.9 0.5 0.5 0.5"
    request = {"text": TEXTS[:10], "speed": 0.0, "probabilities": True}
    answers = asyncio.run(classifier.classify(ClassifyRequest.model_validate(request)))["results"]
    assert [answer["labels"] for answer in answers] == names(probabilities[:10] > [0.5, 0.9, 0.5, 0.5, 0.5])
    np.testing.assert_allclose([answer["probabilities"] for answer in answers], probabilities[:10], atol=1e-4)
    assert all("label" not in answer and Result.model_validate(answer) for answer in answers)
    with pytest.raises(HTTPException, match="max_disagreement needs a calibration"):
        asyncio.run(classifier.classify(ClassifyRequest.model_validate({"text": "a", "max_disagreement": 0.01})))
