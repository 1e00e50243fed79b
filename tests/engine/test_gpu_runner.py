"""The runner for GPUs, run on the CPU, predicts what the runner for CPUs does; a real GPU does so too."""

import copy
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from models.gpu.dispatch import kernels_for, plain_kernels
from pipeline.benchmark.workload import ForcedPlan
from pipeline.engine.all_exits import TOKEN_BUDGET, _on_gpu, all_exits
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.engine.rules import ExitRule, PerRowThresholds
from pipeline.rows import Predictions, TokenRows
from tests.support.engines import EngineOfGpuRunners
from tests.support.gpu import watching_waits
from tests.support.models import (
    CONFIGS,
    TOLERANCE,
    random_exits,
    random_rows,
    regression_model,
    spread_weights,
)

LONGEST = 150
"""More than any block of tokens."""


def long_model(family: str, kind: str) -> EarlyExitModel:
    """Make a model of a family whose rows may be longer than any block."""
    config = copy.deepcopy(CONFIGS[family])
    config.max_position_embeddings = LONGEST + 10
    torch.manual_seed(0)
    model = spread_weights(EarlyExitModel(config))
    return random_exits(model, kind) if kind in ("pooled", "attention") else model.eval()


def both(model: EarlyExitModel, config: EngineConfig) -> tuple[Engine, Engine]:
    """Return engines of one loaded model: of runners for GPUs, and of those for CPUs."""
    loaded = LoadedModel(copy.deepcopy(model), config)
    return EngineOfGpuRunners(loaded), Engine(loaded)


def assert_same(got: Predictions, expected: Predictions) -> None:
    """Compare predictions to 1e-5 of the largest logit; these models' weights are wide, and so are their logits."""
    np.testing.assert_array_equal(got.exit_layers, expected.exit_layers)
    np.testing.assert_allclose(got.logits, expected.logits, atol=1e-5 * np.abs(expected.logits).max(initial=1), rtol=0)
    np.testing.assert_allclose(got.uncertainty, expected.uncertainty, atol=1e-5, rtol=0)
    assert got.layer_tokens == expected.layer_tokens
    assert got.padding_tokens == 0


@pytest.mark.parametrize("pairs", [False, True], ids=["single", "pairs"])
@pytest.mark.parametrize("kind", ["pooled", "attention"])
@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_predicts_as_on_cpus(family: str, kind: str, pairs: bool) -> None:
    config = EngineConfig(criterion=Criterion(speed=0.5), dtype="fp32", token_budget=400)
    gpu, cpu = both(long_model(family, kind), config)
    rows = random_rows(30, LONGEST, seed=1, pairs=pairs)
    got = gpu.run(rows)
    assert_same(got, cpu.run(rows))
    assert len({*got.exit_layers.tolist()}) > 1


CRITERIA = [
    Criterion(name="entropy", speed=0.5),
    Criterion(name="entropy", speeds=((1, 0.4), (3, 0.7))),
    Criterion(name="confidence", speed=0.3),
    Criterion(name="lte", speed=0.5),
    Criterion(name="patience", patience=1),
    Criterion(name="patience", patience=2),
]


@pytest.mark.parametrize("criterion", CRITERIA, ids=Criterion.describe)
@pytest.mark.parametrize("first_tokens", [7, 256])
def test_every_criterion_decides_as_on_cpus(
    exit_model: EarlyExitModel, criterion: Criterion, first_tokens: int
) -> None:
    loaded = LoadedModel(exit_model, EngineConfig(criterion=criterion, dtype="fp32", token_budget=150))
    loaded.sizes = loaded.sizes._replace(first_tokens=first_tokens)
    rows = random_rows(60, 40, seed=2)
    got = EngineOfGpuRunners(loaded).run(rows)
    assert_same(got, Engine(loaded).run(rows))
    assert len({*got.exit_layers.tolist()}) > 1


@pytest.mark.parametrize("criterion", [Criterion(name="lte", speed=0.5), Criterion(name="patience", tolerance=0.5)])
def test_values_are_predicted_as_on_cpus(criterion: Criterion) -> None:
    gpu, cpu = both(regression_model(), EngineConfig(criterion=criterion, dtype="fp32", token_budget=150))
    rows = random_rows(60, 40, seed=2)
    got = gpu.run(rows)
    assert_same(got, cpu.run(rows))
    assert len({*got.exit_layers.tolist()}) > 1


def thresholds(count: int) -> ExitRule:
    drawn = np.random.default_rng(0).random((count, 4)).astype(np.float32)
    return PerRowThresholds(Criterion(), np.where(drawn < 0.2, 0, drawn).astype(np.float32))


def plan(count: int) -> ExitRule:
    return ForcedPlan(np.random.default_rng(0).integers(1, 5, count))


@pytest.mark.parametrize("rule_of", [thresholds, plan])
@pytest.mark.parametrize("resident", [None, 500], ids=["whole call", "in groups"])
def test_rules_of_a_call_meet_their_own_rows(
    exit_model: EarlyExitModel, rule_of: Callable[[int], ExitRule], resident: int | None
) -> None:
    config = EngineConfig(criterion=Criterion(speed=0.5), dtype="fp32", token_budget=90, resident_tokens=resident)
    gpu, cpu = both(exit_model, config)
    rows = random_rows(80, 40, seed=1)
    got = gpu.run(rows, rule_of(len(rows)))
    assert_same(got, cpu.run(rows, rule_of(len(rows))))
    assert len({*got.exit_layers.tolist()}) == 4


