"""BERT and its line: BERT, ERNIE, RoBERTa, XLM-R, CamemBERT, ELECTRA and DistilBERT.

All are the same post-LayerNorm encoder over tables of words, positions and token types (Devlin et al. 2019), under different
names of parameters and of fields.
"""

from typing import TYPE_CHECKING

from models.families.names import Family
from models.families.shape import Shape

if TYPE_CHECKING:
    from transformers import PretrainedConfig

EMBEDDINGS = {
    "word_embeddings": "embeddings.word_embeddings",
    "position_embeddings": "embeddings.position_embeddings",
    "token_type_embeddings": "embeddings.token_type_embeddings",
    "task_type_embeddings": "embeddings.task_type_embeddings",
    "norm": "embeddings.LayerNorm",
    "project": "embeddings_project",
}
"""Where the modules of the embeddings are in a checkpoint, in this line and in some others."""
AFTER_ATTENTION = {
    "ffn.expand": ("intermediate.dense",),
    "ffn.contract": ("output.dense",),
    "ffn_norm": ("output.LayerNorm",),
}
"""Where a layer's feed-forward block is, in this line and in some others."""
_BERT_LAYER = AFTER_ATTENTION | {
    "query_key_value": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention_out": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
}
_DISTILBERT_LAYER = {
    "query_key_value": ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    "attention_out": ("attention.out_lin",),
    "attention_norm": ("sa_layer_norm",),
    "ffn.expand": ("ffn.lin1",),
    "ffn.contract": ("ffn.lin2",),
    "ffn_norm": ("output_layer_norm",),
}
IN_THE_CLASSIFIER = {"dense": "classifier.dense", "out": "classifier.out_proj"}
"""Where the last head is in RoBERTa's line, in ELECTRA and in MPNet."""


def read(config: "PretrainedConfig") -> Shape:
    """Read the sizes of BERT, ERNIE or a model of RoBERTa's line.

    A field that another family has means nothing in this one, as in transformers.
    """
    offset, ernie = config.model_type in ("roberta", "xlm-roberta", "camembert"), config.model_type == "ernie"
    pad_id = config.pad_token_id if config.pad_token_id is not None else 0
    dropped = config.classifier_dropout
    head_dropout = config.hidden_dropout_prob if dropped is None else float(dropped)
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        attention_heads=config.num_attention_heads,
        embedding=config.embedding_size if config.model_type == "electra" else config.hidden_size,
        vocabulary=config.vocab_size,
        positions=config.max_position_embeddings,
        first_position=pad_id + 1 if offset else 0,
        token_types=config.type_vocab_size,
        task_types=config.task_type_vocab_size if ernie and config.use_task_id else 0,
        pad_id=pad_id,
        activation=config.hidden_act,
        norm_eps=config.layer_norm_eps,
        dropout=config.hidden_dropout_prob,
        attention_dropout=config.attention_probs_dropout_prob,
        head_input_dropout=head_dropout if offset or config.model_type == "electra" else 0.0,
        head_dropout=head_dropout,
        classes=config.num_labels,
    )


def read_distilbert(config: "PretrainedConfig") -> Shape:
    """Read the sizes of DistilBERT, which has names of its own for many and no token types."""
    dropped = config.seq_classif_dropout
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.hidden_dim,
        attention_heads=config.num_attention_heads,
        embedding=config.hidden_size,
        vocabulary=config.vocab_size,
        positions=config.max_position_embeddings,
        first_position=0,
        token_types=0,
        task_types=0,
        pad_id=config.pad_token_id if config.pad_token_id is not None else 0,
        activation=config.activation,
        norm_eps=1e-12,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        head_dropout=config.dropout if dropped is None else float(dropped),
        classes=config.num_labels,
    )


def _bert_like(prefix: str) -> Family:
    return Family(
        read=read,
        prefix=prefix,
        embeddings=EMBEDDINGS,
        layers="encoder.layer",
        layer=_BERT_LAYER,
        head={"dense": f"{prefix}.pooler.dense", "out": "classifier"},
    )


def _roberta_like() -> Family:
    return Family(
        read=read,
        prefix="roberta",
        embeddings=EMBEDDINGS,
        layers="encoder.layer",
        layer=_BERT_LAYER,
        head=IN_THE_CLASSIFIER,
        position_offset=True,
    )


BERT, ERNIE, ROBERTA = _bert_like("bert"), _bert_like("ernie"), _roberta_like()
ELECTRA = Family(
    read=read,
    prefix="electra",
    embeddings=EMBEDDINGS,
    layers="encoder.layer",
    layer=_BERT_LAYER,
    head=IN_THE_CLASSIFIER,
    head_activation="gelu",
)
DISTILBERT = Family(
    read=read_distilbert,
    prefix="distilbert",
    embeddings=EMBEDDINGS,
    layers="transformer.layer",
    layer=_DISTILBERT_LAYER,
    head={"dense": "pre_classifier", "out": "classifier"},
    head_activation="relu",
    token_types=False,
)
