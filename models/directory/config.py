"""Read config.json, and refuse what it asks for that offramp does not compute.

Every field of the supported families' configurations is honoured, refused, or without effect on predictions. The table is in
docs/results/config-fields/README.md, and tests/models/test_config_fields.py holds it to the installed transformers.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

from models.directory.files import CONFIG_FILE, Name, read_json
from models.errors import UnsupportedModelError, UserError
from models.exits.criterion import Criterion
from models.exits.kinds import HEAD_KINDS
from models.exits.task import Task
from models.families.shape import Convolution, Disentangled, Shape
from models.families.table import FAMILIES, family_of, shape_of
from models.layers import activation

if TYPE_CHECKING:
    from transformers import PretrainedConfig

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
BLOCK_VERSION = 1
OTHER_HEADS = ("ForTokenClassification", "ForMultipleChoice", "ForQuestionAnswering")
"""Ends of the names of transformers' classes whose weights pass for a sequence classifier's in some family."""
OTHER_CODE = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification")
"""Keys of `auto_map` that name code which computes something else than transformers' own."""
REFUSED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "is_decoder": (bool, "makes the model a decoder, whose tokens see only those before them"),
    "add_cross_attention": (bool, "makes the model a decoder, which attends to another model's states"),
    "is_causal": (bool, "makes tokens see only those before them"),
    "position_embedding_type": (
        lambda kind: kind not in (None, "absolute"),
        "asks for position embeddings that are not absolute",
    ),
    "quantization_config": (
        lambda value: value is not None,
        "says that the weights are quantized; offramp reads those of fp32, fp16 and bf16",
    ),
    "per_layer_config": (bool, "gives layers different settings"),
    "pruned_heads": (bool, "takes attention heads out of layers"),
    "fusion_config": (bool, "replaces parts of the model"),
    "auto_map": (
        lambda code: isinstance(code, dict) and any(key in code for key in OTHER_CODE),
        "names code of the model's own, which offramp does not run",
    ),
}
"""Fields that offramp does not compute: whether a value asks for something, and what that is."""
UNREAD: Mapping[str, Mapping[str, tuple[object, ...]]] = {"modernbert": {"position_embedding_type": ("sans_pos",)}}
"""Values by family and field of REFUSED that stand in files of the family, and that no code of it has ever read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitsBlock:
    """The `early_exit` block of config.json.

    Example: `{"version": 1, "last_head": "classifier", "branch_head": "pooled", "lte": true}`, and after a threshold was chosen
    `"criterion": {"name": "entropy", "speed": 0.3, ...}`.
    """

    last_head: str = "classifier"
    branch_head: str | None = None
    lte: bool = False
    criterion: Criterion | None = None

    @classmethod
    def of(cls, config: "PretrainedConfig | SimpleNamespace") -> Self:
        """Read the block of a config; one without it is a plain classifier. Raises UnsupportedModelError for a wrong block."""
        block = getattr(config, "early_exit", None) or {}
        try:
            if block.get("version", BLOCK_VERSION) != BLOCK_VERSION:
                raise ValueError(f"version {block['version']} is not {BLOCK_VERSION}")
            if block.get("last_head", "classifier") not in ("classifier", "attention"):
                raise ValueError(f"last head '{block['last_head']}' is neither 'classifier' nor 'attention'")
            if block.get("branch_head") not in (None, *HEAD_KINDS):
                raise ValueError(f"branch head '{block['branch_head']}' is none of {', '.join(HEAD_KINDS)}")
            return cls(
                last_head=block.get("last_head", "classifier"),
                branch_head=block.get("branch_head"),
                lte=bool(block.get("lte")),
                criterion=Criterion(**block["criterion"]) if "criterion" in block else None,
            )
        except (AttributeError, TypeError, ValueError) as error:
            raise UnsupportedModelError(f"the early_exit block of {CONFIG_FILE} is wrong: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """Lay the block out as config.json has it."""
        block: dict[str, Any] = {"version": BLOCK_VERSION, "last_head": self.last_head}
        if self.branch_head is not None:
            block |= {"branch_head": self.branch_head, "lte": self.lte}
        if self.criterion is not None:
            block["criterion"] = self.criterion.to_json()
        return block


def read_config(
    name: Name,
    *,
    new_labels: Sequence[str] | None = None,
    new_last_head: str | None = None,
    new_task: Task | None = None,
) -> "PretrainedConfig":
    """Read config.json; with `new_labels`, change it into that of a new classifier over these classes, without branch heads.

    Raises FileNotFoundError if there is no model, UnsupportedModelError for one that is damaged or that offramp cannot run.
    """
    check_name(name)
    try:
        values = read_json(name, CONFIG_FILE)
    except OSError as error:
        raise FileNotFoundError(f"{name}: neither a directory here nor a model that the hub gives") from error
    _check_values(name, values)
    config = _parsed(name)
    if new_labels is not None:
        config.early_exit = ExitsBlock(last_head=new_last_head or "classifier").to_json()
        config.num_labels = len(new_labels)
        by_number = Task.VALUE if len(new_labels) == 1 else Task.CLASSES
        config.problem_type = (new_task or by_number).problem_type
        config.id2label = dict(enumerate(new_labels))
        config.label2id = {label: index for index, label in enumerate(new_labels)}
    try:
        _check_sizes(config)
        if new_labels is None:
            _check_task(config)
            ExitsBlock.of(config)
    except UserError as error:
        raise UnsupportedModelError(f"{name}: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"a value in {CONFIG_FILE} makes no sense"
        raise UnsupportedModelError(f"{name}: {what}: {type(error).__name__}: {error}") from error
    return config


def plain_config(config: "PretrainedConfig") -> SimpleNamespace:
    """Return all that a config says as plain values, for processes that do without transformers, and some without torch.

    A value of another kind, such as a dtype, becomes its text. `EarlyExitModel.from_pretrained` takes such a config.
    """
    names = {*vars(config), *type(config).attribute_map, "model_type", "num_labels"}
    values = {name: getattr(config, name) for name in sorted(names) if not name.startswith("_")}
    plain = (str, int, float, list, tuple, dict, type(None))
    return SimpleNamespace(
        **{name: value if isinstance(value, plain) else str(value) for name, value in values.items()}
    )


def config_document(config: "PretrainedConfig | SimpleNamespace", block: ExitsBlock) -> dict[str, object]:
    """List what a config says of how weights are used, but the criterion, which each run chooses."""
    shape = shape_of(config)
    return {
        "family": config.model_type,
        "shape": shape_document(shape),
        "labels": [str(config.id2label[index]) for index in range(shape.classes)],
        "last_head": block.last_head,
        "branch_head": block.branch_head,
        "lte": block.lte,
    } | ({"task": Task.LABELS.value} if Task.of(config) is Task.LABELS else {})  # others are known by their classes


def shape_document(shape: Shape) -> dict[str, object]:
    """List the sizes and constants of an encoder, but not its dropout, which training alone has."""
    return {
        "layers": shape.layers,
        "hidden": shape.hidden,
        "intermediate": shape.intermediate,
        "attention_heads": shape.attention_heads,
        "embedding": shape.embedding,
        "vocabulary": shape.vocabulary,
        "positions": shape.positions,
        "first_position": shape.first_position,
        "token_types": shape.token_types,
        "task_types": shape.task_types,
        "pad_id": shape.pad_id,
        "activation": shape.activation,
        "norm_eps": shape.norm_eps,
        "classes": shape.classes,
        **_of_some_families(shape),
    }


def _of_some_families(shape: Shape) -> dict[str, object]:
    """List what only some families have: it is in their documents alone, so that those of others stay as they were."""
    listed: dict[str, object] = {
        "position_table": shape.position_table,
        "rotary_bases": shape.rotary_bases,
        "windows": shape.windows,
        "pre_norm": shape.pre_norm,
        "norm_bias": shape.norm_bias,
        "attention_bias": shape.attention_bias,
        "ffn_bias": shape.ffn_bias,
        "head_activation": shape.head_activation,
        "head_bias": shape.head_bias,
        "head_norm": shape.head_norm,
        "pooling": shape.pooling,
        "disentangled": shape.disentangled,
        "convolution": shape.convolution,
        "relative_buckets": shape.relative_buckets,
    }
    default = {field.name: field.default for field in fields(Shape)}
    return {
        name: asdict(value) if isinstance(value, Disentangled | Convolution) else value
        for name, value in listed.items()
        if value != default[name]
    }


def check_name(name: Name) -> None:
    """Raise FileNotFoundError for what can only be the name of a directory, and is none with a model in it.

    Anybody can register a name such as `models/reviews` with the hub: a slip in a path must not end there.
    """
    path = Path(name)
    if path.is_dir():
        if not (path / CONFIG_FILE).is_file():
            raise FileNotFoundError(f"{name}: no model there (no {CONFIG_FILE} in that directory)")
        return
    if os.path.lexists(path):
        raise FileNotFoundError(f"{name}: no model there (it is no directory)")
    if not HUB_ID.fullmatch(str(name)):
        raise FileNotFoundError(f"{name}: no model there (no such directory)")
    if "/" in str(name) and path.parent.is_dir():
        raise FileNotFoundError(
            f"{name}: no model there (no such directory in {path.parent}; for the hub's model run this where that is none)"
        )


def is_on_hub(name: Name) -> bool:
    """Return whether a name is a hub's id, since there is no such directory here."""
    return not Path(name).is_dir()


