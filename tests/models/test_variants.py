"""Families with more to set than BERT give transformers' own logits and gradients, whatever is set, in every runner."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForSequenceClassification,
    DebertaV2Config,
    ModernBertConfig,
    MPNetConfig,
    PretrainedConfig,
)

from models.branch_heads import BranchHeads
from models.cpu.fused import can_fuse
from models.cpu.int8 import can_use_int8, use_int8
from models.early_exit import EarlyExitModel
from models.errors import UnsupportedModelError, UnsupportedPrecisionError
from models.exits.criterion import Criterion
from models.families.names import from_hugging_face
from pipeline.benchmark.workload import ForcedPlan
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.engine.pack import pack
from pipeline.engine.packing import length_groups_of, sort_by_length
from pipeline.rows import Predictions, TokenRows
from pipeline.training.frozen import FrozenBackbone
from tests.models.test_families import our_last_logits, reference_logits
from tests.support.engines import EngineOfGpuRunners
from tests.support.gpu import unfused
from tests.support.models import BERT_SIZES, SPECIAL_IDS, TOLERANCE, random_exits, random_rows, spread_weights

LONGEST = 150
"""More than the distances that have a bucket of their own, than a window, and than a kernel's block."""
SIZES = BERT_SIZES | {"max_position_embeddings": 160, "num_hidden_layers": 3}
MODERN = SIZES | SPECIAL_IDS
BOTH: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
VARIANTS: dict[str, PretrainedConfig] = {
    "mpnet": MPNetConfig(**SIZES),
    "mpnet, a longer table": MPNetConfig(**SIZES, relative_attention_num_buckets=40),
    "modernbert": ModernBertConfig(**MODERN),
    "modernbert, mean of tokens": ModernBertConfig(**MODERN, classifier_pooling="mean", local_attention=10),
    "modernbert, biases everywhere": ModernBertConfig(
        **MODERN, norm_bias=True, attention_bias=True, mlp_bias=True, classifier_bias=True, local_attention=20
    ),
    "modernbert, windows first": ModernBertConfig(
        **MODERN,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        rope_parameters={"full_attention": {"rope_theta": 90.0}, "sliding_attention": {"rope_theta": 20.0}},
        local_attention=33,
        hidden_activation="silu",
        classifier_activation="relu",
    ),
    "modernbert, no windows": ModernBertConfig(**MODERN, global_attn_every_n_layers=1, classifier_pooling="mean"),
    "modernbert, windows of one token": ModernBertConfig(**MODERN, local_attention=1),
    "deberta-v3": DebertaV2Config(
        **SIZES,
        **(BOTH | {"norm_rel_ebd": "layer_norm", "position_buckets": 16, "share_att_key": True}),
        position_biased_input=False,
        max_relative_positions=64,
    ),
    "deberta-v2 with a convolution": DebertaV2Config(
        **SIZES, **BOTH, share_att_key=True, conv_kernel_size=3, conv_act="gelu", type_vocab_size=2, position_buckets=32
    ),
    "deberta, projections of its own": DebertaV2Config(
        **SIZES, **BOTH, position_buckets=8, norm_rel_ebd="layer_norm", conv_kernel_size=5, conv_groups=4
    ),
    "deberta, content to position": DebertaV2Config(
        **SIZES, **(BOTH | {"pos_att_type": "c2p"}), max_relative_positions=10, pooler_hidden_act="tanh"
    ),
    "deberta, position to content": DebertaV2Config(
        **SIZES, **(BOTH | {"pos_att_type": ["p2c"]}), share_att_key=True, type_vocab_size=2, position_buckets=400
    ),
    "deberta, nothing compared": DebertaV2Config(**SIZES, relative_attention=True, norm_rel_ebd="layer_norm"),
    "deberta, no distances": DebertaV2Config(**SIZES, pos_att_type=["c2p", "p2c"], norm_rel_ebd="layer_norm"),
}


