"""What a family is to offramp: a reader of its config, and the names of its parameters.

Our names are those of `EarlyExitModel`; a family says where each module of ours is in its checkpoints. Which parameters there
are, a module's bias for one, is read off our own model. Several modules of theirs are rows of one of ours: queries, keys and
values are three matrices in most families, and one product over all tokens here.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.errors import UnsupportedModelError
from models.families.shape import Shape

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family: how its config is read, and the names of its modules, by ours.

    Example: with the prefix 'bert' and the layer {"ffn.expand": ("intermediate.dense",)} our
    `backbone.layers.3.ffn.expand.weight` is their `bert.encoder.layer.3.intermediate.dense.weight`.
    """

    read: Callable[["PretrainedConfig"], Shape]
    """Returns the sizes that a config says; raises UnsupportedModelError for what offramp does not compute."""
    prefix: str
    embeddings: Mapping[str, str]
    """Modules of the embeddings, relative to the prefix."""
    layers: str
    """Name of the list of layers, relative to the prefix."""
    layer: Mapping[str, tuple[str, ...]]
    """Modules of a layer, relative to it; several of theirs are stacked by rows."""
    shared: Mapping[str, str] = field(default_factory=dict)
    """Modules of the backbone that are neither, relative to the prefix."""
    head: Mapping[str, str]
    """Modules of the last head, relative to the root."""
    head_activation: str = "tanh"
    token_types: bool = True
    position_offset: bool = False
    """Whether positions are numbered from the padding's id on."""

    def their_names(self, name: str, last_layer: int, *, with_head: bool) -> tuple[str, ...]:
        """Return the names of a parameter of ours in a checkpoint; none if it is one that only our directories hold."""
        *path, part = name.split(".")
        match path:
            case ["backbone", "embeddings", *rest]:
                theirs: tuple[str, ...] = (f"{self.prefix}.{self.embeddings['.'.join(rest)]}",)
            case ["backbone", "layers", index, *rest]:
                layer = f"{self.prefix}.{self.layers}.{index}"
                theirs = tuple(f"{layer}.{module}" for module in self.layer[".".join(rest)])
            case ["backbone", *rest]:
                theirs = (f"{self.prefix}.{self.shared['.'.join(rest)]}",)
            case ["exits", number, *rest] if with_head and int(number) == last_layer:
                theirs = (self.head[".".join(rest)],)
            case _:
                theirs = ()
        return tuple(f"{module}.{part}" for module in theirs)


def from_hugging_face(
    theirs: Mapping[str, Tensor], family: Family, ours: Iterable[str], last_layer: int, *, with_head: bool
) -> dict[str, Tensor]:
    """Rename a Hugging Face state dict to these names of ours, leaving out those that it has no place for.

    Raises UnsupportedModelError if a parameter is missing, or if one of the backbone has no place here.
    """
    renamed: dict[str, Tensor] = {}
    used: set[str] = set()
    for name in ours:
        sources = family.their_names(name, last_layer, with_head=with_head)
        missing = [source for source in sources if source not in theirs]
        if missing:
            raise UnsupportedModelError(f"the checkpoint has no parameter '{missing[0]}'")
        if sources:
            parts = [theirs[source] for source in sources]
            renamed[name] = torch.cat(parts) if len(parts) > 1 else parts[0]
        used.update(sources)
    left = sorted(k for k in theirs if k.startswith(f"{family.prefix}.") and k not in used and ".pooler." not in k)
    if left:
        raise UnsupportedModelError(f"the checkpoint has a parameter that offramp does not know: '{left[0]}'")
    return renamed


def to_hugging_face(
    ours: Mapping[str, Tensor], family: Family, last_layer: int, *, with_head: bool
) -> dict[str, Tensor]:
    """Rename our backbone and last head to Hugging Face's names; the branch heads keep their own prefix `exits.`."""
    theirs: dict[str, Tensor] = {}
    for name, value in ours.items():
        targets = family.their_names(name, last_layer, with_head=with_head) or (name,)
        parts = value.chunk(len(targets)) if len(targets) > 1 else (value,)
        theirs.update({target: part.contiguous() for target, part in zip(targets, parts, strict=True)})
    return theirs
