"""Benchmark workloads have the wanted lengths and exits, and planned exits are obeyed."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.benchmark.workload import ForcedPlan, exit_fractions, make_workload
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from tests.support.models import random_rows


@given(st.integers(1, 24), st.floats(0, 1))
def test_exit_fractions_have_the_wanted_mean(layers: int, where: float) -> None:
    mean = 1 + where * (layers - 1)
    fractions = exit_fractions(layers, mean)
    assert fractions.sum() == pytest.approx(1)
    assert (fractions >= 0).all()
    assert fractions @ np.arange(1, layers + 1) == pytest.approx(mean, abs=1e-3)


def test_a_workload_repeats_and_has_the_wanted_means() -> None:
    make = partial(make_workload, mean_tokens=50, sigma=0.6, longest=512, layers=12, mean_exit=4, vocabulary=30_000)
    work, again = make(20_000, seed=1), make(20_000, seed=1)
    assert work.rows.lengths.mean() == pytest.approx(50, rel=0.03)
    assert work.mean_exit == pytest.approx(4, rel=0.03)
    assert np.array_equal(work.rows.token_ids, again.rows.token_ids)
    assert np.array_equal(work.exit_plan, again.exit_plan)


def test_the_engine_obeys_a_plan_and_still_predicts_as_the_heads_do(exit_model: EarlyExitModel) -> None:
    rows = random_rows(80, 40, seed=1)
    plan = np.random.default_rng(0).integers(1, 5, len(rows))
    engine = Engine(
        LoadedModel(exit_model, EngineConfig(criterion=Criterion(speed=0.5), dtype="fp32", token_budget=90))
    )
    got = engine.run(rows, ForcedPlan(plan))
    np.testing.assert_array_equal(got.exit_layers, plan)
    at_one = engine.run(rows, ForcedPlan(np.ones(len(rows), np.int64)))
    np.testing.assert_allclose(got.probabilities[plan == 1], at_one.probabilities[plan == 1], atol=1e-5)


def test_first_token_first_changes_no_prediction(exit_model: EarlyExitModel) -> None:
    rows = random_rows(150, 50, seed=4)
    predictions = [
        Engine(
            LoadedModel(
                exit_model,
                EngineConfig(criterion=Criterion(speed=0.7), dtype="fp32", token_budget=128, first_token_first=first),
            )
        ).run(rows)
        for first in (True, False)
    ]
    np.testing.assert_array_equal(predictions[0].exit_layers, predictions[1].exit_layers)
    np.testing.assert_allclose(predictions[0].probabilities, predictions[1].probabilities, atol=1e-5)
    assert len(set(predictions[0].exit_layers)) > 1


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_runners_changes_no_prediction(exit_model: EarlyExitModel, threads: int) -> None:
    rows, before = random_rows(200, 50, seed=6), torch.get_num_threads()
    config = EngineConfig(criterion=Criterion(speed=0.7), dtype="fp32", token_budget=128)
    wanted = Engine(LoadedModel(exit_model, config)).run(rows)
    try:
        torch.set_num_threads(threads)
        engine = Engine(LoadedModel(exit_model, config))
        assert engine.loaded.threads == threads
        got = engine.run(rows)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(got.exit_layers, wanted.exit_layers)
    np.testing.assert_allclose(got.probabilities, wanted.probabilities, atol=1e-5)


def test_about_takes_rows_at_equal_distances_with_their_exits() -> None:
    work = make_workload(100, mean_tokens=9, sigma=0.6, longest=50, layers=4, mean_exit=2, vocabulary=300, seed=0)
    fewer = work.about(12)
    assert len(fewer.rows) == len(fewer.exit_plan) == 13
    assert np.array_equal(fewer.rows.take(np.array([1])).token_ids, work.rows.take(np.array([8])).token_ids)
    assert fewer.exit_plan[1] == work.exit_plan[8]
    assert len(work.about(51).rows) == len(work.about(1000).rows) == 100


def test_calls_hold_every_row_once_in_order() -> None:
    work = make_workload(25, mean_tokens=9, sigma=0.5, longest=64, layers=4, mean_exit=2, vocabulary=100, seed=0)
    calls = work.in_calls_of(10)
    assert [len(call.rows) for call in calls] == [10, 10, 5]
    assert np.concatenate([call.rows.token_ids for call in calls]).tolist() == work.rows.token_ids.tolist()
    assert np.concatenate([call.exit_plan for call in calls]).tolist() == work.exit_plan.tolist()
