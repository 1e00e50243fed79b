"""What decides predictions decides the fingerprint, and nothing else does."""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from models.directory.config import config_document, shape_document
from models.directory.digest import document_hash, weights_digest
from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from models.families.shape import ONLY_IN_TRAINING, Shape
from pipeline.benchmark.synthetic import CLASSES
from pipeline.bulk.fingerprint import fingerprint_of, kept_of_folders
from pipeline.corpus.columns import Columns, resolve_columns
from pipeline.corpus.listing import list_inputs
from pipeline.corpus.tokenize import TokenizerSpec
from pipeline.engine.config import EngineConfig
from pipeline.errors import StorageError, UserError
from pipeline.identity import ModelIdentity
from pipeline.output.ledger import Ledger
from pipeline.output.manifest import Fingerprint, difference
from pipeline.storage.model_cache import checked_model
from pipeline.windows import LongTexts
from tests.support.ledger import FINGERPRINT, SCHEMA
from tests.support.models import random_classifier, regression_model

TOKENIZER = TokenizerSpec(tokenizer_json="{}", max_tokens=64, segments=True)


def fingerprint(
    directory: Path,
    engine: EngineConfig | None = None,
    tokenizer: TokenizerSpec = TOKENIZER,
    text: str = "text",
    precision: str = "fp32",
    schema: Sequence[str] = ("id", "label"),
) -> Fingerprint:
    model = EarlyExitModel.from_config(directory)
    columns = {"text": text, "pair": None}
    identity = ModelIdentity.of(model, weights_digest(directory), tokenizer)
    return fingerprint_of(
        model,
        identity,
        engine or EngineConfig(),
        precision=precision,
        columns=columns,
        schema=schema,
        tokenizer=tokenizer,
    )


def test_a_model_on_the_meta_device_knows_all_but_its_weights(model_directory: Path) -> None:
    meta, whole = EarlyExitModel.from_config(model_directory), EarlyExitModel.from_pretrained(model_directory)
    for name in ("shape", "labels", "exit_layers", "regression", "branch_head", "last_head", "criterion"):
        assert getattr(meta, name) == getattr(whole, name)
    assert all(parameter.is_meta for parameter in meta.parameters())


def test_a_hash_is_of_the_parts_in_any_order() -> None:
    document = {"weights": "0123456789abcdef", "labels": ["neg", "pös"], "shape": {"layers": 4, "norm_eps": 1e-12}}
    assert document_hash(document) == "3bc48c843a88e6b1"
    assert document_hash(dict(reversed(document.items()))) == document_hash(document)


def test_the_parts_of_each_document_are_these(model_directory: Path) -> None:
    model = EarlyExitModel.from_config(model_directory)
    document = config_document(model.config, model.exits_block)
    assert [*document] == ["family", "shape", "labels", "last_head", "branch_head", "lte"]
    assert [*TOKENIZER.document()] == ["tokenizer_json", "max_tokens", "segments", "cut_left"]
    assert replace(TOKENIZER, split_special=True).document() == TOKENIZER.document() | {"split_special": True}
    of_all_families = {field.name for field in fields(Shape) if field.default is MISSING}
    assert shape_document(model.shape).keys() == of_all_families - ONLY_IN_TRAINING


def test_every_part_of_a_document_is_its_own_and_counts(model_directory: Path) -> None:
    model = EarlyExitModel.from_config(model_directory)
    for name, value in shape_document(model.shape).items():
        assert value == getattr(model.shape, name)
    for document in (
        config_document(model.config, model.exits_block),
        shape_document(model.shape),
        TOKENIZER.document(),
    ):
        hashes = {document_hash(document)} | {document_hash(document | {name: "other"}) for name in document}
        assert len(hashes) == 1 + len(document)