def saved(name: str, folder: Path) -> EarlyExitModel:
    """Write a variant's random classifier by transformers alone, and open it."""
    torch.manual_seed(0)
    spread_weights(AutoModelForSequenceClassification.from_config(VARIANTS[name])).save_pretrained(folder)
    return EarlyExitModel.from_pretrained(folder)


def ragged_rows(count: int, *, pairs: bool = False) -> TokenRows:
    rows = random_rows(count, LONGEST, seed=1, pairs=pairs)
    rows.token_ids[rows.token_ids < 2] = 2  # transformers numbers a typed pad token's position by what it is padded to
    return rows


@pytest.mark.parametrize("padded", [False, True], ids=["one-by-one", "padded-batch"])
@pytest.mark.parametrize("pairs", [False, True], ids=["single", "pairs"])
@pytest.mark.parametrize("name", VARIANTS)
def test_the_last_exit_is_transformers_own(name: str, pairs: bool, padded: bool, tmp_path: Path) -> None:
    model = saved(name, tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    rows = ragged_rows(12, pairs=pairs and model.shape.token_types > 1)
    expected = reference_logits(theirs, rows, pad_to_longest=padded)
    torch.testing.assert_close(our_last_logits(model, rows), expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.1


@pytest.mark.parametrize("name", VARIANTS)
def test_a_directory_of_ours_is_the_plain_model_to_transformers(name: str, tmp_path: Path) -> None:
    model = random_exits(saved(name, tmp_path / "plain"), "pooled")
    model.save_pretrained(tmp_path / "ours")
    plain, ours = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / folder).eval() for folder in ("plain", "ours")
    )
    rows = ragged_rows(3)
    expected = reference_logits(plain, rows, pad_to_longest=False)
    assert torch.equal(reference_logits(ours, rows, pad_to_longest=False), expected)
    again = EarlyExitModel.from_pretrained(tmp_path / "ours")
    assert again.config_digest == model.config_digest
    assert again.shape == model.shape


