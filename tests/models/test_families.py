"""Every family gives transformers' own logits, and its directories go back and forth."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, GPT2Config, PreTrainedModel

from models.attention import first_tokens
from models.directory.config import plain_config, read_config
from models.early_exit import EarlyExitModel
from models.errors import UnsupportedModelError
from models.heads import PooledHead
from models.length_group import LengthGroup
from pipeline.engine.all_exits import all_exits
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.rows import TokenRows
from tests.support.models import CONFIGS, random_classifier, random_exits, random_rows, spread_weights

TELLS_SEGMENTS = {"bert", "deberta-v2", "electra", "ernie"}


def reference_logits(model: PreTrainedModel, rows: TokenRows, *, pad_to_longest: bool) -> torch.Tensor:
    """Compute transformers' logits, of rows one at a time or all in one padded batch."""
    lengths = rows.lengths.tolist()
    width = max(lengths)
    pad = model.config.pad_token_id or 0
    logits = []
    ids = torch.full((len(rows), width), pad)
    mask, types = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        start = rows.offsets[row]
        ids[row, :length] = torch.from_numpy(rows.token_ids[start : start + length].copy())
        mask[row, :length] = 1
        types[row, rows.segments[row] : length] = 1
    slices = [slice(None)] if pad_to_longest else [slice(row, row + 1) for row in range(len(rows))]
    for which in slices:
        end = width if pad_to_longest else lengths[which.start]
        inputs = {"input_ids": ids[which, :end], "attention_mask": mask[which, :end]}
        if model.config.model_type in TELLS_SEGMENTS:
            inputs["token_type_ids"] = types[which, :end]
        with torch.no_grad():
            logits.append(model(**inputs).logits)
    return torch.cat(logits)


def our_last_logits(model: EarlyExitModel, rows: TokenRows) -> torch.Tensor:
    logits = torch.empty(len(rows), model.shape.classes)
    with torch.inference_mode():
        for where, by_layer in all_exits(model, rows, token_budget=96):
            logits[torch.from_numpy(where)] = by_layer[model.shape.layers].logits
    return logits


@pytest.mark.parametrize("padded", [False, True], ids=["one-by-one", "padded-batch"])
@pytest.mark.parametrize("pairs", [False, True], ids=["single", "pairs"])
@pytest.mark.parametrize("family", CONFIGS)
def test_last_exit_equals_transformers_on_ragged_batches(
    family: str, pairs: bool, padded: bool, tmp_path: Path
) -> None:
    theirs = random_classifier(family)
    theirs.save_pretrained(tmp_path)
    # Ids from 2 on: transformers itself numbers positions differently when a row holds RoBERTa's pad id and is padded.
    rows = random_rows(23, 60, seed=1, pairs=pairs and family in TELLS_SEGMENTS)
    rows.token_ids[rows.token_ids < 2] = 2
    expected = reference_logits(theirs, rows, pad_to_longest=padded)
    ours = our_last_logits(EarlyExitModel.from_pretrained(tmp_path), rows)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.1  # logits that are all alike would prove nothing


