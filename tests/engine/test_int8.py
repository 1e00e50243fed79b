"""int8 on CPUs: close to fp32, offered where it is worth it, and refused in one line elsewhere."""

import copy

import numpy as np
import pytest
import torch
from transformers import BertConfig

from models.cpu.fused import can_fuse
from models.cpu.int8 import INPUT_ZERO, Int8FeedForward, Rounding, can_use_int8, measure_ranges, use_int8
from models.cpu.probe import LEAST_SPEEDUP, Timing, is_worth_it, time_int8
from models.early_exit import EarlyExitModel
from models.errors import UnsupportedPrecisionError
from models.exits.criterion import Criterion
from models.precision import best_dtype, check_worth, hidden_dtype, set_precision
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.rows import Predictions
from tests.support.models import CONFIGS, random_exits, random_rows, spread_weights

CPU = torch.device("cpu")
TOKENS = 256
needs_int8 = pytest.mark.skipif(not can_use_int8(CPU), reason="this CPU does not multiply int8 in hardware")


def model_with_wide_channels(activation: str = "gelu") -> EarlyExitModel:
    """Make a few channels far wider than the rest, as pretrained encoders have them: what one scale alone cannot hold."""
    config = copy.deepcopy(CONFIGS["bert"])
    config.hidden_act = activation
    torch.manual_seed(0)
    model = random_exits(spread_weights(EarlyExitModel(config)), "pooled")
    with torch.no_grad():
        for number in range(1, model.shape.layers + 1):
            layer = model.backbone.layer(number)
            layer.attention_norm.weight[3] *= 20
            layer.ffn.expand.weight[:, 3] /= 20
            layer.ffn.expand.weight[5] *= 10
            layer.ffn.contract.weight[:, 5] /= 10
    return model


def run(model: EarlyExitModel, dtype: str) -> Predictions:
    config = EngineConfig(criterion=Criterion(speed=0.4), dtype=dtype)
    return Engine(LoadedModel(model, config)).run(random_rows(300, 40, seed=11))


@needs_int8
@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("around", ["fp32", "bf16"])
def test_int8_gives_nearly_the_same_probabilities(activation: str, around: str) -> None:
    if around == "bf16" and not can_fuse(CPU, torch.bfloat16):
        pytest.skip("this torch has no oneDNN")
    model = model_with_wide_channels(activation)
    fp32 = run(copy.deepcopy(model), "fp32")
    set_precision(model, around, CPU, TOKENS)
    use_int8(model, TOKENS)  # whether so small a model is worth it does not matter here
    int8 = run(model, around)
    assert not np.array_equal(int8.probabilities, fp32.probabilities)
    assert np.abs(int8.probabilities - fp32.probabilities).mean() < 0.02
    assert (int8.label_ids == fp32.label_ids).mean() > 0.95
    assert (int8.exit_layers == fp32.exit_layers).mean() > 0.9


@needs_int8
def test_a_block_in_int8_computes_what_the_plain_one_does() -> None:
    model = model_with_wide_channels().eval()
    ffn = model.backbone.layer(2).ffn
    ranges = measure_ranges(model)[1]
    x_TH = torch.randn(100, 32, generator=torch.Generator().manual_seed(1)) * ranges.inputs / 3
    with torch.inference_mode():
        plain, int8 = ffn(x_TH), Int8FeedForward(ffn, ranges, TOKENS)(x_TH)
    added = plain - x_TH
    assert (int8 - plain).norm() < 0.03 * added.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_to_the_nearest_step_and_symmetric(dtype: torch.dtype) -> None:
    rounding = Rounding(torch.ones(1), torch.ones(1, 1), torch.float32)
    steps = torch.tensor([[-400.0, -127.0, -2.6, -0.4, 0.0, 0.4, 2.6, 127.0, 400.0]]).mT
    whole = rounding((steps * rounding.scale * rounding.smooth_H).to(dtype))
    expected = [[-127, -127, -3, 0, 0, 0, 3, 127, 127]]
    assert (whole.dtype, (whole.int() - INPUT_ZERO).mT.tolist()) == (torch.uint8, expected)


@needs_int8
def test_int8_is_taken_where_it_is_fast() -> None:
    wide = BertConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=1, vocab_size=200)
    model = EarlyExitModel(wide)
    if not is_worth_it(time_int8(model.shape, hidden_dtype("int8", CPU))):
        pytest.skip("this CPU has no fast kernels for int8")
    assert set_precision(model, "int8", CPU, TOKENS) == "int8"
    assert isinstance(model.backbone.layer(1).ffn, Int8FeedForward)
    assert model.backbone.layer(1).query_key_value.weight.dtype == hidden_dtype("int8", CPU)


@needs_int8
def test_int8_is_refused_where_it_is_slow(exit_model: EarlyExitModel) -> None:
    with pytest.raises(UnsupportedPrecisionError, match=r"^dtype int8 is slower than .* for a feed-forward block"):
        LoadedModel(exit_model, EngineConfig(dtype="int8"))  # 32 channels: calls cost more than products


@needs_int8
def test_an_activation_that_torch_cannot_fuse_stays_in_the_best_precision() -> None:
    model = model_with_wide_channels("gelu_new")
    assert set_precision(model, "int8", CPU, TOKENS) == "int8"
    assert not isinstance(model.backbone.layer(1).ffn, Int8FeedForward)


@pytest.mark.parametrize(("speedup", "worth"), [(3.0, True), (LEAST_SPEEDUP, True), (0.89, False), (0.002, False)])
def test_int8_may_be_slower_by_a_tenth_at_most(speedup: float, worth: bool) -> None:
    timing = Timing(int8=1.0, plain=speedup)
    assert is_worth_it(timing) == worth
    if worth:
        check_worth(timing, "bf16")
        return
    with pytest.raises(UnsupportedPrecisionError) as refused:
        check_worth(timing, "bf16")
    assert "slower than bf16" in str(refused.value)
    assert "take 'auto', which is bf16 here" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_around_int8_is_the_best_precision_of_the_device() -> None:
    assert hidden_dtype("int8", CPU) == hidden_dtype(best_dtype(CPU), CPU)


def test_int8_on_a_device_without_it_is_refused(exit_model: EarlyExitModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(UnsupportedPrecisionError, match="int8 needs a CPU"):
        Engine(LoadedModel(exit_model, EngineConfig(dtype="int8")))
