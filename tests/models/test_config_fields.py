"""Every field of config.json that changes what transformers computes is honoured or refused."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.activations import ACT2FN

from models.early_exit import EarlyExitModel
from models.errors import UnsupportedModelError
from models.hugging_face import classifier_class
from tests.models.test_families import our_last_logits, reference_logits
from tests.support.config_fields import (
    ACTIVATIONS,
    FIELDS,
    HONOURED,
    NOT_IN_JSON,
    REFUSED,
    class_fields,
    effect_in,
    read_by_loading,
    read_by_modeling,
    table,
    written,
)
from tests.support.models import CONFIGS, TOLERANCE, random_rows, spread_weights

ROWS = random_rows(11, 40, seed=1)
ROWS.token_ids[ROWS.token_ids < 8] = 8  # no padding in texts, whatever its id is
ROWS.token_ids[ROWS.token_ids >= 150] = 149
ALIKE = ("gelu_python", "gelu_10")
"""Activations that are the default's, for values of this size."""
NAMES = {"id2label", "num_labels", "problem_type", "transformers_weights"}
"""Fields that say what logits are of, and not what they are."""

NOT_OF_THE_CONFIG = {"problem_type", "transformers_weights"}
"""Honoured fields that are in no digest of the config: the number of classes has the first, the second names what is hashed."""
DERIVED = {"layer_types", "pooler_hidden_size", "rope_parameters"}
"""Fields of ModernBERT and DeBERTa that their configurations make of others where they are absent, and that go before them."""
SOME_ACTIVATIONS = ("gelu_new", "quick_gelu", "relu")
"""Tried in every family; the others are tried in BERT alone, since all families look them up by one function."""
NOT_WITH_OTHERS = {"attn_implementation"}
"""Fields without effect that transformers does not take beside all others, here `output_attentions`."""
CASES = [
    (family, name, value)
    for family in CONFIGS
    for name, field in FIELDS.items()
    for value in (SOME_ACTIVATIONS if field.values is ACTIVATIONS and family != "bert" else field.values)
    if effect_in(family, name) in (HONOURED, REFUSED)
]


def make(folder: Path, family: str, **changes: Any) -> dict[str, Any]:
    """Write a random classifier whose config.json has these values; return the whole of it."""
    values = json.loads(CONFIGS[family].to_json_string(use_diff=False))
    values = {name: value for name, value in values.items() if name not in DERIVED} | changes
    for name in [name for name, value in changes.items() if value is None]:
        del values[name]
    (folder / "config.json").write_text(json.dumps(values))
    options = {} if "attn_implementation" in values else {"attn_implementation": "eager"}
    config = AutoConfig.from_pretrained(folder)
    made = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32, **options)
    torch.manual_seed(0)  # the initial weights, which are lost, take more or fewer random numbers
    spread_weights(made).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(values))
    return values


def expected(folder: Path) -> torch.Tensor:
    """Compute transformers' own logits of ROWS."""
    options = {} if "attn_implementation" in (folder / "config.json").read_text() else {"attn_implementation": "eager"}
    theirs = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, return_dict=True, **options
    ).eval()
    return reference_logits(theirs, ROWS, pad_to_longest=False)


@cache
def default(family: str, folder: Path) -> torch.Tensor:
    """Compute a family's logits with its default values."""
    folder.mkdir(parents=True, exist_ok=True)
    make(folder, family)
    return expected(folder)


def matches_transformers(folder: Path) -> torch.Tensor:
    """Compare our logits of ROWS with transformers', and return these."""
    theirs = expected(folder)
    ours = our_last_logits(EarlyExitModel.from_pretrained(folder), ROWS)
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)
    return theirs


@pytest.mark.parametrize(("family", "name", "value"), CASES, ids=[f"{f}-{n}-{v!s:.20}" for f, n, v in CASES])
def test_a_field_is_honoured_or_refused(
    family: str, name: str, value: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if effect_in(family, name) == REFUSED:
        config = tmp_path / "config.json"
        config.write_text(json.dumps(json.loads(CONFIGS[family].to_json_string(use_diff=False)) | {name: value}))
        with pytest.raises(UnsupportedModelError, match=f"^{tmp_path}: {name} in config.json ") as refused:
            EarlyExitModel.from_config(tmp_path)
        assert "\n" not in str(refused.value)
        return
    make(tmp_path, family, **{name: value})
    theirs = matches_transformers(tmp_path)
    if name not in NOT_OF_THE_CONFIG and value != getattr(CONFIGS[family], name, None):
        assert EarlyExitModel.from_config(tmp_path).config_digest != EarlyExitModel(CONFIGS[family]).config_digest
    if FIELDS[name].changes_shapes or name in NAMES or value in (*ALIKE, getattr(CONFIGS[family], name, None)):
        return
    before = default(family, tmp_path_factory.getbasetemp() / "defaults" / family)
    assert (theirs - before).abs().max() > TOLERANCE, "this value shows nothing"


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("family", CONFIGS)
def test_fields_without_effect_change_nothing(
    family: str, alone: bool, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """All of them are set at once: to their first other values, then to their second ones, and so on."""
    supports_sdpa = classifier_class(
        CONFIGS[family]
    )._supports_sdpa  # where it does not, transformers raises ValueError
    fields = {
        name: field.values if name != "attn_implementation" or supports_sdpa else ("eager",)
        for name, field in FIELDS.items()
        if effect_in(family, name) not in (HONOURED, REFUSED) and alone == (name in NOT_WITH_OTHERS)
    }
    before = default(family, tmp_path_factory.getbasetemp() / "defaults" / family)
    for number in range(max(map(len, fields.values()))):
        folder = tmp_path / str(number)
        folder.mkdir()
        make(folder, family, **{name: values[number % len(values)] for name, values in fields.items()})
        torch.testing.assert_close(matches_transformers(folder), before, atol=TOLERANCE, rtol=0)


def test_no_activation_is_forgotten(tmp_path: Path) -> None:
    """Those that are not tried above have weights of their own, which no checkpoint of a sequence classifier has."""
    tried = FIELDS["hidden_act"].values
    for name in ACT2FN.keys() - {*tried, "gelu"} | {"gelu_mine"}:
        config = tmp_path / "config.json"
        config.write_text(json.dumps(json.loads(CONFIGS["bert"].to_json_string()) | {"hidden_act": name}))
        with pytest.raises(UnsupportedModelError, match=f"^{tmp_path}: activation '{name}' (has weights|is none)"):
            EarlyExitModel.from_config(tmp_path)


def test_no_field_of_a_configuration_class_is_forgotten() -> None:
    for family in CONFIGS:
        assert class_fields(family) <= FIELDS.keys(), family


def test_no_field_that_transformers_reads_is_forgotten() -> None:
    for family in CONFIGS:
        assert read_by_modeling(family) - NOT_IN_JSON <= FIELDS.keys(), family
    assert read_by_loading() - NOT_IN_JSON <= FIELDS.keys()


def test_the_documents_table_is_this_one() -> None:
    assert written()[1].strip() == table().strip(), "python -m tests.support.config_fields writes it anew"