def test_a_new_field_of_a_class_changes_no_fingerprint(model_directory: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class LaterTokenizer(TokenizerSpec):
        cache: int = 3

    later = LaterTokenizer(tokenizer_json="{}", max_tokens=64, segments=True)
    assert repr(later) != repr(TOKENIZER)
    assert fingerprint(model_directory, tokenizer=later) == fingerprint(model_directory)


def test_a_copy_is_the_same_model_and_other_weights_are_not(model_directory: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "under another name"
    shutil.copytree(model_directory, copy)
    assert fingerprint(copy) == fingerprint(model_directory)
    model = EarlyExitModel.from_pretrained(copy)
    model.head(1).out.bias.data += 1e-3
    model.save_pretrained(copy)
    assert difference(fingerprint(model_directory), fingerprint(copy)).startswith("weights was ")


def test_a_checkpoint_in_pieces_is_read_whole(bert_directory: Path, tmp_path: Path) -> None:
    theirs = AutoModelForSequenceClassification.from_pretrained(bert_directory)
    theirs.save_pretrained(tmp_path, max_shard_size="30KB")
    pieces = sorted(tmp_path.glob("*.safetensors"))
    assert len(pieces) > 2
    before = weights_digest(tmp_path)
    data = bytearray(pieces[-1].read_bytes())
    data[-1] ^= 1
    pieces[-1].write_bytes(data)
    assert weights_digest(tmp_path) != before


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights there; looked for model\.safetensors, "):
        weights_digest(tmp_path)


def test_every_choice_that_changes_predictions_changes_the_fingerprint(model_directory: Path) -> None:
    plain = fingerprint(model_directory)
    changes = {
        "criterion": fingerprint(model_directory, EngineConfig(criterion=Criterion(speed=0.5))),
        "exits": fingerprint(model_directory, EngineConfig(exits=(2, 4))),
        "dtype": fingerprint(model_directory, precision="bf16"),
        "tokenizer": fingerprint(model_directory, tokenizer=replace(TOKENIZER, tokenizer_json="[]", cut_left=True)),
        "columns": fingerprint(model_directory, text="body"),
        "schema": fingerprint(model_directory, schema=("id", "value")),
    }
    for name, other in changes.items():
        assert difference(plain, other) == f"{name} was {plain[name]}, is {other[name]}"


def test_the_distance_from_which_on_values_differ_is_named_where_it_is_not_the_usual_one(
    model_directory: Path, tmp_path: Path
) -> None:
    regression_model().save_pretrained(tmp_path)
    for directory, named in ((model_directory, "lte 0.2"), (tmp_path, "lte 0.2, tolerance 0.5")):
        usual, other = (EngineConfig(criterion=Criterion(name="lte", speed=0.2, tolerance=x)) for x in (0.1, 0.5))
        assert fingerprint(directory, usual)["criterion"] == "lte 0.2"
        assert fingerprint(directory, other)["criterion"] == named


def test_what_the_tokenizers_digest_leaves_out_is_named(model_directory: Path) -> None:
    plain, windows = fingerprint(model_directory), LongTexts(stride=3)
    for change in ({"fast_tokenizer": "nanotoken 0.1.0"}, {"long_texts": windows}):
        other = replace(TOKENIZER, **change)
        assert other.digest == TOKENIZER.digest  # so that a calibration without it holds
        (name,) = change
        named = {name.replace("_", "-"): windows.describe() if name == "long_texts" else change[name]}
        assert fingerprint(model_directory, tokenizer=other) == plain | named


CONFIG_CHANGES: dict[str, dict[str, Any]] = {
    "activation": {"hidden_act": "relu"},
    "order of the labels": {"id2label": {"0": CLASSES[1], "1": CLASSES[0]}},
    "a label": {"id2label": {"0": CLASSES[0], "1": "other"}},
    "eps": {"layer_norm_eps": 1e-5},
    "heads": {"num_attention_heads": 2},
    "exits": {"early_exit": {"version": 1, "last_head": "classifier", "branch_head": "attention", "lte": True}},
    "no learned exit": {"early_exit": {"version": 1, "last_head": "classifier", "branch_head": "pooled", "lte": False}},
    "no exits": {"early_exit": None},
}
HARMLESS: dict[str, Any] = {"transformers_version": "9", "hidden_dropout_prob": 0.3, "use_cache": False, "note": "mine"}


@pytest.mark.parametrize("what", CONFIG_CHANGES)
def test_what_config_json_says_that_counts_is_a_part_of_the_model(
    what: str, model_directory: Path, tmp_path: Path
) -> None:
    shutil.copytree(model_directory, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | CONFIG_CHANGES[what]))
    differs = difference(fingerprint(model_directory), fingerprint(tmp_path))
    assert re.search("config was [0-9a-f]{16}, is [0-9a-f]{16}", differs)
    assert "weights" not in differs


def test_what_config_json_says_that_does_not_count_is_no_part_of_it(model_directory: Path, tmp_path: Path) -> None:
    shutil.copytree(model_directory, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "config.json"
    values = json.loads(config.read_text())
    defaults = {"layer_norm_eps", "type_vocab_size", "hidden_act"}
    config.write_text(json.dumps({k: v for k, v in (values | HARMLESS).items() if k not in defaults}))
    model = EarlyExitModel.from_config(tmp_path)
    model.criterion = Criterion(speed=0.4)
    model.save_criterion(tmp_path)  # which each run chooses anew
    assert fingerprint(tmp_path) == fingerprint(model_directory)


def test_weights_under_a_name_of_their_own_are_those_that_count(bert_directory: Path, tmp_path: Path) -> None:
    shutil.copytree(bert_directory, tmp_path, dirs_exist_ok=True)
    before = weights_digest(tmp_path)
    other = random_classifier("bert", seed=1)
    other.save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", tmp_path / "mine.safetensors")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"transformers_weights": "mine.safetensors"}))
    assert weights_digest(tmp_path) == weights_digest(tmp_path / "other") != before
    loaded = EarlyExitModel.from_pretrained(tmp_path).backbone.embeddings.word_embeddings.weight
    assert torch.equal(loaded, other.bert.embeddings.word_embeddings.weight)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded, theirs.bert.embeddings.word_embeddings.weight)
    for wrong in ("../other/model.safetensors", "pytorch_model.bin", "gone.safetensors"):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"transformers_weights": wrong}))
        with pytest.raises((UserError, FileNotFoundError), match=wrong):
            weights_digest(tmp_path)
    model = EarlyExitModel.from_pretrained(tmp_path / "other")
    model.config.transformers_weights = "mine.safetensors"
    model.save_pretrained(tmp_path / "saved")
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")


