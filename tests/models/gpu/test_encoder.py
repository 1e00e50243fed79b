"""The steps of an encoder over ragged rows compute what the model's own modules do."""

import copy

import pytest
import torch

from models.attention import first_tokens
from models.backbone import PackedTokens
from models.early_exit import EarlyExitModel
from models.gpu.dispatch import Kernels, plain_kernels
from models.gpu.encoder import attention_head_features, embed, expand, run_layer, run_layer_for_first_tokens
from models.heads import AttentionHead
from tests.models.gpu.oracles import random, rows_of
from tests.support.models import CONFIGS, new_model, spread_weights
from tests.support.triton_kernels import DEVICE, KERNELS

LENGTHS = [1, 4, 4, 16, 33]
CHOICES = {"plain": plain_kernels(), "triton": KERNELS}


def model_with(activation: str) -> EarlyExitModel:
    config = copy.deepcopy(CONFIGS["bert"])
    config.hidden_act = activation
    torch.manual_seed(0)
    return spread_weights(EarlyExitModel(config)).to(DEVICE).eval()


@pytest.fixture(params=CHOICES)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return CHOICES[request.param]


@torch.inference_mode()
def test_a_layer_writes_what_the_module_returns(kernels: Kernels) -> None:
    layer, rows = model_with("gelu").backbone.layer(2), rows_of(LENGTHS)
    x_TH = random((sum(LENGTHS), 32), torch.float32, seed=0)
    expected = layer(x_TH, rows.groups)
    before, out_TH = x_TH.clone(), torch.full_like(x_TH, torch.nan)
    run_layer(layer, x_TH, rows, out_TH, kernels)
    torch.testing.assert_close(out_TH, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(x_TH, before)
    first_BH = run_layer_for_first_tokens(layer, x_TH, rows, kernels)
    torch.testing.assert_close(first_BH, first_tokens(expected, rows.groups), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_features_of_an_attention_head_are_those_of_the_module(kernels: Kernels) -> None:
    head = new_model("attention").head(1).to(DEVICE)
    assert isinstance(head, AttentionHead)
    rows, x_TH = rows_of(LENGTHS), random((sum(LENGTHS), 32), torch.float32, seed=1)
    expected = head.features(x_TH, rows.groups)
    torch.testing.assert_close(attention_head_features(head, x_TH, rows, kernels), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["bert", "electra"])  # electra projects its embeddings
@torch.inference_mode()
def test_embeddings_are_those_of_the_module(family: str, kernels: Kernels) -> None:
    torch.manual_seed(0)
    embeddings = spread_weights(EarlyExitModel(CONFIGS[family])).to(DEVICE).eval().backbone.embeddings
    rows = rows_of(LENGTHS)
    ids_T = torch.randint(200, (rows.num_tokens,), dtype=torch.int32, device=DEVICE)
    segments_B = torch.tensor([1, 2, 4, 5, 30], dtype=torch.int32, device=DEVICE)
    expected = embeddings(PackedTokens(token_ids=ids_T.long(), segments=segments_B.long(), groups=rows.groups))
    out_TH = torch.full_like(expected, torch.nan)
    embed(embeddings, ids_T, segments_B, rows, out_TH, kernels)
    torch.testing.assert_close(out_TH, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", ["gelu", "relu", "gelu_new"])
@torch.inference_mode()
def test_the_activation_is_the_model_s_inside_a_product_or_after_it(activation: str, dtype: torch.dtype) -> None:
    ffn, exact = model_with(activation).backbone.layer(1).ffn, model_with(activation).backbone.layer(1).ffn.double()
    x_QH = random((50, 32), dtype, seed=2, spread=2.0)
    got = expand(ffn.to(dtype), x_QH)
    expected = exact.activation(exact.expand(x_QH.double()))
    assert got.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(got.double(), expected, atol=tolerance, rtol=tolerance)


def test_the_forms_of_gelu_differ_by_less_than_16_bits_round_away() -> None:
    x = torch.linspace(-6, 6, 100_001, dtype=torch.float64)
    forms = [torch.nn.functional.gelu(x, approximate=form) for form in ("none", "tanh")]
    assert 4.7e-4 < (forms[0] - forms[1]).abs().max() < 4.8e-4
