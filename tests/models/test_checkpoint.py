"""Weights that do not fit a model are named by their header as by loading them."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from models import checkpoint
from models.early_exit import EarlyExitModel
from models.errors import UnsupportedModelError
from tests.support.models import random_classifier, random_exits

Tensors = dict[str, Tensor]
LAYER = "bert.encoder.layer.1"


def drop(*names: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in names:
            del tensors[name]

    return change


def cut(name: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name] = tensors[name][1:].contiguous()

    return change


def rename(old: str, new: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[new] = tensors.pop(old)

    return change


def without_prefix(tensors: Tensors) -> None:
    for name in [name for name in tensors if name.startswith("bert.")]:
        tensors[name.removeprefix("bert.")] = tensors.pop(name)


BROKEN: dict[str, tuple[Callable[[Tensors], None], str]] = {
    "a layer's weight": (drop(f"{LAYER}.output.dense.weight"), f"has no '{LAYER}.output.dense.weight'"),
    "a whole layer and the head": (
        drop(f"{LAYER}.output.dense.weight", f"{LAYER}.output.dense.bias", "classifier.bias"),
        f"has no '{LAYER}.output.dense.bias'",
    ),
    "the classifier": (drop("classifier.weight"), "has no 'classifier.weight', so it is not a fine-tuned classifier"),
    "the pooler": (drop("bert.pooler.dense.bias"), "has no 'bert.pooler.dense.bias', so it is not a fine-tuned"),
    "a branch head": (drop("exits.2.dense.bias"), r"has exits, but the weights have no 'exits.2.dense.bias'"),
    "the learned exit": (drop("lte.weight"), r"has exits, but the weights have no 'lte.weight'"),
    "half a table": (
        cut("bert.embeddings.word_embeddings.weight"),
        r"shape \[199, 32\] in the weights, .* \[200, 32\]",
    ),
    "a class": (cut("classifier.weight"), r"'classifier.weight' has shape \[2, 32\]"),
    "half a branch head": (cut("exits.1.out.weight"), r"'exits.1.out.weight' has shape \[2, 32\]"),
}
WHOLE: dict[str, Callable[[Tensors], None]] = {
    "as it was saved": lambda tensors: None,
    "statistics of branch heads left out": drop("exits.1.mean", "exits.1.deviation"),
    "names of old checkpoints": rename(f"{LAYER}.output.LayerNorm.weight", f"{LAYER}.output.LayerNorm.gamma"),
    "names without the family's prefix": without_prefix,
    "weights that nothing needs": lambda tensors: tensors.update(x=torch.ones(2)),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    random_classifier("bert").save_pretrained(folder / "plain")
    random_exits(EarlyExitModel.from_pretrained(folder / "plain"), "pooled").save_pretrained(folder)
    return folder


def changed(saved: Path, folder: Path, change: Callable[[Tensors], None]) -> Path:
    tensors = load_file(saved / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_bytes((saved / "config.json").read_bytes())
    return folder


@contextmanager
def no_tensor_is_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail if a tensor is read through `safe_open`, which both readers of a checkpoint import by name."""

    class Header:
        def __init__(self, *args: Any, **options: Any) -> None:
            self.file = real(*args, **options)

        def __enter__(self) -> "Header":
            self.file.__enter__()
            return self

        def __exit__(self, *error: object) -> None:
            self.file.__exit__(*error)

        def keys(self) -> list[str]:
            names: list[str] = self.file.keys()
            return names

        def get_slice(self, name: str) -> object:
            return self.file.get_slice(name)

    real = safe_open
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "safe_open", Header)
        patch.setattr("transformers.modeling_utils.safe_open", None)
        yield


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_checkpoint_is_named_by_its_header_as_by_loading_it(
    what: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, line = BROKEN[what]
    folder = changed(saved, tmp_path, change)
    with pytest.raises(UnsupportedModelError, match=line) as loading:
        EarlyExitModel.from_pretrained(folder)
    with no_tensor_is_read(monkeypatch), pytest.raises(UnsupportedModelError) as checking:
        checkpoint.check_weights(folder, EarlyExitModel.from_config(folder))
    assert str(checking.value) == str(loading.value)


@pytest.mark.parametrize("what", WHOLE)
def test_a_checkpoint_that_loads_passes_the_check(
    what: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = changed(saved, tmp_path, WHOLE[what])
    EarlyExitModel.from_pretrained(folder)
    model = EarlyExitModel.from_config(folder)
    with no_tensor_is_read(monkeypatch):
        checkpoint.check_weights(folder, model)
    assert model.config.name_or_path == str(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_every_float_type_are_those_that_transformers_reads(
    dtype: torch.dtype, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = changed(saved, tmp_path, lambda tensors: tensors.update({k: v.to(dtype) for k, v in tensors.items()}))
    direct = EarlyExitModel.from_pretrained(folder).state_dict()
    monkeypatch.setattr(checkpoint, "_has_all", lambda *_: False)
    through_transformers = EarlyExitModel.from_pretrained(folder).state_dict()
    assert direct.keys() == through_transformers.keys()
    for name, value in direct.items():
        assert torch.equal(value, through_transformers[name]), name


def test_weights_in_several_files_are_checked_in_all_of_them(saved: Path, tmp_path: Path) -> None:
    theirs = AutoModelForSequenceClassification.from_pretrained(saved / "plain")
    theirs.save_pretrained(tmp_path, max_shard_size="30KB")
    parts = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(parts) > 1
    checkpoint.check_weights(tmp_path, EarlyExitModel.from_config(tmp_path))
    tensors = load_file(parts[-1])
    name = sorted(tensors)[-1]
    save_file({key: value for key, value in tensors.items() if key != name}, parts[-1], {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=f"has no '{name}'"):
        checkpoint.check_weights(tmp_path, EarlyExitModel.from_config(tmp_path))


def test_weights_in_other_files_than_safetensors_are_checked_by_loading_them(saved: Path, tmp_path: Path) -> None:
    tensors = load_file(saved / "plain" / "model.safetensors")
    (tmp_path / "config.json").write_bytes((saved / "plain" / "config.json").read_bytes())
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    checkpoint.check_weights(tmp_path, EarlyExitModel.from_config(tmp_path))
    del tensors["classifier.bias"]
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsupportedModelError, match=r"has no 'classifier\.bias'"):
        checkpoint.check_weights(tmp_path, EarlyExitModel.from_config(tmp_path))


def test_fine_tuning_does_not_start_on_a_backbone_of_another_shape(saved: Path, tmp_path: Path) -> None:
    folder = changed(saved, tmp_path, cut("bert.embeddings.position_embeddings.weight"))
    with pytest.raises(UnsupportedModelError, match=r"position_embeddings.weight' has shape \[69, 32\]"):
        EarlyExitModel.from_pretrained(folder, new_labels=["a", "b"])


def test_an_attention_that_is_not_installed_is_not_asked_for(saved: Path, tmp_path: Path) -> None:
    """Where transformers reads the weights; how attention is computed has no effect on them."""
    folder = changed(saved, tmp_path, WHOLE["names without the family's prefix"])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attn_implementation": "flash_attention_2"}))
    model = EarlyExitModel.from_pretrained(folder)
    checkpoint.check_weights(folder, EarlyExitModel.from_config(folder))
    assert all(
        torch.equal(v, model.state_dict()[k]) for k, v in EarlyExitModel.from_pretrained(saved).state_dict().items()
    )
