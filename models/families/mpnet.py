"""MPNet (Song et al. 2020): BERT's layers, and in all of them one bias of attention by distance (T5: Raffel et al. 2020).

As in transformers' MPNetModel, two numbers are fixed whatever config.json says: the padding's id, after which positions are
numbered, is 1, and distances fall into 32 buckets. `relative_attention_num_buckets` says how many rows their table has.
"""

from typing import TYPE_CHECKING

from models.errors import UnsupportedModelError
from models.families.bert import AFTER_ATTENTION, EMBEDDINGS, IN_THE_CLASSIFIER
from models.families.names import Family
from models.families.shape import Shape

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PAD_ID = 1
"""What MPNetEmbeddings takes for padding."""
BUCKETS = 32
"""Buckets that MPNetEncoder.compute_position_bias puts distances into."""


def read(config: "PretrainedConfig") -> Shape:
    """Read the sizes of an MPNet; raise UnsupportedModelError for a table that has no row for some distances."""
    if config.relative_attention_num_buckets < BUCKETS:
        raise UnsupportedModelError(
            f"relative_attention_num_buckets in config.json is {config.relative_attention_num_buckets}, "
            f"and distances fall into {BUCKETS} buckets"
        )
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        attention_heads=config.num_attention_heads,
        embedding=config.hidden_size,
        vocabulary=config.vocab_size,
        positions=config.max_position_embeddings,
        first_position=PAD_ID + 1,
        token_types=0,
        task_types=0,
        pad_id=PAD_ID,
        activation=config.hidden_act,
        norm_eps=config.layer_norm_eps,
        dropout=config.hidden_dropout_prob,
        attention_dropout=config.attention_probs_dropout_prob,
        head_input_dropout=config.hidden_dropout_prob,
        head_dropout=config.hidden_dropout_prob,
        classes=config.num_labels,
        relative_buckets=config.relative_attention_num_buckets,
    )


MPNET = Family(
    read=read,
    prefix="mpnet",
    embeddings=EMBEDDINGS,
    layers="encoder.layer",
    layer=AFTER_ATTENTION
    | {
        "query_key_value": ("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        "attention_out": ("attention.attn.o",),
        "attention_norm": ("attention.LayerNorm",),
    },
    shared={"relative_bias": "encoder.relative_attention_bias"},
    head=IN_THE_CLASSIFIER,
    token_types=False,
)
