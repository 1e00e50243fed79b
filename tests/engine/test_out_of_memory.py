"""A device whose memory runs out: batches are split, predictions stay the same, and a row that never fits is lost alone."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.bulk.actor import ClassifyBundle
from pipeline.bulk.attempts import BrokenStageError
from pipeline.bulk.quarantine import isolate
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.engine.memory import Workspace, has_lost_device, run_within_memory
from pipeline.engine.texts.engine import TextEngine
from pipeline.engine.texts.rows import TextPredictions, TextRows
from pipeline.rows import Predictions, TokenRows
from tests.support.engines import EngineOfGpuRunners
from tests.support.models import CONFIGS, random_exits, random_rows, spread_weights

ROWS = random_rows(300, longest=60, seed=3)


@pytest.fixture(scope="module")
def model() -> EarlyExitModel:
    torch.manual_seed(0)
    return random_exits(spread_weights(EarlyExitModel(CONFIGS["bert"])), "pooled")


NewEngine = Callable[[], Engine]


@pytest.fixture(params=[Engine, EngineOfGpuRunners])
def new_engine(request: pytest.FixtureRequest, model: EarlyExitModel) -> NewEngine:
    config = EngineConfig(criterion=Criterion(name="entropy", speed=0.5), dtype="fp32", token_budget=512)
    return lambda: request.param(LoadedModel(copy.deepcopy(model), config))


class SmallDevice:
    """Memory for so many tokens: an allocation for more fails, as torch's own allocator does."""

    def __init__(self, tokens: int) -> None:
        self.tokens, self.failures = tokens, 0

    def allocate(self, tokens: int) -> None:
        if tokens > self.tokens:
            self.failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def holds_buffers_of(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Limit the buffers that runners keep hidden states in."""
        take = Workspace.take

        def limited(workspace: Workspace, name: str, tokens: int, width: int) -> torch.Tensor:
            self.allocate(tokens)
            return take(workspace, name, tokens, width)

        monkeypatch.setattr(Workspace, "take", limited)

    def holds_layers_of(self, engine: Engine, number: int) -> None:
        """Limit what a layer computes at once."""
        product = engine.model.backbone.layer(number).query_key_value
        product.register_forward_pre_hook(lambda _product, args: self.allocate(len(args[0])))


def assert_same(got: Predictions, expected: Predictions) -> None:
    np.testing.assert_array_equal(got.exit_layers, expected.exit_layers)
    np.testing.assert_allclose(got.logits, expected.logits, atol=1e-4)


def test_a_call_whose_buffer_does_not_fit_is_worked_through_in_parts(
    new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = new_engine().run(ROWS)
    assert len(set(expected.exit_layers.tolist())) > 1
    device = SmallDevice(tokens=1000)
    device.holds_buffers_of(monkeypatch)
    engine = new_engine()
    assert_same(engine.run(ROWS), expected)
    assert device.failures > 1
    assert_same(engine.run(ROWS), expected)  # and again, with what the runners kept


@pytest.mark.parametrize("layer", [1, 3])
def test_memory_that_runs_out_in_the_middle_of_the_model_loses_nothing(new_engine: NewEngine, layer: int) -> None:
    expected = new_engine().run(ROWS)
    device, engine = SmallDevice(tokens=130), new_engine()
    device.holds_layers_of(engine, layer)
    assert_same(engine.run(ROWS), expected)
    assert device.failures > 1


def test_a_row_that_does_not_fit_alone_is_lost_alone(new_engine: NewEngine) -> None:
    long = [7, 100, 293]
    rows = TokenRows.from_lists([[5] * (65 if row in long else 1 + row % 40) for row in range(300)])
    expected = new_engine().run(rows)
    device, engine = SmallDevice(tokens=64), new_engine()
    device.holds_layers_of(engine, 2)
    with pytest.raises(MemoryError, match="a row of 65 tokens does not fit into memory"):
        engine.run(rows)
    isolated = isolate(ClassifyBundle(engine=TextEngine(engine), texts=TextRows.whole(rows)), len(rows))
    assert set(isolated.lost) == {*long}
    assert {problem.reason for problem in isolated.lost.values()} == {"out_of_memory"}
    kept, got = isolated.kept(len(rows)), TextPredictions.join(isolated.pieces).predictions
    np.testing.assert_array_equal(got.exit_layers, expected.exit_layers[kept])
    np.testing.assert_allclose(got.logits, expected.logits[kept], atol=1e-4)


def test_a_device_that_holds_nothing_ends_the_run(new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = new_engine()
    SmallDevice(tokens=0).holds_buffers_of(monkeypatch)
    with pytest.raises(BrokenStageError, match="MemoryError: a row of"):
        isolate(ClassifyBundle(engine=TextEngine(engine), texts=TextRows.whole(ROWS)), len(ROWS))


def test_what_does_not_fit_once_is_not_tried_again() -> None:
    lengths = np.full(64, 10)
    tried: list[int] = []
    done: list[int] = []

    def run(rows: slice) -> int:
        tried.append(rows.stop - rows.start)
        if tried[-1] > 5:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"
            )
        done.extend(range(rows.start, rows.stop))
        return tried[-1]

    freed: list[bool] = []
    assert run_within_memory(run, lambda: freed.append(True), lengths, 320) == 64
    assert done == [*range(64)]
    assert tried[:4] == [32, 16, 8, 4]
    assert {*tried[4:]} == {4}
    assert len(freed) == 3


@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), ValueError("out of memory")])
def test_other_errors_are_no_lack_of_memory(error: Exception) -> None:
    def run(_rows: slice) -> int:
        raise error

    with pytest.raises(type(error)):
        run_within_memory(run, lambda: None, np.full(4, 10), 100)


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), False),
        (RuntimeError("CUDA error: out of memory"), False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_a_lost_device_is_told_from_too_little_memory(error: RuntimeError, lost: bool) -> None:
    assert has_lost_device(error) == lost
