"""Quality against cost: worthwhile exits against an exhaustive search, points against the engine itself, and the report."""

import json
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.early_exit import EarlyExitModel
from models.exits.criterion import CRITERIA, Criterion
from pipeline.benchmark.synthetic import CLASSES, reviews
from pipeline.corpus.chunks import Chunk
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.evaluation.evaluation import (
    EXIT_TEST_LAYERS,
    Evaluation,
    accuracy_by_uncertainty,
    cheapest_within,
    worthwhile_exits,
)
from tests.support.jobs import run_job_here
from tests.support.models import random_rows

LAYERS = (1, 2, 3, 4)


def cost(kept: tuple[int, ...], would_exit_EB: np.ndarray) -> float:
    """Return the cost in layers of all rows, exit tests included, one row at a time."""
    total = 0.0
    for row in would_exit_EB.T:
        for tests, layer in enumerate(kept):
            if row[layer - 1] or layer == LAYERS[-1]:
                total += layer + EXIT_TEST_LAYERS * tests
                break
    return total


def exiting(count: int) -> np.ndarray:
    """Return [4, 10]: the first `count` rows would exit after layer 2, and all after layer 4."""
    would_exit_EB = np.zeros((4, 10), np.bool_)
    would_exit_EB[1, :count] = True
    would_exit_EB[-1] = True
    return would_exit_EB


@given(seed=st.integers(0, 10_000), fraction=st.floats(0, 1))
def test_no_exit_can_be_dropped_from_those_worth_evaluating(seed: int, fraction: float) -> None:
    would_exit_EB = np.random.default_rng(seed).random((4, 30)) < fraction * np.array([[0.1], [0.3], [0.5], [1]])
    would_exit_EB[-1] = True
    chosen = worthwhile_exits(LAYERS, would_exit_EB)
    assert chosen[-1] == 4
    least = cost(chosen, would_exit_EB)
    assert least <= cost(LAYERS, would_exit_EB) + 1e-9
    for fewer in combinations(chosen[:-1], max(len(chosen) - 2, 0)):
        assert least <= cost((*fewer, 4), would_exit_EB) + 1e-9


def test_an_exit_that_no_row_takes_is_not_worthwhile_and_one_that_half_take_is() -> None:
    assert worthwhile_exits(LAYERS, exiting(5)) == (2, 4)
    assert worthwhile_exits(LAYERS, exiting(0)) == (4,)


@pytest.mark.parametrize("name", CRITERIA)
def test_points_are_what_the_engine_does(name: str, exit_model: EarlyExitModel) -> None:
    rows = random_rows(200, 40, seed=3)
    labels = np.random.default_rng(0).integers(0, 3, 200).astype(np.float32)
    evaluation = Evaluation(exit_model, Chunk(rows=rows, labels=labels))
    exits = set()
    for step in (1, 2, 3):
        criterion = Criterion(name=name, speed=step / 4, patience=step)
        point = evaluation.at(criterion)
        engine = Engine(LoadedModel(exit_model, EngineConfig(criterion=criterion, dtype="fp32")))
        got = engine.run(rows)
        assert point.exits == {layer: int((got.exit_layers == layer).sum()) for layer in LAYERS}
        assert point.quality == pytest.approx(float((got.label_ids == labels).mean()))
        full = engine.flops.full_depth(rows.lengths).sum()
        assert point.flops_speedup == pytest.approx(full / engine.flops.rows(rows.lengths, got.exit_layers).sum())
        exits |= {layer for layer, count in point.exits.items() if count}
    assert len(exits) > 2