def test_columns_that_are_recorded_need_no_file() -> None:
    recorded = pa.schema([("id", pa.string()), ("label", pa.string()), ("n", pa.int64())])
    columns = resolve_columns([], Columns(id="n"), keep=["n"], results=("id", "label"), recorded=recorded)
    assert columns.keep == pa.schema([("n", pa.int64())])
    assert columns.names == ["text", "n"]


def test_a_machine_with_other_weights_refuses(model_directory: Path, tmp_path: Path) -> None:
    weights = weights_digest(model_directory)
    same = ("bf16", "bf16")
    assert checked_model(str(model_directory), weights, precision=same) == str(model_directory)
    shutil.copytree(model_directory, tmp_path, dirs_exist_ok=True)
    assert checked_model(str(tmp_path), weights, precision=same) == str(tmp_path)
    with pytest.raises(StorageError, match=f"{tmp_path}: .+ computes in fp32, and the run began in bf16"):
        checked_model(str(tmp_path), weights, precision=("fp32", "bf16"))
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    with pytest.raises(StorageError, match=f"{tmp_path}: other weights on .+ than the run began with"):
        checked_model(str(tmp_path), weights, precision=same)


def test_results_whose_kept_column_was_the_files_own_take_none_of_folders(tmp_path: Path) -> None:
    """Versions before took a file's own column of that name, whatever its folder: the two would be mixed."""
    (tmp_path / "in" / "lang=de" / "text=x").mkdir(parents=True)
    (tmp_path / "in" / "lang=de" / "text=x" / "a.jsonl").write_text('{"text": "a", "lang": "de-AT"}')
    files, folder = list_inputs(f"{tmp_path}/in").files, f"{tmp_path}/out"
    (tmp_path / "out").mkdir()
    named = partial(kept_of_folders, columns=Columns(), folder=folder, overwrite=False)
    for keep in ([], ["text"], ["n"]):
        assert named(files, keep=keep) == named([], keep=keep) == {}
    given = named(files, keep=["lang=tongue", "text"])
    assert given == {"folders": "lang"}
    with Ledger(folder, FINGERPRINT) as ledger:
        ledger.begin(SCHEMA)
    with pytest.raises(UserError, match="folders was not set, is lang"), Ledger(folder, FINGERPRINT | given):
        pass
    with Ledger(folder, FINGERPRINT | given, overwrite=True) as ledger:
        ledger.begin(SCHEMA)
    assert named([], keep=["lang=tongue"], overwrite=True) == given
