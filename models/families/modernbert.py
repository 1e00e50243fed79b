"""ModernBERT (Warner et al. 2024): pre-LayerNorm layers with rotations for positions, windows, and gated feed-forward blocks.

The layer before the first has normalized already, so the first does not; after the last comes a norm of its own. An exit before
that reads its hidden states through the same norm: they are sums over layers, whose size grows from layer to layer.
"""

from typing import TYPE_CHECKING

from models.errors import UnsupportedModelError
from models.families.names import Family
from models.families.shape import Shape

if TYPE_CHECKING:
    from transformers import PretrainedConfig

KINDS = ("full_attention", "sliding_attention")
"""Kinds of layers in `layer_types`: tokens see all others, or those of a window around them."""


def read(config: "PretrainedConfig") -> Shape:
    """Read the sizes of a ModernBERT; raise UnsupportedModelError for layers or rotations of other kinds."""
    kinds = list(config.layer_types)
    others = sorted(set(kinds) - set(KINDS))
    if others:
        raise UnsupportedModelError(f"layer_types in config.json names '{others[0]}'; known are {' and '.join(KINDS)}")
    reach = config.local_attention // 2
    if reach < 0:
        raise UnsupportedModelError(f"local_attention in config.json is {config.local_attention}")
    bases = {kind: _rotary_base(config, kind) for kind in set(kinds)}
    _check_width(config)
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        attention_heads=config.num_attention_heads,
        embedding=config.hidden_size,
        vocabulary=config.vocab_size,
        positions=config.max_position_embeddings,
        first_position=0,
        token_types=0,
        task_types=0,
        pad_id=config.pad_token_id if config.pad_token_id is not None else 0,
        activation=config.hidden_activation,
        norm_eps=config.norm_eps,
        dropout=config.embedding_dropout,
        attention_dropout=config.attention_dropout,
        ffn_dropout=config.mlp_dropout,
        head_dropout=config.classifier_dropout,
        classes=config.num_labels,
        position_table=False,
        rotary_bases=tuple(bases[kind] for kind in kinds),
        windows=tuple(reach if kind == "sliding_attention" else None for kind in kinds),
        pre_norm=True,
        norm_bias=config.norm_bias,
        attention_bias=config.attention_bias,
        ffn_bias=config.mlp_bias,
        head_activation=config.classifier_activation,
        head_bias=config.classifier_bias,
        head_norm=True,
        pooling="mean" if config.classifier_pooling == "mean" else "first",
    )


def _rotary_base(config: "PretrainedConfig", kind: str) -> float:
    """Return the base of the rotations' periods in layers of a kind."""
    parameters = config.rope_parameters[kind]
    if parameters["rope_type"] != "default":
        raise UnsupportedModelError(
            f"rope_parameters in config.json asks for rotations of the type '{parameters['rope_type']}'; "
            "offramp computes 'default'"
        )
    base = float(parameters["rope_theta"])
    if not base > 0:
        raise UnsupportedModelError(f"rope_parameters in config.json has the base {base}")
    return base


def _check_width(config: "PretrainedConfig") -> None:
    """Raise UnsupportedModelError unless the channels of a head can be turned in pairs."""
    width = config.hidden_size // max(config.num_attention_heads, 1)
    given = getattr(config, "head_dim", None)
    if given not in (None, width):
        raise UnsupportedModelError(f"head_dim in config.json is {given}, and attention heads are {width} wide")
    if width % 2:
        raise UnsupportedModelError(f"attention heads are {width} wide, and rotations take channels in pairs")


MODERNBERT = Family(
    read=read,
    prefix="model",
    embeddings={"word_embeddings": "embeddings.tok_embeddings", "norm": "embeddings.norm"},
    layers="layers",
    layer={
        "attention_norm": ("attn_norm",),
        "query_key_value": ("attn.Wqkv",),
        "attention_out": ("attn.Wo",),
        "ffn_norm": ("mlp_norm",),
        "ffn.expand": ("mlp.Wi",),
        "ffn.contract": ("mlp.Wo",),
    },
    shared={"final_norm": "final_norm"},
    head={"dense": "head.dense", "norm": "head.norm", "out": "classifier"},
    token_types=False,
)
