"""The Python face: lists of texts, batches of every kind, bad rows, and what is asked of the exits."""

import os
import pickle
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from models.directory.digest import weights_digest
from models.early_exit import EarlyExitModel
from pipeline.api.classifier import Classifier
from pipeline.api.pretrained import load_tokenizer_spec
from pipeline.benchmark.synthetic import CLASSES, reviews
from pipeline.calibration.curve import Calibration, Curve
from pipeline.calibration.drift.signals import reference_of
from pipeline.errors import InputError, UserError
from pipeline.identity import ModelIdentity
from pipeline.schema import RESULTS
from tests.support.hub_server import TOKEN, Repository, hub_server
from tests.support.jobs import REPOSITORY
from tests.support.models import regression_model

TEXTS = [review.text for review in reviews(200, seed=3)]
BAD: list[Any] = [None, "", "  \n", float("nan"), 7, "\ud800", b"\xff"]
ADDED = ["label", "label_id", "score", "exit_layer", "uncertainty", "truncated"]


@pytest.fixture(scope="module")
def classify(model_directory: Path) -> Classifier:
    return Classifier.from_pretrained(model_directory, speed=0.6, dtype="fp32", probabilities=True)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory, review_tokenizer: PreTrainedTokenizerFast) -> Path:
    directory = tmp_path_factory.mktemp("scorer")
    regression_model().save_pretrained(directory)
    review_tokenizer.save_pretrained(directory)
    return directory


