"""Load and save model directories in the Hugging Face layout.

    config.json         the family's own config, with an `early_exit` block beside: see ExitsBlock
    model.safetensors   backbone and last head under transformers' names, branch heads under `exits.<layer>.` and `lte.`

So transformers itself opens such a directory as the plain classifier, and any fine-tuned classifier of a supported family is
a directory of ours without branch heads. Weights that have the names and shapes of config.json are read as they are; all others
(names of old checkpoints, files of other kinds, weights that are missing) through transformers, which knows every layout.
"""

import contextlib
import copy
import json
import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.directory.config import ExitsBlock, read_config
from models.directory.files import CONFIG_FILE, Name, weight_files
from models.errors import UnsupportedModelError, UserError
from models.exits.criterion import Criterion
from models.families.names import Family, from_hugging_face, to_hugging_face
from models.families.shape import Shape
from models.hugging_face import classifier_class, quiet_transformers

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

WEIGHTS_FILE = "model.safetensors"
BRANCH_PREFIXES = ("exits.", "lte.")
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
"""Types of weights as safetensors names them; others are those of quantized checkpoints."""

REASON_CHARACTERS = 160
"""Characters that are passed on of what a library says of weights that it cannot read."""


class Model(Protocol):
    """The parts of an EarlyExitModel that have a place in a checkpoint."""

    config: "PretrainedConfig"
    family: Family
    shape: Shape

    @property
    def exits_block(self) -> ExitsBlock: ...

    def state_dict(self) -> dict[str, Any]: ...

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]: ...


def read_weights(name: Name, model: Model, *, new_last_head: bool = False) -> dict[str, Tensor]:
    """Read the state dict of a model of this config; with `new_last_head` the last head may be missing or of another shape.

    Raises UnsupportedModelError naming the first weight that is missing or has another shape than config.json says, or a file
    that is damaged; FileNotFoundError if there are no weights.
    """
    with _naming(name):
        files, shapes = _safetensors_of(name), _stored_shapes(model)
        if _has_all(files, model, shapes) and not new_last_head:
            stored = dict(_finite(name, _tensors_of(files, shapes)))
            return _state_as_stored(model, {key: value.float() for key, value in stored.items()})
        theirs, info = _through_transformers(name, model)
        branches = {} if new_last_head else dict(_tensors_of(files, _branch_keys(model)))
        state = _state_of(name, model, theirs, info, branches, new_last_head)
        return dict(_finite(name, state.items()))


def _through_transformers(name: Name, model: Model) -> "tuple[PreTrainedModel, dict[str, Any]]":
    """Have transformers load a checkpoint, whatever its layout; return its model and what it says of the loading."""
    from transformers import AutoModelForSequenceClassification  # takes seconds to import

    given = model.config
    config = read_config(name) if isinstance(given, SimpleNamespace) else copy.deepcopy(given)
    with quiet_transformers():
        theirs, info = AutoModelForSequenceClassification.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,
            attn_implementation="eager",  # config.json may ask for one that is not installed
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
        )
    return theirs, info