def _check_values(name: Name, values: Mapping[str, Any]) -> None:
    """Raise UnsupportedModelError for another family, and for fields that ask for what offramp does not compute."""
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        supported = ", ".join(sorted(FAMILIES))
        raise UnsupportedModelError(f"{name}: model type '{kind}' is not supported; supported are: {supported}")
    unread = UNREAD.get(kind, {})
    for field, (asks, what) in REFUSED.items():
        if field in values and values[field] not in unread.get(field, ()) and asks(values[field]):
            raise UnsupportedModelError(f"{name}: {field} in {CONFIG_FILE} {what}")
    if (
        Path(name) / "adapter_config.json"
    ).is_file():  # which transformers applies if it has peft, and else passes over
        raise UnsupportedModelError(
            f"{name}: holds an adapter; merge it into the model (merge_and_unload) and save that"
        )


def _parsed(name: Name) -> "PretrainedConfig":
    """Have transformers make sense of config.json; raise UnsupportedModelError where it fails, in whatever way."""
    from transformers import AutoConfig

    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        why = " ".join(str(error).split())
        raise UnsupportedModelError(
            f"{name}: transformers refuses {CONFIG_FILE}: {type(error).__name__}: {why}"
        ) from error
    return config


def _check_sizes(config: "PretrainedConfig") -> None:
    """Raise UnsupportedModelError unless an encoder can be made of the sizes and constants of a config."""
    shape = shape_of(config)
    sizes = {
        "the number of layers": shape.layers,
        "the hidden size": shape.hidden,
        "the intermediate size": shape.intermediate,
        "the number of attention heads": shape.attention_heads,
        "the embedding size": shape.embedding,
        "the vocabulary": shape.vocabulary,
        "max_position_embeddings": shape.max_tokens,
        "the number of labels": shape.classes,
        "type_vocab_size": shape.token_types if family_of(config).token_types else 1,
        "task_type_vocab_size": shape.task_types if config.model_type == "ernie" and config.use_task_id else 1,
    }
    for what, size in sizes.items():
        if size < 1:
            raise UnsupportedModelError(f"{what} in {CONFIG_FILE} is {size}")
    if shape.hidden % shape.attention_heads:
        raise UnsupportedModelError(
            f"{shape.attention_heads} attention heads do not divide a hidden size of {shape.hidden}"
        )
    if not shape.norm_eps >= 0:
        raise UnsupportedModelError(f"layer_norm_eps in {CONFIG_FILE} is {shape.norm_eps}")
    if family_of(config).position_offset and (config.pad_token_id is None or not config.pad_token_id >= -1):
        raise UnsupportedModelError(
            f"positions begin after pad_token_id, which is {config.pad_token_id} in {CONFIG_FILE}"
        )
    dropouts = (
        shape.dropout,
        shape.attention_dropout,
        shape.ffn_dropout,
        shape.head_input_dropout,
        shape.head_dropout,
    )
    if any(not 0 <= dropped < 1 for dropped in dropouts):
        raise UnsupportedModelError(f"a dropout in {CONFIG_FILE} is not in [0, 1)")
    activation(shape.activation)
    activation(shape.head_activation or family_of(config).head_activation)
    if shape.convolution is not None:
        activation(shape.convolution.activation)