@pytest.mark.parametrize("kind", ["pooled", "attention"])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_is_used_once_and_trained_once(name: str, kind: str) -> None:
    model = EarlyExitModel(copy.deepcopy(VARIANTS[name]))
    model.add_exits(kind)
    in_order = [id(parameter) for parameter in model.in_order_of_use()]
    assert len(in_order) == len(set(in_order))
    assert set(in_order) == {id(parameter) for parameter in model.parameters()}


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_are_transformers_own(name: str, tmp_path: Path) -> None:
    model = saved(name, tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    rows = ragged_rows(5)
    rows = rows.take(sort_by_length(rows.lengths))
    labels = torch.tensor([0, 1, 2, 1, 0])
    packed = pack(rows, length_groups_of(rows.lengths), 3, torch.device("cpu"))
    F.cross_entropy(model.eval().last_output(packed).logits, labels).backward()
    for row, label in enumerate(labels):
        ids = torch.from_numpy(rows.token_ids[rows.offsets[row] : rows.offsets[row + 1]].astype(np.int64))[None]
        (F.cross_entropy(theirs(input_ids=ids).logits, label[None]) / len(labels)).backward()
    of_theirs = {key: torch.zeros_like(value) for key, value in theirs.state_dict().items()}
    of_theirs |= {key: value.grad for key, value in theirs.named_parameters() if value.grad is not None}
    names = [key for key, _ in model.named_parameters()]
    expected = from_hugging_face(of_theirs, model.family, names, model.shape.layers, with_head=True)
    for key, parameter in model.named_parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(grad, expected[key], atol=1e-4, rtol=1e-3, msg=key)


def assert_same(got: Predictions, expected: Predictions) -> None:
    np.testing.assert_array_equal(got.exit_layers, expected.exit_layers)
    np.testing.assert_allclose(got.logits, expected.logits, atol=1e-5 * np.abs(expected.logits).max(initial=1), rtol=0)


@pytest.mark.parametrize("first_token_first", [True, False])
@pytest.mark.parametrize("kind", ["pooled", "attention"])
@pytest.mark.parametrize("name", VARIANTS)
def test_runners_predict_what_one_row_at_a_time_gives(name: str, kind: str, first_token_first: bool) -> None:
    torch.manual_seed(0)
    model = random_exits(spread_weights(EarlyExitModel(copy.deepcopy(VARIANTS[name]))), kind)
    config = EngineConfig(
        criterion=Criterion(speed=0.5), dtype="fp32", token_budget=400, first_token_first=first_token_first
    )
    rows = random_rows(20, LONGEST, seed=3)
    loaded = LoadedModel(copy.deepcopy(model), config)
    plan = ForcedPlan(np.random.default_rng(0).integers(1, 4, len(rows)))
    got = Engine(loaded).run(rows, plan)
    assert_same(EngineOfGpuRunners(loaded).run(rows, plan), got)
    assert len({*got.exit_layers.tolist()}) == 3
    for row, layer in enumerate(got.exit_layers.tolist()):
        alone = rows.take(np.array([row]))
        with torch.inference_mode():
            output = model(pack(alone, length_groups_of(alone.lengths), 0, torch.device("cpu")))[layer]
        expected = output.logits[0].numpy()
        np.testing.assert_allclose(got.logits[row], expected, atol=TOLERANCE * max(1, np.abs(expected).max()), rtol=0)


def test_a_table_with_too_few_buckets_is_refused(tmp_path: Path) -> None:
    MPNetConfig(**SIZES, relative_attention_num_buckets=31).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"relative_attention_num_buckets in config\.json is 31, and"):
        EarlyExitModel.from_config(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["full_attention"] * 2 + ["chunked_attention"]}, "layer_types in config.json names 'chunked_"),
        ({"local_attention": -3}, "local_attention in config.json is -3"),
        ({"num_attention_heads": 32}, "attention heads are 1 wide, and rotations take channels in pairs"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "asks for rotations of the type 'linear'"),
        ({"rope_parameters": {"full_attention": {"rope_theta": -1.0}}}, "has the base -1.0"),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": "a"}}},
            "a value in config.json makes no sense: ValueError",
        ),
        (
            {"architectures": ["ModernBertForQuestionAnswering"]},
            "is a ModernBertForQuestionAnswering, and no classifier",
        ),
        ({"classifier_dropout": 1.5}, "a dropout in config.json is not in [0, 1)"),
    ],
)
def test_a_modernbert_that_offramp_does_not_compute_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    values = json.loads(ModernBertConfig(**MODERN).to_json_string(use_diff=False))
    values = {name: value for name, value in values.items() if name not in ("layer_types", "rope_parameters")}
    (tmp_path / "config.json").write_text(json.dumps(values | changes))
    with pytest.raises(UnsupportedModelError, match=re.escape(str(tmp_path)) + ": .*" + re.escape(message)) as refused:
        EarlyExitModel.from_config(tmp_path)
    assert "\n" not in str(refused.value)


def test_int8_is_refused_for_gated_blocks() -> None:
    model = EarlyExitModel(VARIANTS["modernbert"])
    with pytest.raises(UnsupportedPrecisionError, match="dtype int8 is not for feed-forward blocks with a gate"):
        LoadedModel(model, EngineConfig(dtype="int8"))


@pytest.mark.skipif(not can_use_int8(torch.device("cpu")), reason="this CPU does not multiply int8 in hardware")
@pytest.mark.parametrize("name", ["mpnet", "deberta-v3", "deberta-v2 with a convolution"])
def test_int8_gives_nearly_the_same(name: str) -> None:
    torch.manual_seed(0)
    model = random_exits(EarlyExitModel(copy.deepcopy(VARIANTS[name])), "pooled")
    rows = random_rows(60, LONGEST, seed=3)
    config = EngineConfig(dtype="fp32", token_budget=400)
    expected = Engine(LoadedModel(copy.deepcopy(model), config)).run(rows)
    use_int8(model, 400)  # whether so small a model is worth it does not matter here
    got = Engine(LoadedModel(model, config)).run(rows)
    assert not np.array_equal(got.logits, expected.logits)
    np.testing.assert_allclose(got.logits, expected.logits, atol=0.05 * np.abs(expected.logits).max())


