"""EarlyExitModel: a Hugging Face sequence classifier with an exit head on any of its layers.

    model = EarlyExitModel.from_pretrained("some/hub-id-or-directory")   # any classifier of a supported family
    model.add_exits("attention")                                         # heads on all lower layers, untrained
    model.save_pretrained(directory)                                     # transformers can open this directory too

The directory is the Hugging Face layout. Backbone and last head keep the names that transformers gives them, the branch
heads stand beside them under `exits.<layer>.`, and `config.json` gets an `early_exit` block.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig
from transformers.utils import cached_file
from transformers.utils import logging as hf_logging

from models.backbone import Backbone, PackedTokens
from models.errors import UnsupportedModelError
from models.exits.criterion import Criterion
from models.exits.flops import FlopCounter
from models.families import family_of, from_hugging_face, shape_of, to_hugging_face
from models.heads import AttentionHead, PooledHead

HEAD_KINDS = ("pooled", "attention")


class ExitOutput(NamedTuple):
    """What an exit says of B rows."""

    logits: Tensor
    """[B, C]; for regression C = 1 and this is the value."""
    lte: Tensor | None
    """[B]: certainty by the learned head, before its sigmoid; None at the last layer and without such a head."""


WEIGHTS_FILE = "model.safetensors"


class EarlyExitModel(nn.Module):
    """Backbone plus exit heads, one for each layer in `exit_layers`; the last layer always has one."""

    def __init__(self, config: PretrainedConfig, *, last_head: str = "classifier") -> None:
        """Build an untrained model; `last_head` is 'classifier' (the family's own) or 'attention' (FastBERT's)."""
        super().__init__()
        self.config = config
        self.family = family_of(config)
        self.shape = shape_of(config)
        self.last_head = last_head
        self.branch_head: str | None = None
        self.backbone = Backbone(self.shape)
        self.exits = nn.ModuleDict({str(self.shape.layers): self._new_last_head()})
        self.lte: nn.Linear | None = None
        """Features of any branch head -> how certain it may be, before the sigmoid: BERxiT's learning to exit."""
        self.criterion: Criterion | None = None
        """The criterion that the model is meant to be used with, if somebody chose one."""

    @property
    def exit_layers(self) -> tuple[int, ...]:
        """Layers (1-based) after which there is a head, ascending; the last one is full depth."""
        return tuple(sorted(int(layer) for layer in self.exits))

    @property
    def regression(self) -> bool:
        """Whether the model predicts a number: as in transformers, a classifier with one class."""
        return self.shape.classes == 1

    @property
    def labels(self) -> list[str]:
        """Class names by index."""
        return [str(self.config.id2label[index]) for index in range(self.shape.classes)]

    @property
    def flops(self) -> FlopCounter:
        """Counter of the FLOPs of rows in this model with all its exits."""
        last = "attention" if self.last_head == "attention" else "pooled"
        kinds = {layer: last if layer == self.shape.layers else str(self.branch_head) for layer in self.exit_layers}
        return FlopCounter(self.shape, kinds)

    def add_exits(self, kind: str) -> None:
        """Put an untrained head of this kind ('pooled' or 'attention') on every layer below the last."""
        if kind not in HEAD_KINDS:
            raise ValueError(f"head kind '{kind}' is not one of {', '.join(HEAD_KINDS)}")
        self.branch_head, self.criterion = kind, None  # a threshold is one of the heads it was chosen for
        for layer in range(1, self.shape.layers):
            self.exits[str(layer)] = self._new_head(kind)
        if self.shape.layers > 1:
            self.lte = nn.Linear(self.head(1).width, 1)

    def head(self, layer: int) -> PooledHead | AttentionHead:
        """Return the exit head after a layer, 1 to L."""
        found = self.exits[str(layer)]
        assert isinstance(found, PooledHead | AttentionHead)
        return found

    def exit_output(self, layer: int, features_BW: Tensor) -> ExitOutput:
        """Say what an exit makes of its features."""
        with_lte = self.lte is not None and layer != self.shape.layers
        lte_B = self.lte(features_BW)[:, 0] if with_lte and self.lte is not None else None
        return ExitOutput(self.head(layer).out(features_BW), lte_B)

    def forward(self, packed: PackedTokens) -> dict[int, ExitOutput]:
        """Run every layer and every head: exit layer -> answer. For training, and the oracle of the tests."""
        x_TH = self.backbone.embeddings(packed)
        answers: dict[int, ExitOutput] = {}
        for number, layer in enumerate(self.backbone.layers, start=1):
            x_TH = layer(x_TH, packed.groups)
            if str(number) in self.exits:
                answers[number] = self.exit_output(number, self.head(number).features(x_TH, packed.groups))
        return answers

    def last_output(self, packed: PackedTokens) -> ExitOutput:
        """Run every layer, and the last head alone."""
        x_TH = self.backbone.embeddings(packed)
        for layer in self.backbone.layers:
            x_TH = layer(x_TH, packed.groups)
        return self.exit_output(self.shape.layers, self.head(self.shape.layers).features(x_TH, packed.groups))

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike[str], *, new_labels: list[str] | None = None, new_last_head: str | None = None
    ) -> Self:
        """Load a hub id or a directory: an offramp model, or any fine-tuned classifier of a supported family.

        `new_labels` starts a new classifier over these classes on the backbone (fine-tuning); without it a checkpoint whose
        last head was never trained is refused. `new_last_head` chooses that classifier's kind.

        Raises FileNotFoundError if a local path holds no model, UnsupportedModelError for other architectures.
        """
        config = _load_config(name)
        family_of(config)
        block = getattr(config, "early_exit", None) or {}
        if new_labels is None:
            _check_task(name, config)
        else:
            block = {"last_head": new_last_head or "classifier"}
            config.num_labels = len(new_labels)
            config.problem_type = "regression" if len(new_labels) == 1 else "single_label_classification"
            config.id2label = dict(enumerate(new_labels))
            config.label2id = {label: index for index, label in enumerate(new_labels)}
        config.early_exit = block
        model = cls._of_config(config)
        model._load(name, fresh_head=new_labels is not None)
        return model.eval()

    @classmethod
    def from_config(cls, name: str | os.PathLike[str]) -> Self:
        """Build what `from_pretrained` would, but without weights: for questions about shape, exits, labels and criterion."""
        config = _load_config(name)
        _check_task(name, config)
        with torch.device("meta"):
            return cls._of_config(config)

    @classmethod
    def _of_config(cls, config: PretrainedConfig) -> Self:
        block = getattr(config, "early_exit", None) or {}
        model = cls(config, last_head=block.get("last_head", "classifier"))
        if "branch_head" in block:
            model.add_exits(block["branch_head"])
            if not block.get("lte"):
                model.lte = None
        if "criterion" in block:
            model.criterion = Criterion(**block["criterion"])
        return model

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors into a directory, made if absent. The tokenizer is the caller's to add."""
        path = Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        self.config.early_exit = {"version": 1, "last_head": self.last_head}
        if self.branch_head is not None:
            self.config.early_exit |= {"branch_head": self.branch_head, "lte": self.lte is not None}
        if self.criterion is not None:
            self.config.early_exit["criterion"] = asdict(self.criterion)
        from transformers import AutoModelForSequenceClassification  # takes seconds to import

        self.config.architectures = [AutoModelForSequenceClassification._model_mapping[type(self.config)].__name__]
        self.config.dtype = "float32"
        self.save_weights(path)
        self.config.save_pretrained(path)

    def save_weights(self, directory: str | os.PathLike[str]) -> None:
        """Write model.safetensors into a directory, in place of what is there once it is whole."""
        ours = {name: value.detach().float().cpu() for name, value in self.state_dict().items()}
        theirs = to_hugging_face(ours, self.family, self.shape, with_head=self.last_head == "classifier")
        temporary = Path(directory) / f".{WEIGHTS_FILE}.tmp"
        save_file(theirs, temporary, metadata={"format": "pt"})
        os.replace(temporary, Path(directory) / WEIGHTS_FILE)

    def save_criterion(self, directory: str | os.PathLike[str]) -> None:
        """Note the model's criterion, or that it has none, in the config.json of a directory that holds it already."""
        path = Path(directory) / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["early_exit"].pop("criterion", None)
        if self.criterion is not None:
            config["early_exit"]["criterion"] = asdict(self.criterion)
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def _load(self, name: str | os.PathLike[str], *, fresh_head: bool) -> None:
        """Take backbone and last head through transformers (it knows every checkpoint layout), branch heads directly."""
        from transformers import AutoModelForSequenceClassification  # takes seconds to import

        with_head = self.last_head == "classifier"
        with quiet_transformers():
            theirs, info = AutoModelForSequenceClassification.from_pretrained(
                name,
                config=self.config,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=fresh_head,
            )
        untrained = sorted(key for key in info["missing_keys"] if "position_ids" not in key)
        backbone_gap = [key for key in untrained if key.startswith(f"{self.family.prefix}.") and ".pooler." not in key]
        if backbone_gap or (untrained and with_head and not fresh_head):
            raise UnsupportedModelError(
                f"{name}: the checkpoint has no '{(backbone_gap or untrained)[0]}', so it is not a fine-tuned classifier; "
                "fine-tune it first (jobs/finetune.py)"
            )
        state = from_hugging_face(theirs.state_dict(), self.family, self.shape, with_head=with_head)
        if fresh_head and not with_head:  # FastBERT's teacher head starts from random weights
            state |= {k: v for k, v in self.state_dict().items() if k.startswith("exits.")}
        elif not fresh_head:
            state |= self._branch_weights(name)
        for key, buffer in self.named_buffers():
            state.setdefault(key, buffer)  # of models made before pooled heads were standardized: as they were
        missing = sorted(self.state_dict().keys() - state.keys())
        if missing:
            raise UnsupportedModelError(f"{name}: config.json tells of exits, but the weights have no '{missing[0]}'")
        self.load_state_dict(state)

    def _branch_weights(self, name: str | os.PathLike[str]) -> dict[str, Tensor]:
        try:
            file = cached_file(str(name), WEIGHTS_FILE)
        except OSError:  # other checkpoints may have their weights in other files
            return {}
        wanted = {key for key in self.state_dict() if key.startswith(("exits.", "lte."))}
        with safe_open(file, framework="pt") as tensors:
            return {key: tensors.get_tensor(key) for key in tensors.keys() if key in wanted}  # noqa: SIM118

    def _new_last_head(self) -> nn.Module:
        if self.last_head == "attention":
            return self._new_head("attention")
        if self.last_head != "classifier":
            raise UnsupportedModelError(f"config.json names a last head '{self.last_head}' that offramp does not know")
        return PooledHead(
            self.shape.hidden, self.shape.classes, activation=self.family.head_activation, dropout=self._head_dropout()
        )

    def _new_head(self, kind: str) -> nn.Module:
        hidden, classes, dropout = self.shape.hidden, self.shape.classes, self._head_dropout()
        if kind == "attention":
            return AttentionHead(hidden, classes, dropout=dropout)
        return PooledHead(hidden, classes, dropout=dropout, standardized=True)

    def _head_dropout(self) -> float:
        value: Any = getattr(self.config, "seq_classif_dropout", getattr(self.config, "classifier_dropout", None))
        return self.shape.dropout if value is None else float(value)


def _check_task(name: str | os.PathLike[str], config: PretrainedConfig) -> None:
    """Raise UnsupportedModelError for a classifier whose classes do not exclude each other."""
    if config.problem_type == "multi_label_classification":
        raise UnsupportedModelError(f"{name}: gives a row any number of labels (multi-label); offramp gives it one")


def _load_config(name: str | os.PathLike[str]) -> PretrainedConfig:
    """Read config.json; raise FileNotFoundError naming the model when there is none."""
    looks_local = os.path.exists(name) or str(name).startswith((".", "/", "~"))
    if looks_local and not (Path(name) / "config.json").is_file():
        raise FileNotFoundError(f"{name}: no model there (no config.json in that directory)")
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(name)
    except ValueError as error:
        raise UnsupportedModelError(f"{name}: config.json is not one of a model that transformers knows") from error
    except OSError as error:
        raise FileNotFoundError(f"{name}: neither a directory here nor a model that the hub gives") from error
    return config


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' load report and progress bars: what matters in them we check and say ourselves."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
