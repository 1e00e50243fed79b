"""DeBERTa-v2 and v3 (He et al. 2021): BERT's layers, whose attention also compares content with distances.

DeBERTa-v3 has buckets of distances and takes its own projections for them (`share_att_key`); v2 has a convolution beside its
first layer. Many fields are no fields of transformers' configuration class: its modeling code looks for them one by one, with
the defaults that are here.
"""

from typing import TYPE_CHECKING

from models.errors import UnsupportedModelError
from models.families.bert import AFTER_ATTENTION, EMBEDDINGS
from models.families.names import Family
from models.families.shape import Convolution, Disentangled, Shape

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def read(config: "PretrainedConfig") -> Shape:
    """Read the sizes of a DeBERTa-v2; raise UnsupportedModelError for what transformers itself cannot run, or offramp."""
    _check(config)
    dropped = getattr(config, "cls_dropout", None)
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        attention_heads=config.num_attention_heads,
        embedding=config.hidden_size,
        vocabulary=config.vocab_size,
        positions=config.max_position_embeddings,
        first_position=0,
        token_types=max(config.type_vocab_size, 0),
        task_types=0,
        pad_id=config.pad_token_id if config.pad_token_id is not None else 0,
        activation=config.hidden_act,
        norm_eps=config.layer_norm_eps,
        dropout=config.hidden_dropout_prob,
        attention_dropout=config.attention_probs_dropout_prob,
        head_input_dropout=config.pooler_dropout,
        head_dropout=config.hidden_dropout_prob if dropped is None else float(dropped),
        classes=config.num_labels,
        position_table=bool(config.position_biased_input),
        head_activation=config.pooler_hidden_act,
        disentangled=_disentangled(config),
        convolution=_convolution(config),
    )


def _disentangled(config: "PretrainedConfig") -> Disentangled:
    """Read how content is compared with distances."""
    kinds = config.pos_att_type or []
    relative = bool(config.relative_attention)
    farthest = config.max_relative_positions if config.max_relative_positions >= 1 else config.max_position_embeddings
    buckets = max(getattr(config, "position_buckets", -1), 0)
    longest = config.max_position_embeddings
    if buckets == 1 or (buckets and farthest - 1 <= buckets // 2 < longest - 1):  # the scale would run backwards
        raise UnsupportedModelError(
            f"position_buckets in config.json is {buckets}, for distances of up to {farthest}: no scale has such buckets"
        )
    normed = "layer_norm" in [part.strip() for part in getattr(config, "norm_rel_ebd", "none").lower().split("|")]
    return Disentangled(
        relative=relative,
        content_to_position="c2p" in kinds,
        position_to_content="p2c" in kinds,
        shared_projections=bool(getattr(config, "share_att_key", False)),
        span=buckets or farthest,
        buckets=buckets,
        farthest=farthest,
        norm=normed,
    )


def _convolution(config: "PretrainedConfig") -> Convolution | None:
    kernel, groups = getattr(config, "conv_kernel_size", 0), getattr(config, "conv_groups", 1)
    if kernel <= 0:
        return None
    if kernel % 2 == 0:
        raise UnsupportedModelError(f"conv_kernel_size in config.json is {kernel}, and has to be odd")
    if groups < 1 or config.hidden_size % groups:
        raise UnsupportedModelError(
            f"conv_groups in config.json is {groups}, which does not divide a hidden size of {config.hidden_size}"
        )
    return Convolution(kernel=kernel, groups=groups, activation=getattr(config, "conv_act", "tanh"))


def _check(config: "PretrainedConfig") -> None:
    """Raise UnsupportedModelError for widths other than those that follow from the hidden size."""
    hidden = config.hidden_size
    follow = {
        "embedding_size": hidden,
        "pooler_hidden_size": hidden,
        "attention_head_size": hidden // max(config.num_attention_heads, 1),
    }
    for field, width in follow.items():
        given = getattr(config, field, width)
        if given != width:
            raise UnsupportedModelError(f"{field} in config.json is {given}; offramp computes {width} here alone")


DEBERTA = Family(
    read=read,
    prefix="deberta",
    embeddings=EMBEDDINGS,
    layers="encoder.layer",
    layer=AFTER_ATTENTION
    | {
        "query_key_value": ("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
        "attention.position_key": ("attention.self.pos_key_proj",),
        "attention.position_query": ("attention.self.pos_query_proj",),
        "attention_out": ("attention.output.dense",),
        "attention_norm": ("attention.output.LayerNorm",),
    },
    shared={
        "distances": "encoder.rel_embeddings",
        "distances.norm": "encoder.LayerNorm",
        "convolution.product": "encoder.conv.conv",
        "convolution.norm": "encoder.conv.LayerNorm",
    },
    head={"dense": "pooler.dense", "out": "classifier"},
    token_types=False,
)