def test_an_answer_does_not_depend_on_who_shares_the_call(exit_model: EarlyExitModel) -> None:
    gpu, _ = both(exit_model, EngineConfig(criterion=Criterion(speed=0.4), dtype="fp32", token_budget=200))
    rows = random_rows(60, 50, seed=7)
    expected = gpu.run(rows)
    assert len({*expected.exit_layers.tolist()}) > 1
    order = np.random.default_rng(0).permutation(len(rows))
    for part in (order, order[:20], order[20:21], np.concatenate([order[40:], order[40:]])):
        got = gpu.run(rows.take(part))
        np.testing.assert_array_equal(got.exit_layers, expected.exit_layers[part])
        np.testing.assert_array_equal(got.label_ids, expected.label_ids[part])
        np.testing.assert_allclose(got.probabilities, expected.probabilities[part], atol=TOLERANCE)


def test_tokens_of_a_read_only_array_are_read(exit_model: EarlyExitModel) -> None:
    gpu, cpu = both(exit_model, EngineConfig(criterion=Criterion(speed=0.4), dtype="fp32"))
    rows = random_rows(20, 30, seed=7)
    for array in (rows.token_ids, rows.offsets, rows.segments):
        array.flags.writeable = False
    assert_same(gpu.run(rows), cpu.run(rows))


def test_no_rows_give_no_predictions(exit_model: EarlyExitModel) -> None:
    gpu, _ = both(exit_model, EngineConfig(criterion=Criterion(speed=0.4), dtype="fp32"))
    assert len(gpu.run(TokenRows.from_lists([])).exit_layers) == 0


@pytest.mark.parametrize("first_token_first", [True, False])
def test_triton_s_kernels_predict_as_plain_operators_do(
    exit_model: EarlyExitModel, first_token_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.triton_kernels import KERNELS

    criterion = Criterion(speed=0.5)
    config = EngineConfig(criterion=criterion, dtype="fp32", token_budget=60, first_token_first=first_token_first)
    gpu, cpu = both(exit_model, config)
    rows = random_rows(6, 20, seed=3)
    monkeypatch.setattr(EngineOfGpuRunners, "kernels", KERNELS)
    got = EngineOfGpuRunners(gpu.loaded).run(rows)
    assert_same(got, cpu.run(rows))
    assert len({*got.exit_layers.tolist()}) > 1


def test_kernels_are_chosen_by_what_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels_for(torch.device("cpu")) == plain_kernels()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    assert kernels_for(torch.device("cuda")) == plain_kernels()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU")
def test_a_machine_that_cannot_build_kernels_is_told_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    with pytest.warns(RuntimeWarning, match="needs a C compiler and Python's headers"):
        assert kernels_for(torch.device("cuda")) == plain_kernels()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["pooled", "attention"])
@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_a_gpu_predicts_as_the_cpu(family: str, kind: str, dtype: str) -> None:
    model, rows = long_model(family, kind), random_rows(300, LONGEST, seed=1, pairs=True)
    criterion = Criterion(speed=0.5)
    config = EngineConfig(criterion=criterion, dtype=dtype)
    expected = Engine(LoadedModel(copy.deepcopy(model), EngineConfig(criterion=criterion, dtype="fp32"))).run(rows)
    got = Engine(LoadedModel(model, config, "cuda")).run(rows)
    if dtype == "fp32":
        assert (got.exit_layers == expected.exit_layers).mean() > 0.99
        same = got.exit_layers == expected.exit_layers
        np.testing.assert_allclose(got.logits[same], expected.logits[same], atol=1e-3)
    assert (got.label_ids == expected.label_ids).mean() > 0.95
    assert (got.exit_layers == expected.exit_layers).mean() > 0.9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_waits_for_the_host_once_an_exit(exit_model: EarlyExitModel) -> None:
    rows = random_rows(300, 60, seed=1)
    engine = Engine(LoadedModel(exit_model, EngineConfig(criterion=Criterion(speed=0.3), dtype="bf16"), "cuda"))
    layers = engine.run(rows).exit_layers.max()
    with watching_waits("warn"), warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        engine.run(rows)
    assert len(waits) <= layers + 3  # and three for logits, exit layers and uncertainties at the end


@pytest.mark.parametrize("kind", ["pooled", "attention"])
def test_all_exits_are_recorded_by_the_operators_that_run(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each exit's logits are those of the rows that leave there, to the last bit."""
    monkeypatch.setitem(TOKEN_BUDGET, "cpu", 1 << 20)
    model, rows = long_model("bert", kind), random_rows(20, LONGEST, seed=2, pairs=True)
    with torch.inference_mode():
        ((order, outputs),) = _on_gpu(model, rows, torch.device("cpu"))
        ((_, oracle),) = all_exits(model, rows)
    config = EngineConfig(criterion=Criterion(speed=0.5), token_budget=1 << 20, dtype="fp32")
    engine = EngineOfGpuRunners(LoadedModel(copy.deepcopy(model), config))
    assert list(outputs) == list(model.exit_layers)
    for layer, (logits, lte) in outputs.items():
        left = engine.run(rows, ForcedPlan(np.full(len(rows), layer)))
        assert {*left.exit_layers.tolist()} == {layer}
        np.testing.assert_array_equal(logits.numpy(), left.logits[order])
        torch.testing.assert_close(logits, oracle[layer].logits, atol=1e-3, rtol=1e-4)
        assert (lte is None) == (layer == model.shape.layers)
        if lte is not None:
            torch.testing.assert_close(lte, oracle[layer].lte, atol=1e-3, rtol=1e-4)
