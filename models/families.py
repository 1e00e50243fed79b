"""The supported Hugging Face families, and how their parameters are named there and here.

All of them are the same post-LayerNorm encoder under different parameter names. One small table a family is enough to load
any of them into `models.backbone.Backbone` and to write it back so that transformers itself opens the directory. Queries,
keys and values are three matrices there and one here: one product over all tokens.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Parameter names of one family, relative to the checkpoint's root.

    In `layer` the keys are ours and the values theirs, relative to one layer; several values are stacked by rows.
    """

    prefix: str
    layers: str = "encoder.layer"
    layer: Mapping[str, tuple[str, ...]]
    head_dense: str
    head_out: str
    head_activation: str = "tanh"
    token_types: bool = True
    position_offset: bool = False


_BERT_LAYER = {
    "query_key_value": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention_out": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "ffn.expand": ("intermediate.dense",),
    "ffn.contract": ("output.dense",),
    "ffn_norm": ("output.LayerNorm",),
}
_DISTILBERT_LAYER = {
    "query_key_value": ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    "attention_out": ("attention.out_lin",),
    "attention_norm": ("sa_layer_norm",),
    "ffn.expand": ("ffn.lin1",),
    "ffn.contract": ("ffn.lin2",),
    "ffn_norm": ("output_layer_norm",),
}


def _roberta_like() -> Family:
    return Family(
        prefix="roberta",
        layer=_BERT_LAYER,
        head_dense="classifier.dense",
        head_out="classifier.out_proj",
        position_offset=True,
    )


def _bert_like(prefix: str) -> Family:
    return Family(prefix=prefix, layer=_BERT_LAYER, head_dense=f"{prefix}.pooler.dense", head_out="classifier")


FAMILIES: Mapping[str, Family] = {
    "bert": _bert_like("bert"),
    "ernie": _bert_like("ernie"),
    "roberta": _roberta_like(),
    "xlm-roberta": _roberta_like(),
    "camembert": _roberta_like(),
    "electra": Family(
        prefix="electra",
        layer=_BERT_LAYER,
        head_dense="classifier.dense",
        head_out="classifier.out_proj",
        head_activation="gelu",
    ),
    "distilbert": Family(
        prefix="distilbert",
        layers="transformer.layer",
        layer=_DISTILBERT_LAYER,
        head_dense="pre_classifier",
        head_out="classifier",
        head_activation="relu",
        token_types=False,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes and constants of an encoder, read off its Hugging Face config."""

    layers: int
    hidden: int
    intermediate: int
    attention_heads: int
    embedding: int
    """Width of the word embeddings; ELECTRA projects them up to `hidden`."""
    vocabulary: int
    positions: int
    """Rows of the position table."""
    first_position: int
    """Row of the first token's position: 0, or `padding_idx + 1` in the RoBERTa line."""
    token_types: int
    task_types: int
    """ERNIE adds the embedding of task 0 to every token when its config says so; 0 elsewhere."""
    pad_id: int
    activation: str
    norm_eps: float
    dropout: float
    attention_dropout: float
    classes: int

    @property
    def max_tokens(self) -> int:
        """The longest sequence that the position table can hold."""
        return self.positions - self.first_position


def family_of(config: "PretrainedConfig") -> Family:
    """Return the family of a config, or raise UnsupportedModelError naming what is supported."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        supported = ", ".join(sorted(FAMILIES))
        raise UnsupportedModelError(f"model type '{config.model_type}' is not supported; supported are: {supported}")
    return family


def shape_of(config: "PretrainedConfig") -> Shape:
    """Read the sizes of an encoder off its config; raise UnsupportedModelError for other families.

    A field that another family has means nothing in this one, as in transformers.
    """
    family = family_of(config)
    distilbert, ernie = config.model_type == "distilbert", config.model_type == "ernie"
    pad_id = config.pad_token_id if config.pad_token_id is not None else 0
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.hidden_dim if distilbert else config.intermediate_size,
        attention_heads=config.num_attention_heads,
        embedding=config.embedding_size if config.model_type == "electra" else config.hidden_size,
        vocabulary=config.vocab_size,
        positions=config.max_position_embeddings,
        first_position=pad_id + 1 if family.position_offset else 0,
        token_types=config.type_vocab_size if family.token_types else 0,
        task_types=config.task_type_vocab_size if ernie and config.use_task_id else 0,
        pad_id=pad_id,
        activation=config.activation if distilbert else config.hidden_act,
        norm_eps=1e-12 if distilbert else config.layer_norm_eps,
        dropout=config.dropout if distilbert else config.hidden_dropout_prob,
        attention_dropout=config.attention_dropout if distilbert else config.attention_probs_dropout_prob,
        classes=config.num_labels,
    )


def _names(family: Family, shape: Shape, with_head: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (our name, their names) for every parameter; several of theirs are our rows, stacked."""
    tables = ["word_embeddings", "position_embeddings"]
    tables += ["token_type_embeddings"] * bool(shape.token_types) + ["task_type_embeddings"] * bool(shape.task_types)
    for table in tables:
        yield f"backbone.embeddings.{table}.weight", (f"{family.prefix}.embeddings.{table}.weight",)
    for part in ("weight", "bias"):
        yield f"backbone.embeddings.norm.{part}", (f"{family.prefix}.embeddings.LayerNorm.{part}",)
        if shape.embedding != shape.hidden:
            yield f"backbone.embeddings.project.{part}", (f"{family.prefix}.embeddings_project.{part}",)
        for index in range(shape.layers):
            theirs = f"{family.prefix}.{family.layers}.{index}"
            for ours, parts in family.layer.items():
                yield f"backbone.layers.{index}.{ours}.{part}", tuple(f"{theirs}.{name}.{part}" for name in parts)
        if with_head:
            yield f"exits.{shape.layers}.dense.{part}", (f"{family.head_dense}.{part}",)
            yield f"exits.{shape.layers}.out.{part}", (f"{family.head_out}.{part}",)


def from_hugging_face(
    theirs: Mapping[str, Tensor], family: Family, shape: Shape, *, with_head: bool
) -> dict[str, Tensor]:
    """Rename a Hugging Face state dict to ours; raise UnsupportedModelError if a backbone weight has no place here."""
    ours: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, sources in _names(family, shape, with_head):
        missing = [source for source in sources if source not in theirs]
        if missing:
            raise UnsupportedModelError(f"the checkpoint has no parameter '{missing[0]}'")
        ours[name] = torch.cat([theirs[source] for source in sources]) if len(sources) > 1 else theirs[sources[0]]
        used.update(sources)
    left = sorted(k for k in theirs if k.startswith(f"{family.prefix}.") and k not in used and ".pooler." not in k)
    if left:
        raise UnsupportedModelError(f"the checkpoint has a parameter that offramp does not know: '{left[0]}'")
    return ours


def to_hugging_face(ours: Mapping[str, Tensor], family: Family, shape: Shape, *, with_head: bool) -> dict[str, Tensor]:
    """Rename our backbone and last head to Hugging Face's names; the branch heads keep their own prefix `exits.`."""
    theirs: dict[str, Tensor] = {}
    left = dict(ours)
    for name, targets in _names(family, shape, with_head):
        parts = left.pop(name).chunk(len(targets))
        theirs.update({target: part.contiguous() for target, part in zip(targets, parts, strict=True)})
    return theirs | left