def check_weights(name: Name, model: Model) -> None:
    """Raise what `read_weights` would raise, from names and shapes in the headers of safetensors files; read no tensor.

    `model` may be on the meta device (`EarlyExitModel.from_config`). Weights in other files than safetensors are loaded.
    """
    with _naming(name):
        files = _safetensors_of(name)
        if _has_all(files, model, _stored_shapes(model)):
            return
        if not files:
            read_weights(name, model)
            return
        stand_ins: dict[str, Tensor] = {}
        for file in files:
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118
                    stand_ins[key] = torch.zeros(()).expand(tensors.get_slice(key).get_shape())  # one, seen many times
        branches = {key: stand_ins[key] for key in _branch_keys(model) if key in stand_ins}
        with quiet_transformers():
            theirs, info = classifier_class(model.config).from_pretrained(
                None,
                config=copy.deepcopy(model.config),
                dtype=torch.float32,
                attn_implementation="eager",
                state_dict=stand_ins,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        _state_of(name, model, theirs.to("meta"), info, branches, new_last_head=False)


def check_finite(name: Name, model: Model) -> None:
    """Raise UnsupportedModelError if a weight is a NaN or an infinity, as training that diverged leaves them.

    Reads every tensor, which `check_weights` does not; weights that transformers has to read are left to `read_weights`.
    """
    with _naming(name):
        files, shapes = _safetensors_of(name), _stored_shapes(model)
        if files and _has_all(files, model, shapes):
            for _ in _finite(name, _tensors_of(files, shapes)):
                pass  # one at a time, so that memory never holds them all


def _finite(name: Name, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Pass tensors on; raise UnsupportedModelError for the first that holds a NaN or an infinity."""
    for key, value in tensors:
        if not value.isfinite().all():
            raise UnsupportedModelError(f"{name}: '{key}' holds a NaN or an infinity; no text could be classified")
        yield key, value


@contextlib.contextmanager
def _naming(name: Name) -> Iterator[None]:
    """Turn whatever a library raises for a file that it cannot read into one line that names the model.

    Files fail in as many ways as there are libraries; what the disk itself fails at, and too little memory, is passed on.
    """
    try:
        yield
    except UnsupportedModelError as error:
        raise error if str(error).startswith(f"{name}: ") else UnsupportedModelError(f"{name}: {error}") from error
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and (error.errno or isinstance(error, FileNotFoundError)):
            raise
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"[:REASON_CHARACTERS]
        if isinstance(error, UnpicklingError):  # torch would have the user trust the file
            why = "a file is damaged, or holds Python objects that are no tensors; save them as safetensors"
        raise UnsupportedModelError(f"{name}: its weights cannot be read: {why}") from error


def _has_all(files: Sequence[Path], model: Model, stored: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the headers of a checkpoint's safetensors files show that it can be read as it is.

    `stored` is by `_stored_shapes`. Raises UnsupportedModelError for weights that are no floats, which transformers would take
    for numbers as they are.
    """
    found: dict[str, tuple[int, ...]] = {}
    as_it_is = True
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118
                if key in stored or _in_backbone(key, model.family):
                    header = tensors.get_slice(key)
                    found[key] = tuple(header.get_shape())
                    as_it_is &= stored.get(key) == found[key]
                    if header.get_dtype() not in FLOAT_DTYPES:
                        kind = header.get_dtype()
                        raise UnsupportedModelError(f"'{key}' is of type {kind}, so the weights are quantized")
    return as_it_is and stored.keys() - found.keys() <= {key for key, _ in model.named_buffers()}


def _stored_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor that `save` writes of a model."""
    with_head = model.exits_block.last_head == "classifier"
    stored = to_hugging_face(model.state_dict(), model.family, model.shape.layers, with_head=with_head)
    return {key: tuple(value.shape) for key, value in stored.items()}


def _state_as_stored(model: Model, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put together our state dict from tensors that a checkpoint holds under the names of `save`."""
    with_head = model.exits_block.last_head == "classifier"
    state = from_hugging_face(stored, model.family, model.state_dict(), model.shape.layers, with_head=with_head)
    # Statistics are missing of models made before pooled heads were standardized, which stay as they were.
    own = dict(model.named_buffers())
    return own | state | {key: value for key, value in stored.items() if key.startswith(BRANCH_PREFIXES)}


def _in_backbone(key: str, family: Family) -> bool:
    return key.startswith(f"{family.prefix}.") and ".pooler." not in key and not key.endswith(".position_ids")


def _state_of(
    name: Name,
    model: Model,
    theirs: "PreTrainedModel",
    info: Mapping[str, Any],
    branches: Mapping[str, Tensor],
    new_last_head: bool,
) -> dict[str, Tensor]:
    """Put together our state dict: backbone and last head out of transformers' model, branch heads as they are."""
    with_head = model.exits_block.last_head == "classifier"
    _check_loading(name, model.family, info, head_too=with_head and not new_last_head)
    own = model.state_dict()
    backbone = from_hugging_face(theirs.state_dict(), model.family, own, model.shape.layers, with_head=with_head)
    state = backbone | dict(branches)
    if new_last_head and not with_head:  # FastBERT's teacher head starts from random weights
        state |= {key: value for key, value in own.items() if key.startswith("exits.")}
    for key, buffer in model.named_buffers():
        state.setdefault(key, buffer)  # of models made before pooled heads were standardized: as they were
    missing = sorted(own.keys() - state.keys())
    if missing:
        raise UnsupportedModelError(f"{name}: config.json has exits, but the weights have no '{missing[0]}'")
    for key in branches:
        _check_shape(name, key, state[key].shape, own[key].shape)
    return state


def _check_loading(name: Name, family: Family, info: Mapping[str, Any], *, head_too: bool) -> None:
    """Raise UnsupportedModelError for weights of the backbone, or of the head too, that transformers could not load."""
    missing = sorted(key for key in info["missing_keys"] if "position_ids" not in key)
    wanted = [key for key in missing if _in_backbone(key, family)] or (missing if head_too else [])
    if wanted:
        raise UnsupportedModelError(
            f"{name}: the checkpoint has no '{wanted[0]}', so it is not a fine-tuned classifier; "
            "fine-tune it first (jobs/finetune.py)"
        )
    for key, stored, own in sorted(info["mismatched_keys"]):
        if head_too or _in_backbone(key, family):
            _check_shape(name, key, stored, own)


def _check_shape(name: Name, key: str, stored: Sequence[int], wanted: Sequence[int]) -> None:
    if tuple(stored) != tuple(wanted):
        raise UnsupportedModelError(
            f"{name}: '{key}' has shape {[*stored]} in the weights, and config.json makes it {[*wanted]}"
        )


def _branch_keys(model: Model) -> set[str]:
    return {key for key in model.state_dict() if key.startswith(BRANCH_PREFIXES)}


def _safetensors_of(name: Name) -> list[Path]:
    """List the safetensors files of a checkpoint; empty if its weights are in files of another kind."""
    return [file for file in weight_files(name) if file.suffix == ".safetensors"]


def _tensors_of(files: Sequence[Path], names: Container[str]) -> Iterator[tuple[str, Tensor]]:
    """Read the tensors of these names from safetensors files, one at a time."""
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            yield from ((key, tensors.get_tensor(key)) for key in tensors.keys() if key in names)  # noqa: SIM118


def save(directory: Name, model: Model) -> None:
    """Write config.json and model.safetensors into a directory, made if absent."""
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    model.config.early_exit = model.exits_block.to_json()
    model.config.architectures = [classifier_class(model.config).__name__]
    model.config.dtype = "float32"
    model.config.transformers_weights = None  # the backbone's may have had another name
    save_weights(path, model)
    model.config.save_pretrained(path)


def save_weights(directory: Name, model: Model) -> None:
    """Write model.safetensors into a directory; one that is there is replaced at once, when the new one is whole."""
    ours = {name: value.detach().float().cpu() for name, value in model.state_dict().items()}
    with_head = model.exits_block.last_head == "classifier"
    theirs = to_hugging_face(ours, model.family, model.shape.layers, with_head=with_head)
    temporary = Path(directory) / f".{WEIGHTS_FILE}.tmp"
    save_file(theirs, temporary, metadata={"format": "pt"})
    os.replace(temporary, Path(directory) / WEIGHTS_FILE)


def save_criterion(directory: Name, criterion: Criterion | None) -> None:
    """Store a criterion, or that there is none, in the config.json of a directory that `save` wrote."""
    path = Path(directory) / CONFIG_FILE
    config = json.loads(path.read_text(encoding="utf-8"))
    config["early_exit"].pop("criterion", None)
    if criterion is not None:
        config["early_exit"]["criterion"] = criterion.to_json()
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
