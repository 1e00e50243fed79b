"""Models with random weights, for benchmarks whose exits follow a plan and so do not depend on weights."""

from transformers import BertConfig

from models.early_exit import EarlyExitModel
from pipeline.errors import InputError

SHAPES = {"bert-base": (12, 768), "bert-large": (24, 1024)}
"""Layers and hidden size of the shapes that have a name."""


def random_model(shape: str, head: str) -> EarlyExitModel:
    """Return a BERT with random weights and an exit after every layer.

    `shape` is a name in SHAPES or '<layers>x<hidden>', such as '6x384'; anything else raises InputError.
    """
    try:
        layers, hidden = SHAPES.get(shape) or (int(part) for part in shape.split("x"))
    except ValueError as error:
        known = ", ".join(SHAPES)
        raise InputError("shape", f"{shape}: is one of {known}, or <layers>x<hidden>, such as 6x384") from error
    sizes = {"num_attention_heads": 12 if hidden == 384 else hidden // 64, "intermediate_size": 4 * hidden}
    model = EarlyExitModel(BertConfig(num_hidden_layers=layers, hidden_size=hidden, **sizes))
    model.add_exits(head)
    return model


def exits_every(model: EarlyExitModel, block: int) -> tuple[int, ...]:
    """Return every `block`-th exit of the model: (2, 4, 6) for 2 and six layers."""
    return tuple(layer for layer in model.exit_layers if layer % block == 0)