def rows_with_bad_ones() -> tuple[list[Any], list[int]]:
    """Texts with a bad row after every tenth, and the places of the good ones."""
    rows: list[Any] = []
    for start in range(0, len(TEXTS), 10):
        rows += [*TEXTS[start : start + 10], BAD[start // 10 % len(BAD)]]
    return rows, [place for place in range(len(rows)) if place % 11 != 10]


def test_full_depth_gives_the_classes_that_transformers_gives(
    model_directory: Path, review_tokenizer: PreTrainedTokenizerFast
) -> None:
    results = Classifier(model_directory, speed=0, dtype="fp32", probabilities=True)(TEXTS)
    theirs = AutoModelForSequenceClassification.from_pretrained(model_directory).eval()
    encoded = review_tokenizer(TEXTS, padding=True, truncation=True, max_length=64, return_tensors="pt")
    with torch.inference_mode():
        wanted = theirs(**encoded).logits.softmax(1).numpy()
    np.testing.assert_allclose(results.probabilities, wanted, atol=1e-4)
    assert results.labels == [CLASSES[index] for index in wanted.argmax(1)]
    assert set(results.exit_layers) == {4}


def test_rows_exit_where_they_are_certain_enough(classify: Classifier) -> None:
    results = classify(TEXTS)
    assert len(results) == len(TEXTS)
    assert len(set(results.exit_layers)) > 2
    early = results.exit_layers < 4
    assert (results.uncertainties[early] <= 0.6).all()
    np.testing.assert_allclose(results.scores, results.probabilities.max(1))
    first = next(iter(results))
    assert (first["label"], first["exit_layer"]) == (results.labels[0], results.exit_layers[0])
    assert results.to_pandas().label.tolist() == results.labels


def test_a_bad_row_costs_itself(classify: Classifier) -> None:
    rows, good = rows_with_bad_ones()
    results, alone = classify(rows), classify(TEXTS)
    bad = sorted({*range(len(rows))} - {*good})
    assert len(bad) == 20
    assert [results.labels[place] for place in good] == alone.labels
    np.testing.assert_allclose(results.scores[good], alone.scores, atol=1e-5)
    assert [results.labels[place] for place in bad] == [None] * len(bad)
    assert np.isnan(results.scores[bad]).all()
    assert np.isnan(results.probabilities[bad]).all()
    assert (results.exit_layers[bad] == 0).all()
    assert list(results)[bad[0]] == dict.fromkeys(results.table.column_names)


def test_a_row_without_numbers_costs_itself(model_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classify = Classifier(model_directory, dtype="fp32")
    run = classify._engine.run

    def broken(rows: Any) -> Any:
        predictions = run(rows)
        predictions.predictions.logits[3] = np.nan
        return predictions

    monkeypatch.setattr(classify._engine, "run", broken)
    assert [place for place, label in enumerate(classify(TEXTS).labels) if label is None] == [3]


@pytest.mark.parametrize("rows", [[], [None], [None, "", 5]])
def test_a_batch_without_a_text_has_the_same_columns(rows: list[Any], classify: Classifier) -> None:
    assert classify(rows).table.schema == classify(TEXTS).table.schema
    assert classify(rows).labels == [None] * len(rows)
    assert classify(rows).probabilities.shape[0] == len(rows)


def test_pairs_come_as_tuples_or_as_a_second_list(classify: Classifier) -> None:
    seconds = TEXTS[::-1]
    results = classify(TEXTS, seconds)
    assert results.table == classify(list(zip(TEXTS, seconds, strict=True))).table
    assert results.table != classify(TEXTS).table
    mixed: list[Any] = [("a good room", "a bad room"), ("a good room", None), None, "a good room"]
    assert [label is None for label in classify(mixed).labels] == [False, True, True, True]
    with pytest.raises(InputError, match="pairs are 1 second texts for 200 first ones"):
        classify(TEXTS, ["one"])


def as_dict(table: pa.Table) -> dict[str, np.ndarray[Any, Any]]:
    return {name: np.array(table[name].to_pylist(), object) for name in table.column_names}


@pytest.mark.parametrize("kind", ["arrow", "pandas", "numpy"])
def test_a_batch_comes_back_in_its_kind_with_its_columns_and_ours(kind: str, classify: Classifier) -> None:
    rows = [*TEXTS, None, ""]
    table = pa.table({"n": range(len(rows)), "text": rows, "kept": [f"row {n}" for n in range(len(rows))]})
    batch: Any = {
        "arrow": table,
        "pandas": table.to_pandas().set_index(np.full(len(rows), 9)),
        "numpy": as_dict(table),
    }[kind]
    made: Any = classify(batch)
    assert type(made) is type(batch)
    names = list(made.column_names if kind == "arrow" else made)
    assert names == ["n", "text", "kept", "label", "label_id", "score", "probabilities", *ADDED[3:]]
    if kind == "numpy":
        made = pd.DataFrame({name: list(values) for name, values in made.items()})
    elif kind == "arrow":
        made = made.to_pandas()
    wanted = classify(rows)
    assert made.kept.tolist() == table["kept"].to_pylist()
    assert made.label.iloc[:200].tolist() == wanted.labels[:200]
    assert made.exit_layer.iloc[:200].tolist() == wanted.exit_layers[:200].tolist()
    np.testing.assert_allclose(np.stack(made.probabilities.iloc[:200]), wanted.probabilities[:200], atol=1e-6)
    np.testing.assert_array_equal(made.score.to_numpy(np.float32, na_value=np.nan), wanted.scores)
    for name in ADDED:
        assert made[name].iloc[-2:].isna().all(), name


@pytest.mark.parametrize("rows", [TEXTS[:5], [*TEXTS[:5], None], [None]], ids=["good", "mixed", "bad"])
def test_types_are_the_same_for_every_batch(rows: list[Any], classify: Classifier) -> None:
    table = classify(pa.table({"text": pa.array(rows, pa.string())}))
    assert {field.name: field.type for field in table.schema if field.name in RESULTS} == {
        name: RESULTS[name] for name in (*ADDED, "probabilities")
    }
    frame = classify(pd.DataFrame({"text": pd.Series(rows, dtype=object)}))
    kinds = {name: str(kind) for name, kind in frame.dtypes.items() if name in ADDED}
    strings = str(pa.table({"text": ["a"]}).to_pandas().text.dtype)
    assert kinds == {
        "label": strings, "label_id": "Int32", "score": "float32", "exit_layer": "Int16", "uncertainty": "float32",
        "truncated": "boolean",
    }  # fmt: skip
    arrays = classify({"text": np.array(rows, object)})
    assert {name: str(arrays[name].dtype) for name in ADDED} == {
        "label": "object", "label_id": "float32", "score": "float32", "exit_layer": "float32", "uncertainty": "float32",
        "truncated": "object",
    }  # fmt: skip


def test_columns_are_those_that_were_named(model_directory: Path) -> None:
    classify = Classifier(model_directory, text_column="review", pair_column="other", prefix="our_", dtype="fp32")
    frame = pd.DataFrame({"review": TEXTS[:9], "other": TEXTS[9:18], "label": "theirs"})
    made = classify(frame)
    assert made.label.tolist() == ["theirs"] * 9
    assert made.our_label.tolist() == classify(TEXTS[:9], TEXTS[9:18]).labels
    with pytest.raises(InputError, match="prefix '': the batch has a column 'score' already"):
        Classifier(model_directory)({"text": np.array(["a"]), "score": np.zeros(1)})
    with pytest.raises(InputError, match="text_column review: the batch has no such column; it has text"):
        classify(pa.table({"text": ["a"]}))
    with pytest.raises(InputError, match="give a list of texts"):
        classify("one text")


def test_a_model_of_values_gives_values(scorer: Path) -> None:
    classify = Classifier(scorer, speed=0.5, dtype="fp32")
    results = classify([*TEXTS, None])
    assert results.table.column_names == ["value", "exit_layer", "uncertainty", "truncated"]
    assert np.isfinite(results.values[:-1]).all()
    assert np.isnan(results.values[-1])
    assert classify.labels is None
    more = Classifier(scorer, speed=0.5, dtype="fp32", probabilities=True)([*TEXTS, None])
    assert more.table.column_names == ["value", "probability", "exit_layer", "uncertainty", "truncated"]
    np.testing.assert_allclose(more.probabilities, 1 / (1 + np.exp(-results.values.astype(float))), rtol=1e-6)


def test_the_default_criterion_is_that_of_the_model(model_directory: Path, scorer: Path) -> None:
    assert Classifier(model_directory).criterion.describe() == "entropy 0.1"
    assert Classifier(scorer).criterion.name == "lte"
    assert Classifier(model_directory, criterion="confidence", speed=0.2).criterion.describe() == "confidence 0.2"


def calibrate(directory: Path, model: Path) -> Path:
    """Copy a model and put a calibration beside it, of three points that halve the FLOPs at each step."""
    shutil.copytree(model, directory)
    curve = Curve(
        criterion="entropy", tolerance=0.1, layers=[1, 2, 3], depth=4, speeds=[[0, 0, 0], [0.2, 0.2, 0.2], [0.8, 0.8, 0.8]],
        flops_fractions=[1.0, 0.5, 0.25], exits=[[0, 0, 0, 9000], [3000, 3000, 3000, 0], [9000, 0, 0, 0]],
        differing=[0, 10, 5000], tested=9000,
    )  # fmt: skip
    reference = reference_of([5, 9], [False, False], [0.1, 0.2])
    loaded = EarlyExitModel.from_config(directory)
    identity = ModelIdentity.of(loaded, weights_digest(directory), load_tokenizer_spec(str(directory), loaded))
    Calibration(model=identity.parts(), precision="fp32", data={}, curve=curve, reference=reference).save(directory)
    return directory


def test_a_speed_up_or_a_limit_is_looked_up_in_the_calibration(model_directory: Path, tmp_path: Path) -> None:
    model = calibrate(tmp_path / "calibrated", model_directory)
    assert dict(Classifier(model, target_speedup=4, dtype="fp32").criterion.speeds) == {1: 0.8, 2: 0.8, 3: 0.8}
    classify = Classifier(model, max_disagreement=0.01, dtype="fp32")
    assert dict(classify.criterion.speeds) == {1: 0.2, 2: 0.2, 3: 0.2}
    wanted = Classifier(model_directory, speed=0.2, dtype="fp32")(TEXTS)
    assert classify(TEXTS).exit_layers.tolist() == wanted.exit_layers.tolist()
    automatic = Classifier(model, max_disagreement=0.01)  # in the precision that was calibrated, whatever is best here
    assert automatic(TEXTS).table.equals(classify(TEXTS).table)
    with pytest.warns(UserWarning, match=r"every row runs at full depth, .+: 10 of 9,000 rows differ"):
        slow = Classifier(model, max_disagreement=0.0001, dtype="fp32")
    assert slow.criterion.full_depth


FROM_HUB = """
from models.early_exit import EarlyExitModel
from pipeline.api.classifier import Classifier, load_tokenizer_spec, weights_digest
from pipeline.engine.config import EngineConfig
from pipeline.errors import UserError
from pipeline.identity import ModelIdentity
from pipeline.serving.spec import usable_calibration

print(Classifier("me/calibrated", max_disagreement=0.01, dtype="fp32").criterion.describe())
for name in ("me/plain", "me/other"):
    try:
        Classifier(name, max_disagreement=0.01)
    except (UserError, FileNotFoundError) as error:
        print(str(error).partition(",")[0])
for name in ("me/plain", "me/calibrated"):
    model = EarlyExitModel.from_config(name)
    identity = ModelIdentity.of(model, weights_digest(name), load_tokenizer_spec(name, model))
    print(name, usable_calibration(name, EngineConfig(dtype="fp32"), identity) is not None)
"""


@pytest.mark.e2e
def test_a_calibration_comes_with_a_model_of_the_hub(model_directory: Path, tmp_path: Path) -> None:
    model = calibrate(tmp_path / "calibrated", model_directory)
    with hub_server() as hub:
        for name, directory in (("calibrated", model), ("plain", model_directory)):
            files = {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
            hub.repositories[f"me/{name}"] = Repository(private=False, files=files)
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        environment = os.environ | environment | {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}
        command = [sys.executable, "-W", "ignore", "-c", FROM_HUB]
        done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        Classifier(model, max_disagreement=0.01, dtype="fp32").criterion.describe(),
        "me/plain: not calibrated",
        "me/other: neither a directory here nor a model that the hub gives",
        "me/plain False",
        "me/calibrated True",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_speedup": 9.0}, "target_speedup 9 cannot be reached"),
        ({"target_speedup": 2.0, "speed": 0.1}, "target_speedup and `speed` exclude each other"),
        ({"target_speedup": 2.0, "criterion": "entropy"}, "criterion is chosen by `target_speedup`"),
        ({"max_disagreement": 3.0}, "max_disagreement must be between 0 and 1, not 3"),
        ({"max_disagreement": "1%"}, "max_disagreement must be a number, not '1%'"),
        ({"max_missed": {"positive": "2%"}}, "max_missed must be a number, not '2%'"),
        ({"max_missed": [0.02]}, r"max_missed must be a number, not \[0\.02\]"),
        ({"max_missed": {"positive": None}}, "max_missed must be a number, not None"),
        ({"max_disagreement": Fraction(3, 2)}, r"max_disagreement must be between 0 and 1, not 1\.5"),
        ({"max_disagreement": 10**400}, "max_disagreement must be a number, not 1000"),
        ({"max_quality_loss": True}, "max_quality_loss must be a number, not True"),
        ({"label_threshold": {"a": "0.3"}}, "label_threshold must be a number, not '0.3'"),
        ({"speed": "0.3"}, "speed must be a number, not '0.3'"),
        ({"target_speedup": 0.5}, "target_speedup must be at least 1, which is full depth, not 0.5"),
        ({"target_speedup": float("nan")}, "target_speedup must be at least 1, which is full depth, not nan"),
        ({"max_disagreement": 0.01, "dtype": "bf16"}, "calibrated with dtype fp32, now it is bf16"),
        ({"max_tokens": 1000}, "max_tokens 1000: the model takes 70 tokens at most"),
        ({"speed": 2.0}, r"speed must be in \[0, 1\], not 2.0"),
        ({"criterion": "luck"}, "criterion must be one of"),
        ({"dtype": "fp8"}, "dtype must be one of"),
    ],
)
def test_wrong_values_are_named(options: dict[str, Any], message: str, model_directory: Path, tmp_path: Path) -> None:
    model = calibrate(tmp_path / "calibrated", model_directory)
    with pytest.raises(UserError, match=message):
        Classifier(model, **({"dtype": "fp32"} | options))


def test_the_class_travels_by_its_name() -> None:
    assert pickle.loads(pickle.dumps(Classifier)) is Classifier
    error = pickle.loads(pickle.dumps(InputError("text_column", "absent")))
    assert (error.field, str(error)) == ("text_column", "text_column absent")


def test_the_public_names_are_there() -> None:
    import pipeline.api as face

    assert {"Classifier", "EarlyExitModel", "Engine", "open_rejects", "open_results"} <= {*face.__all__} <= {*dir(face)}
    assert all(getattr(face, name) is not None for name in face.__all__)
    assert face.Classifier is Classifier
    assert face.EarlyExitModel is EarlyExitModel
    with pytest.raises(AttributeError, match="no attribute 'Clasifier'"):
        face.Clasifier  # noqa: B018
