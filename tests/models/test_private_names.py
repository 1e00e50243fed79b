"""The names of torch and transformers that we use although they are private: all of them are there."""

from functools import reduce

import pytest
import torch
import transformers

from models.cpu.fused import FusedFeedForward, FusedLinear, can_fuse
from models.early_exit import EarlyExitModel
from models.hugging_face import classifier_class
from tests.support.models import CONFIGS

LIBRARIES = {"torch": torch, "transformers": transformers}
PRIVATE = {
    "torch._addmm_activation": "GELU inside products on GPUs (models/gpu/encoder.py)",
    "torch.cpu._is_amx_tile_supported": "the choice between bf16 and fp32 on CPUs (models/cpu/support.py)",
    "torch.cpu._is_avx512_bf16_supported": "the choice between bf16 and fp32 on CPUs (models/cpu/support.py)",
    "torch.cpu._is_vnni_supported": "int8 on CPUs (models/cpu/support.py)",
    "torch.ops.mkldnn._linear_pointwise": "fused linear layers in bf16 on CPUs (models/cpu/fused.py)",
    "torch.ops.mkldnn._linear_pointwise.binary": "fused linear layers in bf16 on CPUs (models/cpu/fused.py)",
    "torch.ops.mkldnn._reorder_linear_weight": "fused linear layers in bf16 on CPUs (models/cpu/fused.py)",
    "torch.ops.onednn.qlinear_prepack": "int8 on CPUs (models/cpu/int8.py)",
    "torch.ops.onednn.qlinear_pointwise": "int8 on CPUs (models/cpu/int8.py)",
    "torch.ops.onednn.qlinear_pointwise.binary": "int8 on CPUs (models/cpu/int8.py)",
    "transformers.AutoModelForSequenceClassification._model_mapping": "saving models (models/hugging_face.py)",
}


@pytest.mark.parametrize("name", PRIVATE)
def test_a_private_name_is_there(name: str) -> None:
    library, *path = name.split(".")
    try:
        reduce(getattr, path, LIBRARIES[library])
    except AttributeError as error:
        pytest.fail(f"{library} {LIBRARIES[library].__version__} has no {name}, which breaks {PRIVATE[name]}: {error}")


@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_has_a_classifier_in_transformers(family: str) -> None:
    assert classifier_class(CONFIGS[family]).__name__.endswith("ForSequenceClassification")


@pytest.mark.skipif(not can_fuse(torch.device("cpu"), torch.bfloat16), reason="this torch has no oneDNN")
def test_fused_layers_compute_what_plain_ones_do() -> None:
    torch.manual_seed(0)
    layer = EarlyExitModel(CONFIGS["bert"]).to(torch.bfloat16).eval().backbone.layer(1)
    x = torch.randn(33, 32, dtype=torch.bfloat16)
    with torch.inference_mode():
        plain = layer.query_key_value
        fused = FusedLinear(plain.weight, plain.bias, 33)
        torch.testing.assert_close(fused(x), plain(x), atol=2e-2, rtol=2e-2)
        torch.testing.assert_close(FusedFeedForward(layer.ffn, 33)(x), layer.ffn(x), atol=5e-2, rtol=5e-2)
