"""Paths of thresholds: monotone, as cheap as brute force finds, and true to the engine."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.benchmark.workload import ForcedPlan
from pipeline.calibration.thresholds import Sample, cheapest_path, single_path
from pipeline.corpus.chunks import Chunk
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.evaluation.recorded import record_all_exits
from tests.support.models import random_rows
from tests.support.samples import made_up


@given(rows=st.integers(1, 300), seed=st.integers(0, 1000))
@settings(max_examples=25)
def test_along_a_path_no_threshold_falls_and_no_row_exits_later(rows: int, seed: int) -> None:
    sample = made_up(rows, seed)
    path = cheapest_path(sample)
    assert (np.diff(path, axis=0) >= 0).all()
    assert not path[0].any()
    fraction, differing, exits = sample.outcome(path[0])
    assert fraction == pytest.approx(1.0)
    assert (differing, exits.tolist()) == (0, [0, 0, 0, rows])
    assert sample.outcome(path[-1])[2].tolist() == [rows, 0, 0, 0]
    exited = np.array([np.cumsum(sample.outcome(speeds)[2])[:-1] for speeds in path])
    assert (np.diff(exited, axis=0) >= 0).all()
    assert all(float(f"{speed:.6g}") == speed for speed in path.ravel())


@given(rows=st.integers(1, 300), seed=st.integers(0, 1000))
@settings(max_examples=25)
def test_risk_is_a_probability_and_only_grows_with_uncertainty(rows: int, seed: int) -> None:
    sample = made_up(rows, seed)
    if seed % 2:  # as lower exits often are: all rows uncertain, and close together
        sample = replace(sample, uncertainty=(1 - sample.uncertainty / 100).astype(np.float32))
    by_uncertainty = np.take_along_axis(sample.risk, sample.order, axis=1)
    assert np.isfinite(sample.risk).all()
    assert (np.diff(by_uncertainty, axis=1) >= -1e-9).all()
    assert -1e-9 <= sample.risk.min() <= sample.risk.max() <= 1 + 1e-9
    assert sample.risk.mean(1) == pytest.approx(sample.differs.mean(1))


def test_a_path_saves_about_as_much_as_the_best_of_all_thresholds() -> None:
    sample, grid = made_up(400, 1), np.linspace(0, 1, 16)
    every = [sample.outcome(np.array(speeds)) for speeds in product(grid, repeat=3)]
    points = [sample.outcome(speeds) for speeds in cheapest_path(sample)]
    for allowed in (4, 8, 16, 32):
        best = min(fraction for fraction, differing, _ in every if differing <= allowed)
        found = min(fraction for fraction, differing, _ in points if differing <= allowed)
        assert found <= best + 0.08


def test_an_exit_that_knows_nothing_is_left_out_and_a_single_threshold_pays_for_it() -> None:
    found_on, tested = made_up(4000, 0, odd_exit=0), made_up(20_000, 1, odd_exit=0)
    own = [tested.outcome(speeds) for speeds in cheapest_path(found_on)]
    single = [tested.outcome(speeds) for speeds in single_path(3)]
    best_own = min(fraction for fraction, differing, _ in own if differing <= 400)
    best_single = min(fraction for fraction, differing, _ in single if differing <= 400)
    assert best_own < 0.95 * best_single
    half = next(speeds for speeds in cheapest_path(found_on) if tested.outcome(speeds)[0] < 0.7)
    assert half[0] < 0.05


def test_a_single_path_has_one_threshold_everywhere_and_ends_at_the_first_exit() -> None:
    path = single_path(3)
    assert (path == path[:, :1]).all()
    assert (path[0, 0], path[-1, 0]) == (0.0, 1.0)


def test_an_outcome_is_what_the_engine_does(exit_model: EarlyExitModel) -> None:
    rows = random_rows(200, 40, seed=3)
    recorded = record_all_exits(exit_model, Chunk(rows=rows, labels=np.zeros(200, np.float32)))
    sample = Sample.of(recorded, Criterion(speed=1.0), rows.lengths, exit_model.flops)
    seen = set()
    for quantiles in ((0.2, 0.3, 0.4), (0.0, 0.5, 0.3), (0.4, 0.0, 0.0), (0.1, 0.6, 0.0), (0.0, 0.0, 0.9)):
        speeds = np.array(
            [np.quantile(row, q).round(5) if q else 0.0 for row, q in zip(sample.uncertainty, quantiles, strict=True)]
        )
        fraction, differing, exits = sample.outcome(speeds)
        criterion = Criterion(speeds=tuple(zip(sample.layers, speeds.tolist(), strict=True)))
        engine = Engine(LoadedModel(exit_model, EngineConfig(criterion=criterion, dtype="fp32")))
        got = engine.run(rows)
        full = engine.run(rows, ForcedPlan(np.full(200, 4)))
        near = np.abs(sample.uncertainty - speeds[:, None].astype(np.float32)).min(0) < 1e-5
        wrong = np.bincount(got.exit_layers, minlength=5)[1:] - exits
        assert (
            np.abs(wrong).sum() <= 2 * near.sum()
        )  # packing moves sums by rounding, which may move rows on a threshold
        assert abs(int((got.label_ids != full.label_ids).sum()) - differing) <= near.sum()
        spent = engine.flops.rows(rows.lengths, got.exit_layers).sum() / engine.flops.full_depth(rows.lengths).sum()
        assert spent == pytest.approx(fraction, abs=0.01 * near.sum() + 1e-6)
        seen |= set(got.exit_layers)
    assert len(seen) >= 3
