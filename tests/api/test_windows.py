"""Long texts from Python: what the class makes of windows, and in which columns."""

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
from pipeline.benchmark.synthetic import reviews
from pipeline.calibration.curve import LONG_TEXTS, Calibration, Curve
from pipeline.calibration.drift.signals import reference_of
from pipeline.errors import InputError, UserError
from pipeline.identity import ModelIdentity
from pipeline.windows import LongTexts

TEXTS = [" ".join(review.text for review in reviews(1 + 5 * (seed % 6), seed=seed)) for seed in range(24)]


def windows_of(text: str, tokenizer: PreTrainedTokenizerFast, model: Path) -> np.ndarray:
    """Return the probabilities that transformers gives the windows of a text at full depth."""
    cut = tokenizer(text, truncation=True, max_length=64, stride=16, return_overflowing_tokens=True)
    theirs = AutoModelForSequenceClassification.from_pretrained(model).eval()
    with torch.inference_mode():
        logits = [theirs(input_ids=torch.tensor([ids])).logits[0] for ids in cut["input_ids"]]
    return torch.stack(logits).softmax(-1).numpy()


def test_texts_have_what_transformers_makes_of_their_windows(
    model_directory: Path, review_tokenizer: PreTrainedTokenizerFast
) -> None:
    options: dict[str, Any] = {"speed": 0.0, "dtype": "fp32", "long_texts": "windows", "window_stride": 16}
    mean = Classifier(model_directory, probabilities=True, **options)([*TEXTS, None])
    largest = Classifier(model_directory, window_combine="max", **options)(TEXTS)
    alone = Classifier(model_directory, speed=0.0, dtype="fp32", probabilities=True)(TEXTS)
    for row, text in enumerate(TEXTS[:12]):
        windows = windows_of(text, review_tokenizer, model_directory)
        assert mean.windows[row] == largest.windows[row] == len(windows)
        np.testing.assert_allclose(mean.probabilities[row], windows.mean(0), atol=1e-4)
        assert largest.scores[row] == pytest.approx(windows.max(), abs=1e-4)
        assert alone.truncated[row] == (len(windows) > 1)
        if len(windows) == 1:
            np.testing.assert_allclose(mean.probabilities[row], alone.probabilities[row], atol=1e-5)
    assert mean.windows.max() > 4
    assert mean.windows[-1] == 0
    assert mean.labels[-1] is None
    assert not mean.truncated.any()


def test_the_first_certain_window_spares_the_others_and_a_bound_truncates(model_directory: Path) -> None:
    every = Classifier(model_directory, dtype="fp32", long_texts="windows", window_combine="max")(TEXTS)
    options: dict[str, Any] = {"dtype": "fp32", "long_texts": "windows", "window_combine": "first-certain"}
    first = Classifier(model_directory, window_certain=1.0, **options)(TEXTS)
    assert (first.windows == 1).all()
    truncated = Classifier(model_directory, dtype="fp32")(TEXTS)
    assert first.labels == truncated.labels  # the first window is what truncation keeps
    least = Classifier(model_directory, window_certain=0.0, max_windows=3, **options)(TEXTS)
    assert (least.windows == np.minimum(every.windows, 3)).all()
    assert (least.truncated == (every.windows > 3)).all()
    assert least.truncated.any()
    frame = pd.DataFrame({"text": TEXTS[:3]})
    batch = Classifier(model_directory, **options)(frame)
    assert batch["windows"].dtype == "Int32"
    table = Classifier(model_directory, **options)(pa.Table.from_pandas(frame))
    assert table.schema.field("windows").type == pa.int32()
    assert "windows" not in Classifier(model_directory)(frame).columns


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"long_texts": "all"}, "long_texts must be one of truncate, windows, not 'all'"),
        ({"max_windows": 3}, "max_windows is for `long_texts` windows, and texts are truncated"),
        ({"long_texts": "windows", "window_certain": 0.2}, "window_certain is for `window_combine` first-certain"),
        ({"long_texts": "windows", "window_combine": "sum"}, "window_combine must be one of mean, max"),
    ],
)
def test_wrong_values_are_named(options: dict[str, Any], message: str, model_directory: Path) -> None:
    with pytest.raises(InputError, match=message):
        Classifier(model_directory, **options)


def test_pairs_are_refused(model_directory: Path) -> None:
    with pytest.raises(InputError, match="long_texts windows are made of single texts, and these are pairs"):
        Classifier(model_directory, long_texts="windows")(["a"], ["b"])


def test_a_calibration_holds_for_the_windows_that_it_saw(model_directory: Path, tmp_path: Path) -> None:
    model = EarlyExitModel.from_config(model_directory)
    spec = load_tokenizer_spec(str(model_directory), model)
    identity = ModelIdentity.of(model, weights_digest(model_directory), spec)
    curve = Curve(
        criterion="entropy", tolerance=0.1, layers=[1, 2, 3], depth=4, speeds=[[0, 0, 0]], flops_fractions=[1.0],
        exits=[[0, 0, 0, 9]], differing=[0], tested=9,
    )  # fmt: skip
    reference, windows = reference_of([5], [False], [0.1]), LongTexts(stride=16, combine="max")
    plain = Calibration(model=identity.parts(), precision="fp32", data={}, curve=curve, reference=reference)
    plain.check(identity, "fp32")
    with pytest.raises(
        UserError, match="with long-texts truncated, now it is windows, 16 tokens shared, 256 at most, max"
    ):
        plain.check(identity, "fp32", windows)
    parts = identity.parts() | {LONG_TEXTS: windows.describe()}
    cut = Calibration(model=parts, precision="fp32", data={}, curve=curve, reference=reference)
    cut.check(identity, "fp32", windows)
    with pytest.raises(UserError, match="256 at most, max, now it is truncated"):
        cut.check(identity, "fp32")