@pytest.mark.parametrize("name", VARIANTS)
def test_fused_layers_give_nearly_the_same(name: str) -> None:
    if not can_fuse(torch.device("cpu"), torch.bfloat16):
        pytest.skip("this torch has no oneDNN")
    torch.manual_seed(0)
    model = random_exits(EarlyExitModel(copy.deepcopy(VARIANTS[name])), "pooled")
    rows = random_rows(60, LONGEST, seed=3)
    got, expected = (
        Engine(LoadedModel(copy.deepcopy(model), EngineConfig(dtype=dtype, token_budget=400))).run(rows)
        for dtype in ("bf16", "fp32")
    )
    assert not np.array_equal(got.logits, expected.logits)
    np.testing.assert_allclose(got.logits, expected.logits, atol=0.05 * np.abs(expected.logits).max())


@pytest.mark.parametrize("on_gpu", [False, True], ids=["cpu", "gpu's operators"])
@pytest.mark.parametrize("kind", ["pooled", "attention"])
@pytest.mark.parametrize("name", VARIANTS)
def test_heads_read_of_a_frozen_backbone_what_they_read_of_the_model(
    name: str, kind: str, on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    if on_gpu:
        unfused(monkeypatch)
    model = EarlyExitModel(copy.deepcopy(VARIANTS[name]))
    model.add_exits(kind)
    frozen = FrozenBackbone(model.eval(), with_last=True)
    rows = random_rows(30, LONGEST, seed=4)
    rows = rows.take(sort_by_length(rows.lengths))
    with torch.no_grad():
        expected = model(pack(rows, length_groups_of(rows.lengths), 0, torch.device("cpu")))
        states = frozen.run(rows)
        if on_gpu:
            states = replace(states, inputs=torch.zeros_like(states.inputs), teacher=torch.zeros(len(rows), 3))
            frozen._encode_on_gpu(rows, states)
    frozen.loaded.close()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=frozen.loaded.dtype == torch.bfloat16):
        logits_EBC = BranchHeads(model).eval()(states.inputs, length_groups_of(rows.lengths)).logits
    for layer, got in zip(frozen.branches, logits_EBC, strict=True):
        torch.testing.assert_close(got.float(), expected[layer].logits, atol=5e-2, rtol=5e-2)
    assert states.teacher is not None
    torch.testing.assert_close(states.teacher.float(), expected[model.shape.layers].logits, atol=5e-2, rtol=5e-2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv_kernel_size": 4}, "conv_kernel_size in config.json is 4, and has to be odd"),
        ({"conv_kernel_size": 3, "conv_groups": 5}, "conv_groups in config.json is 5, which does not divide"),
        ({"position_buckets": 1}, "position_buckets in config.json is 1, for distances of up to 160"),
        (
            {"position_buckets": 64, "max_relative_positions": 20},
            "position_buckets in config.json is 64, for distances of up to 20",
        ),
        ({"conv_kernel_size": 3, "conv_act": "swoosh"}, "activation 'swoosh' is none that transformers has"),
        ({"position_buckets": None}, "a value in config.json makes no sense: TypeError"),
        ({"cls_dropout": "a"}, "a value in config.json makes no sense: ValueError"),
    ],
)
def test_a_deberta_that_offramp_does_not_compute_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    values = json.loads(DebertaV2Config(**SIZES, **BOTH).to_json_string(use_diff=False))
    (tmp_path / "config.json").write_text(json.dumps(values | changes))
    with pytest.raises(UnsupportedModelError, match=re.escape(f"{tmp_path}: {message}")):
        EarlyExitModel.from_config(tmp_path)


def test_a_field_that_modernbert_never_read_is_passed_over(tmp_path: Path) -> None:
    """It stands in the files of models that were made from others' code."""
    values = json.loads(ModernBertConfig(**MODERN).to_json_string(use_diff=False))
    (tmp_path / "config.json").write_text(json.dumps(values | {"position_embedding_type": "sans_pos"}))
    assert EarlyExitModel.from_config(tmp_path).shape.rotary_bases
