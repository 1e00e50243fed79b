"""One loaded model serves several engines, and leaves torch's threads as they were."""

import copy
import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from tests.support.models import random_rows

CONFIG = EngineConfig(criterion=Criterion(speed=0.5), dtype="fp32", token_budget=128)
THREADS = 3


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


def test_workers_have_one_thread_each_and_the_caller_gets_its_own_back(
    exit_model: EarlyExitModel, threads: None
) -> None:
    with LoadedModel(exit_model, CONFIG) as loaded:
        with loaded.single_threaded():
            assert torch.get_num_threads() == 1
            counts = [loaded.pool.submit(torch.get_num_threads) for _ in range(10)]
            assert {count.result() for count in counts} == {1}
            with pytest.raises(KeyError), loaded.single_threaded():
                raise KeyError
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == THREADS


def test_a_closed_model_has_no_workers_left(exit_model: EarlyExitModel) -> None:
    before = threading.active_count()
    with LoadedModel(exit_model, CONFIG) as loaded:
        Engine(loaded).run(random_rows(20, 20, seed=0))
        assert threading.active_count() > before
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="shutdown"):
        Engine(loaded).run(random_rows(20, 20, seed=0))


def test_a_model_that_nobody_holds_is_let_go_with_its_workers(exit_model: EarlyExitModel) -> None:
    loaded = LoadedModel(copy.deepcopy(exit_model), CONFIG)
    Engine(loaded).run(random_rows(20, 20, seed=0))
    model = weakref.ref(loaded.model)
    del loaded
    gc.collect()
    assert model() is None


def test_engines_of_one_model_take_turns(exit_model: EarlyExitModel, threads: None) -> None:
    rows = [random_rows(150, 40, seed=seed) for seed in range(4)]
    with LoadedModel(exit_model, CONFIG) as loaded:
        engines = [Engine(loaded), Engine(loaded).with_criterion(Criterion(speed=0.8))]
        wanted = [[engine.run(part) for part in rows] for engine in engines]
        with ThreadPoolExecutor(4) as callers:
            got = [[callers.submit(engine.run, part) for part in rows] for engine in engines]
        for engine_wanted, engine_got in zip(wanted, got, strict=True):
            for expected, call in zip(engine_wanted, engine_got, strict=True):
                np.testing.assert_array_equal(call.result().exit_layers, expected.exit_layers)
                np.testing.assert_array_equal(call.result().logits, expected.logits)
    assert len({int(layer) for call in wanted[0] for layer in call.exit_layers}) > 1


def test_precision_and_budget_are_those_of_the_loaded_model(exit_model: EarlyExitModel) -> None:
    with LoadedModel(exit_model, CONFIG) as loaded:
        with pytest.raises(ValueError, match="fixed when the model is loaded"):
            Engine(loaded, EngineConfig(dtype="bf16", token_budget=128))
        assert Engine(loaded, EngineConfig(dtype="fp32", token_budget=128, first_token_first=False)).config != CONFIG