def test_curves_start_at_full_depth_and_the_cheapest_point_keeps_the_quality(exit_model: EarlyExitModel) -> None:
    rows = random_rows(300, 40, seed=3)
    truth = Engine(LoadedModel(exit_model, EngineConfig(dtype="fp32"))).run(rows).label_ids.astype(np.float32)
    evaluation = Evaluation(exit_model, Chunk(rows=rows, labels=truth))
    for name in evaluation.criteria():
        curve = evaluation.curve(name)
        assert (curve[0].quality, curve[0].flops_speedup) == (1.0, 1.0)
        assert cheapest_within(curve, 0.0).quality == 1.0
        loose = cheapest_within(curve, 0.5)
        assert loose.quality >= 0.5
        assert loose.flops_speedup == max(p.flops_speedup for p in curve if p.quality >= 0.5)
    assert evaluation.by_layer()[4] == 1.0
    assert evaluation.by_layer("mcc")[1] < 1.0


def test_accuracy_is_counted_by_bins_of_uncertainty() -> None:
    uncertainty = np.array([0.05, 0.05, 0.55, 1.0], np.float32)
    middle, accuracy, rows = accuracy_by_uncertainty(uncertainty, np.array([True, True, True, False]))
    assert rows.tolist() == [2, 0, 0, 0, 0, 1, 0, 0, 0, 1]
    assert (accuracy[0], accuracy[5], accuracy[9]) == (1.0, 1.0, 0.0)
    assert np.isnan(accuracy[1])
    assert middle[0] == pytest.approx(0.05)


def test_the_report_stands_alone_and_the_chosen_point_becomes_the_models_own(
    model_directory: Path, tmp_path: Path
) -> None:
    made = list(reviews(300, seed=5))
    labels = pa.array([CLASSES[review.label] for review in made])
    pq.write_table(pa.table({"text": [review.text for review in made], "label": labels}), tmp_path / "data.parquet")
    model = tmp_path / "model"
    model.mkdir()
    for file in model_directory.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    done = run_job_here(
        "evaluate.py", "--model", str(model), "--data", str(tmp_path / "data.parquet"), "--output", str(tmp_path / "r"),
        "--choose", "3", "--compare", f"other={model_directory}", "--metric", "f1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "r" / "report.html").read_text()
    assert "What can be saved" in done.stdout
    assert "Beside other models" in done.stdout
    assert "What can be saved" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    figures = {file.stem for file in (tmp_path / "r").glob("*.png")}
    assert figures == {"trade-off", "layers", "models", "exits", "uncertainty", "luha"}
    assert page.count("data:image/png;base64,") == len(figures)
    stored = json.loads((model / "config.json").read_text())["early_exit"]["criterion"]
    assert EarlyExitModel.from_pretrained(model).criterion == Criterion(**stored)

    wrong = run_job_here(
        "evaluate.py", "--model", str(model), "--data", str(tmp_path / "data.parquet"), "--metric", "pearson"
    )
    assert wrong.returncode == 2
    assert "metric 'pearson' is none of accuracy, f1, mcc" in wrong.stderr


def test_nothing_is_chosen_where_there_are_no_exits(bert_directory: Path, tmp_path: Path) -> None:
    done = run_job_here("evaluate.py", "--model", str(bert_directory), "--data", str(tmp_path), "--choose", "1")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--choose 1: the model has no exits to choose from" in done.stderr


def test_rows_without_finite_numbers_are_not_evaluated(exit_model: EarlyExitModel) -> None:
    rows = random_rows(60, 20, seed=4)
    rows.token_ids[rows.token_ids == 199] = 7
    rows.token_ids[rows.offsets[[3, 40]]] = 199
    labels = np.random.default_rng(0).integers(0, 3, 60).astype(np.float32)
    with torch.no_grad():
        exit_model.backbone.embeddings.word_embeddings.weight[199] = 1e30
    examples = Chunk(rows=rows, labels=labels)
    evaluation = Evaluation(exit_model, examples)
    assert evaluation.rows.tolist() == [row for row in range(60) if row not in (3, 40)]
    whole = Evaluation(exit_model, examples.take(evaluation.rows))
    assert evaluation.curve("entropy") == whole.curve("entropy")