def _check_task(config: "PretrainedConfig") -> None:
    """Raise UnsupportedModelError for a model that predicts several values, or whose labels have no names of their own."""
    if config.problem_type == "regression" and config.num_labels > 1:
        raise UnsupportedModelError(
            f"predicts {config.num_labels} values (problem_type regression); offramp predicts one"
        )
    for architecture in config.architectures or ():
        if str(architecture).endswith(OTHER_HEADS):
            raise UnsupportedModelError(
                f"is a {architecture}, and no classifier of texts; fine-tune it first (jobs/finetune.py)"
            )
    indices = sorted(config.id2label)
    if indices != list(range(len(indices))):
        raise UnsupportedModelError(
            f"id2label in {CONFIG_FILE} has the numbers {indices}, and not 0 to {len(indices) - 1}"
        )
    names = [config.id2label[index] for index in indices]
    labels = [str(name) if isinstance(name, str | int) else "" for name in names]
    blank = [index for index, label in enumerate(labels) if not label.strip()]
    if blank:
        raise UnsupportedModelError(f"id2label in {CONFIG_FILE} gives class {blank[0]} no name")
    twice = [label for index, label in enumerate(labels) if label in labels[:index]]
    if twice:
        raise UnsupportedModelError(f"id2label in {CONFIG_FILE} gives two classes the name '{twice[0]}'")
