"""Label sets in the engine: transformers' probabilities, and re-packed rows against one row at a time."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.early_exit import EarlyExitModel, ExitOutput
from models.exits.criterion import CRITERIA, Criterion
from pipeline.engine.all_exits import all_exits
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.errors import InputError
from pipeline.rows import Predictions, TokenRows
from tests.models.test_families import reference_logits
from tests.support.engines import EngineOfGpuRunners
from tests.support.models import (
    CONFIGS,
    TAGS,
    TOLERANCE,
    label_set_classifier,
    label_set_model,
    new_model,
    random_exits,
    random_rows,
)

THRESHOLDS = (0.5, 0.3, 0.7, 0.5, 0.1)
BOUNDARIES = np.log(np.array(THRESHOLDS) / (1 - np.array(THRESHOLDS)))


def run(model: EarlyExitModel, rows: TokenRows, criterion: Criterion) -> Predictions:
    return Engine(LoadedModel(model, EngineConfig(criterion=criterion, dtype="fp32", token_budget=64))).run(rows)


def predictions(logits: np.ndarray) -> Predictions:
    return Predictions(
        logits=logits.astype(np.float32),
        boundaries=(0.0, 1.0),
        exit_layers=np.ones(len(logits), np.int16),
        uncertainty=np.zeros(len(logits), np.float32),
        layer_tokens=0,
        padding_tokens=0,
    )


@pytest.mark.parametrize("family", CONFIGS)
def test_probabilities_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    theirs, rows = label_set_classifier(family), random_rows(30, 40, seed=1)
    rows.token_ids[rows.token_ids < 8] = 8
    theirs.save_pretrained(tmp_path)
    wanted = torch.sigmoid(reference_logits(theirs, rows, pad_to_longest=False)).numpy()
    for kind in (None, "pooled", "attention"):
        model = EarlyExitModel.from_pretrained(tmp_path)
        got = run(model if kind is None else random_exits(model, kind), rows, Criterion())
        np.testing.assert_allclose(got.probabilities, wanted, atol=TOLERANCE)
        near = np.abs(wanted - 0.5).min(1) < TOLERANCE
        np.testing.assert_array_equal(got.label_sets[~near], (wanted > 0.5)[~near])
        np.testing.assert_allclose(got.scores, np.maximum(wanted, 1 - wanted).min(1), atol=TOLERANCE)
    assert 0 < (wanted > 0.5).mean() < 1


def one_by_one(model: EarlyExitModel, rows: TokenRows) -> list[dict[int, ExitOutput]]:
    """Run every row alone through every exit."""
    with torch.inference_mode():
        return [next(all_exits(model, rows.take(np.array([row]))))[1] for row in range(len(rows))]


def oracle(outputs: list[dict[int, ExitOutput]], criterion: Criterion) -> list[tuple[int, float, float]]:
    """Exit layer, uncertainty, and the distance of the closest decision to its threshold, row by row."""
    outcomes = []
    for by_layer in outputs:
        before, streak, margin = None, 0, 1.0
        for layer in by_layer:
            logits = by_layer[layer].logits[0].numpy() - BOUNDARIES
            p = 1 / (1 + np.exp(-logits))
            margin = min(margin, float(np.abs(logits).min())) if criterion.name == "patience" else margin
            if criterion.name == "patience":
                streak = 0 if before is None or ((logits > 0) != before).any() else streak + 1
                before, doubt, threshold = logits > 0, max(0.0, 1 - streak / criterion.patience), 0.0
            else:
                doubt = float((-p * np.log2(p) - (1 - p) * np.log2(1 - p)).max())
                threshold = criterion.speed
                if criterion.name == "confidence":
                    doubt = float(np.minimum(p, 1 - p).max())
                elif criterion.name == "lte" and layer < max(by_layer):
                    lte = by_layer[layer].lte
                    assert lte is not None
                    doubt = 1 - float(torch.sigmoid(lte[0]))
                margin = min(margin, abs(doubt - threshold))
            if doubt <= threshold or layer == max(by_layer):
                outcomes.append((layer, doubt, margin))
                break
    return outcomes


@pytest.mark.parametrize("kind", ["pooled", "attention"])
@pytest.mark.parametrize("engine", [Engine, EngineOfGpuRunners])
def test_repacked_rows_equal_one_row_at_a_time(engine: type[Engine], kind: str, tmp_path: Path) -> None:
    model, rows, compared, layers = label_set_model(tmp_path, kind), random_rows(40, 40, seed=2), 0, set()
    outputs = one_by_one(model, rows)
    loaded = LoadedModel(model, EngineConfig(dtype="fp32", token_budget=64))
    for name in CRITERIA:
        for speed in (0.05, 0.3, 0.8) if name != "confidence" else (0.02, 0.1, 0.4):
            criterion = Criterion(name=name, speed=speed, patience=2, label_thresholds=THRESHOLDS)
            got = engine(loaded, replace(loaded.config, criterion=criterion)).run(rows)
            for row, (layer, doubt, margin) in enumerate(oracle(outputs, criterion)):
                if margin > TOLERANCE:
                    assert (got.exit_layers[row], got.uncertainty[row]) == (layer, pytest.approx(doubt, abs=1e-3))
                    compared += 1
            layers |= set(got.exit_layers.tolist())
            np.testing.assert_array_equal(got.label_sets, got.logits > BOUNDARIES.astype(np.float32))
    assert compared > 450
    assert len(layers) >= 3


def test_the_score_is_that_of_the_least_probable_decision() -> None:
    logits = np.array([[2.0, -1.0], [0.5, 9.0]])
    got, p = predictions(logits), 1 / (1 + np.exp(-logits))
    assert got.label_sets.tolist() == [[True, False], [True, True]]
    np.testing.assert_allclose(got.scores, [1 - p[0, 1], p[1, 0]], rtol=1e-6)
    assert got.differs(predictions(logits - 1), 0.0).tolist() == [False, True]


def test_thresholds_of_labels_that_a_model_does_not_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is for models of label sets, and this one predicts one class"):
        run(new_model(), random_rows(2, 5, seed=0), Criterion(label_thresholds=(0.3,)))
    with pytest.raises(InputError, match=f"has 2 values for {len(TAGS)} labels"):
        run(label_set_model(tmp_path), random_rows(2, 5, seed=0), Criterion(label_thresholds=(0.3, 0.4)))
