"""EarlyExitModel: a Hugging Face sequence classifier with an exit head on any of its layers.

    model = EarlyExitModel.from_pretrained("some/hub-id-or-directory")   # any classifier of a supported family
    model.add_exits("attention")                                         # heads on all lower layers, untrained
    model.save_pretrained(directory)                                     # transformers can open this directory too

How a model directory is laid out, read and written is in models.checkpoint.
"""

import copy
import os
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from models import checkpoint
from models.backbone import Backbone, PackedTokens
from models.directory.config import ExitsBlock, config_document, read_config
from models.directory.digest import document_hash
from models.errors import UnsupportedModelError
from models.exits.criterion import Criterion
from models.exits.flops import FlopCounter
from models.exits.kinds import HEAD_KINDS
from models.exits.task import Task
from models.families.table import family_of, shape_of
from models.heads import AttentionHead, Head, MeanHead, PooledHead

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class ExitOutput(NamedTuple):
    """Output of one exit for B rows."""

    logits: Tensor
    """[B, C]; for regression C = 1 and this is the value, for label sets C is the number of labels."""
    lte: Tensor | None
    """[B]: logit of the learned certainty; None at the last layer and without such a head."""


class EarlyExitModel(nn.Module):
    """Backbone plus exit heads, one for each layer in `exit_layers`; the last layer always has one."""

    def __init__(self, config: "PretrainedConfig", *, last_head: str = "classifier") -> None:
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
        """Maps features of any branch head to the logit of its certainty: BERxiT's learning to exit."""
        self.criterion: Criterion | None = None
        """The criterion that the model is meant to be used with, if one was chosen."""

    @property
    def exit_layers(self) -> tuple[int, ...]:
        """Layers (1-based) after which there is a head, ascending; the last one is full depth."""
        return tuple(sorted(int(layer) for layer in self.exits))

    @property
    def task(self) -> Task:
        """What the model predicts of a text: a class, a value, or a set of labels."""
        return Task.of(self.config)

    @property
    def regression(self) -> bool:
        """Whether the model predicts a number: as in transformers, a classifier with one class."""
        return self.task is Task.VALUE

    def boundaries(self, label_thresholds: tuple[float, ...] = ()) -> tuple[float, ...] | None:
        """Return the logits above which labels are predicted: C of them; None for a model that predicts no label sets.

        `label_thresholds` are those of a Criterion.
        """
        if self.task is not Task.LABELS:
            return None
        return Criterion(label_thresholds=label_thresholds).boundaries(self.shape.classes)

    @property
    def labels(self) -> list[str]:
        """Names of the classes, or of the labels, by index."""
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
        self.branch_head, self.criterion = kind, None  # a threshold belongs to the heads that it was chosen for
        for layer in range(1, self.shape.layers):
            self.exits[str(layer)] = self._new_head(kind)
        if self.shape.layers > 1:
            self.lte = nn.Linear(self.head(1).width, 1)

    def check_layers(self, layers: Sequence[int]) -> None:
        """Raise an error unless a student may have these layers, 1-based and ascending.

        It is ValueError for layers that the model lacks, and UnsupportedModelError if the first one is left out of a family in
        which it is not like the others.
        """
        if not layers or list(layers) != sorted({*layers}) or layers[0] < 1 or layers[-1] > self.shape.layers:
            raise ValueError(f"layers must ascend within 1 to {self.shape.layers}, not {', '.join(map(str, layers))}")
        if layers[0] != 1 and (self.shape.pre_norm or self.shape.convolution is not None):
            raise UnsupportedModelError("its first layer is not like the others, and cannot be left out")

    def with_layers(self, layers: Sequence[int]) -> Self:
        """Return a plain model of some layers, 1-based and ascending, with a copy of their weights and of the last head.

        A student to be: untrained, so that its predictions are worth little. Raises as `check_layers`.
        """
        self.check_layers(layers)
        config = copy.deepcopy(self.config)
        config.num_hidden_layers = len(layers)
        if hasattr(config, "layer_types"):
            config.layer_types = [config.layer_types[layer - 1] for layer in layers]
        student = type(self)(config, last_head=self.last_head)
        names = {f"backbone.layers.{layer - 1}.": f"backbone.layers.{at}." for at, layer in enumerate(layers)}
        names[f"exits.{self.shape.layers}."] = f"exits.{len(layers)}."
        state = {}
        for name, tensor in self.state_dict().items():
            old = next((old for old in names if name.startswith(old)), None)
            if old is not None:
                state[names[old] + name.removeprefix(old)] = tensor
            elif not name.startswith(("backbone.layers.", "exits.", "lte.")):
                state[name] = tensor
        student.load_state_dict(state)
        return student.eval()

    def head(self, layer: int) -> Head:
        """Return the exit head after a layer, 1 to L."""
        found = self.exits[str(layer)]
        assert isinstance(found, Head)
        return found

    def branch_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of all exits below the last."""
        heads = [p for layer in self.exit_layers[:-1] for p in self.head(layer).parameters()]
        return heads + ([] if self.lte is None else list(self.lte.parameters()))

    def in_order_of_use(self) -> list[nn.Parameter]:
        """Return all parameters in the order in which `forward` first uses them; gradients come in the opposite order."""
        parts: list[nn.Module] = [self.backbone.embeddings, *self.backbone.shared_modules()]
        for number, layer in enumerate(self.backbone.layers, start=1):
            heads = [self.head(number)] if str(number) in self.exits else []
            lte = [self.lte] if number == self.exit_layers[0] and self.lte is not None else []
            parts += [layer, *heads, *lte]
        return [parameter for part in parts for parameter in part.parameters()]

    def exit_output(self, layer: int, features_BW: Tensor) -> ExitOutput:
        """Compute the output of the exit after a layer from its head's features."""
        with_lte = self.lte is not None and layer != self.shape.layers
        lte_B = self.lte(features_BW)[:, 0] if with_lte and self.lte is not None else None
        return ExitOutput(self.head(layer).out(features_BW), lte_B)

    def forward(self, packed: PackedTokens) -> dict[int, ExitOutput]:
        """Run every layer and every head, for training and for calibration: exit layer -> output."""
        x_TH = self.backbone.embeddings(packed)
        outputs: dict[int, ExitOutput] = {}
        for number, layer in enumerate(self.backbone.layers, start=1):
            x_TH = layer(x_TH, packed.groups)
            if str(number) in self.exits:
                outputs[number] = self.exit_output(number, self.head(number).features(x_TH, packed.groups))
        return outputs

    def last_output(self, packed: PackedTokens) -> ExitOutput:
        """Run every layer, and the last head alone."""
        x_TH = self.backbone.embeddings(packed)
        for layer in self.backbone.layers:
            x_TH = layer(x_TH, packed.groups)
        return self.exit_output(self.shape.layers, self.head(self.shape.layers).features(x_TH, packed.groups))

    @property
    def config_digest(self) -> str:
        """Digest of what its config says that decides predictions, but the criterion, which each run chooses."""
        return document_hash(config_document(self.config, self.exits_block))

    @property
    def exits_block(self) -> ExitsBlock:
        """The block of config.json that describes this model's heads and criterion."""
        return ExitsBlock(
            last_head=self.last_head,
            branch_head=self.branch_head,
            lte=self.lte is not None,
            criterion=self.criterion,
        )

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        new_labels: list[str] | None = None,
        new_last_head: str | None = None,
        new_task: Task | None = None,
        config: SimpleNamespace | None = None,
    ) -> Self:
        """Load a hub id or a directory: an offramp model, or any fine-tuned classifier of a supported family.

        `new_labels` starts a new classifier over these classes on the backbone (fine-tuning); without it a checkpoint whose
        last head was never trained is refused. `new_last_head` chooses that classifier's kind, and `new_task` what it predicts:
        by default a value if there is one label, else a class. A `config` that was read before, by
        `models.directory.config.plain_config`, saves the time to import transformers; such a model cannot be saved.

        Raises FileNotFoundError if a local path holds no model, UnsupportedModelError for a checkpoint that is damaged or of
        another architecture.
        """
        read = config or read_config(name, new_labels=new_labels, new_last_head=new_last_head, new_task=new_task)
        model = cls._of_config(cast("PretrainedConfig", read))
        model.load_state_dict(checkpoint.read_weights(name, model, new_last_head=new_labels is not None))
        return model.eval()

    @classmethod
    def from_config(cls, name: str | os.PathLike[str]) -> Self:
        """Build the model without its weights, on the meta device: for its shape, exits, labels and criterion."""
        config = read_config(name)
        with torch.device("meta"):
            return cls._of_config(config)

    @classmethod
    def _of_config(cls, config: "PretrainedConfig") -> Self:
        block = ExitsBlock.of(config)
        model = cls(config, last_head=block.last_head)
        if block.branch_head is not None:
            model.add_exits(block.branch_head)
            if not block.lte:
                model.lte = None
        model.criterion = block.criterion
        return model

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors into a directory, made if absent. The tokenizer is the caller's to add."""
        checkpoint.save(directory, self)

    def save_weights(self, directory: str | os.PathLike[str]) -> None:
        """Replace model.safetensors in a directory."""
        checkpoint.save_weights(directory, self)

    def save_criterion(self, directory: str | os.PathLike[str]) -> None:
        """Store the model's criterion, or that it has none, in the config.json of a directory that holds it already."""
        checkpoint.save_criterion(directory, self.criterion)

    def _new_last_head(self) -> nn.Module:
        if self.last_head == "attention":
            return self._new_head("attention")
        shape = self.shape
        make = MeanHead if shape.pooling == "mean" else PooledHead
        return make(
            shape.hidden,
            shape.classes,
            activation=shape.head_activation or self.family.head_activation,
            dropout=shape.head_dropout,
            input_dropout=shape.head_input_dropout,
            bias=shape.head_bias,
            norm=nn.LayerNorm(shape.hidden, eps=shape.norm_eps, bias=shape.norm_bias) if shape.head_norm else None,
            read_through=self.backbone.exit_norm(),
        )

    def _new_head(self, kind: str) -> nn.Module:
        hidden, classes, dropout = self.shape.hidden, self.shape.classes, self.shape.head_dropout
        norm = self.backbone.exit_norm()
        if kind == "attention":
            return AttentionHead(hidden, classes, dropout=dropout, read_through=norm)
        return PooledHead(hidden, classes, dropout=dropout, standardized=True, read_through=norm)