@pytest.mark.parametrize("family", CONFIGS)
def test_engine_without_exits_equals_transformers(family: str, tmp_path: Path) -> None:
    theirs = random_classifier(family)
    theirs.save_pretrained(tmp_path)
    rows = random_rows(31, 60, seed=2)  # a typed pad token among the ids
    engine = Engine(LoadedModel(EarlyExitModel.from_pretrained(tmp_path), EngineConfig(dtype="fp32", token_budget=128)))
    expected = torch.softmax(reference_logits(theirs, rows, pad_to_longest=False), -1)
    torch.testing.assert_close(torch.from_numpy(engine.run(rows).probabilities), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_plain_config_is_read_without_torch_and_transformers(family: str, tmp_path: Path) -> None:
    random_classifier(family).save_pretrained(tmp_path)
    pickled = pickle.dumps(plain_config(read_config(tmp_path)))
    assert b"torch.float32" in pickled  # as text
    code = "import pickle, sys; pickle.load(sys.stdin.buffer); print({'torch', 'transformers'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], input=pickled, capture_output=True, check=True)
    assert done.stdout == b"set()\n"


@pytest.mark.parametrize("kind", ["pooled", "attention"])
@pytest.mark.parametrize("family", CONFIGS)
def test_a_saved_model_comes_back_whole_and_transformers_opens_it(family: str, kind: str, tmp_path: Path) -> None:
    theirs = random_classifier(family)
    theirs.save_pretrained(tmp_path / "plain")
    model = random_exits(EarlyExitModel.from_pretrained(tmp_path / "plain"), kind)
    model.save_pretrained(tmp_path / "ours")
    again = EarlyExitModel.from_pretrained(tmp_path / "ours")
    assert again.exit_layers == (1, 2, 3, 4)
    assert again.branch_head == kind
    light = EarlyExitModel.from_pretrained(tmp_path / "ours", config=plain_config(again.config))
    assert (light.shape, light.labels, light.exits_block) == (again.shape, again.labels, again.exits_block)
    assert str(light) == str(again)  # every module with its sizes, dropout included
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
        assert torch.equal(value, light.state_dict()[name]), name
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours")
    assert type(plain) is type(theirs)
    for name, value in theirs.state_dict().items():
        if ".pooler." not in name or family in ("bert", "ernie"):  # the others have no pooler in the classifier's path
            assert torch.equal(value, plain.state_dict()[name]), name


def test_pooled_heads_from_before_they_were_standardized_compute_what_they_did(tmp_path: Path) -> None:
    random_classifier("bert").save_pretrained(tmp_path)
    model = random_exits(EarlyExitModel.from_pretrained(tmp_path), "pooled")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    old = {name: value for name, value in tensors.items() if not name.endswith((".mean", ".deviation"))}
    assert len(tensors) - len(old) == 6
    save_file(old, tmp_path / "model.safetensors", {"format": "pt"})
    again = EarlyExitModel.from_pretrained(tmp_path)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    first_BH = torch.randn(5, model.shape.hidden)
    head = again.head(1)
    assert isinstance(head, PooledHead)
    assert torch.equal(head.eval().features_of_first(first_BH), torch.tanh(head.dense(first_BH)))


def test_a_fastbert_teacher_head_is_saved_and_transformers_loads_its_backbone(tmp_path: Path) -> None:
    random_classifier("bert").save_pretrained(tmp_path / "plain")
    model = EarlyExitModel.from_pretrained(tmp_path / "plain", new_labels=["a", "b"], new_last_head="attention")
    model.save_pretrained(tmp_path / "ours")
    again = EarlyExitModel.from_pretrained(tmp_path / "ours")
    assert again.last_head == "attention"
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    backbone = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours").bert
    assert torch.equal(backbone.embeddings.word_embeddings.weight, model.backbone.embeddings.word_embeddings.weight)


def test_another_family_is_refused_by_name(tmp_path: Path) -> None:
    GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(
        UnsupportedModelError, match=r"'gpt2' is not supported; supported are: bert, camembert, deberta-v2, "
    ):
        EarlyExitModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("field", ["is_decoder", "add_cross_attention"])
def test_a_decoder_is_refused(field: str, tmp_path: Path) -> None:
    random_classifier("bert").save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {field: True}))
    with pytest.raises(UnsupportedModelError, match="a decoder"):
        EarlyExitModel.from_config(tmp_path)


def test_a_backbone_that_was_never_fine_tuned_is_refused_unless_fine_tuning_starts(tmp_path: Path) -> None:
    random_classifier("bert").bert.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"no 'classifier\.bias', so it is not a fine-tuned classifier"):
        EarlyExitModel.from_pretrained(tmp_path)
    assert EarlyExitModel.from_pretrained(tmp_path, new_labels=["x", "y"]).labels == ["x", "y"]


def test_exits_whose_weights_are_lost_are_named(tmp_path: Path) -> None:
    random_classifier("bert").save_pretrained(tmp_path / "plain")
    random_exits(EarlyExitModel.from_pretrained(tmp_path / "plain"), "attention").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "plain" / "model.safetensors").read_bytes())
    with pytest.raises(UnsupportedModelError, match=r"has exits, but the weights have no 'exits\.1\."):
        EarlyExitModel.from_pretrained(tmp_path)


def test_fine_tuning_may_put_another_kind_of_head_on_a_fastbert_teacher(tmp_path: Path) -> None:
    random_classifier("bert").save_pretrained(tmp_path / "plain")
    EarlyExitModel.from_pretrained(
        tmp_path / "plain", new_labels=["a", "b"], new_last_head="attention"
    ).save_pretrained(tmp_path)
    assert EarlyExitModel.from_pretrained(tmp_path, new_labels=["a", "b", "c"]).last_head == "classifier"


def test_a_directory_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}: no model there"):
        EarlyExitModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_layer_for_first_tokens_only_gives_what_the_whole_layer_gives_them(family: str) -> None:
    model = EarlyExitModel(CONFIGS[family]).eval()
    spread_weights(model)
    groups = (LengthGroup(3, 5), LengthGroup(2, 1), LengthGroup(1, 33))
    x_TH = torch.randn(sum(group.tokens for group in groups), model.shape.hidden)
    layer = model.backbone.layer(2)
    with torch.inference_mode():
        wanted = first_tokens(layer(x_TH, groups), groups)
        got = layer.first_tokens_only(x_TH, groups, padding=4)
    assert got.shape == (6 + 4, model.shape.hidden)
    torch.testing.assert_close(got[:6], wanted, atol=1e-4, rtol=1e-4)
