"""What each field of config.json does to predictions, by family: the source of docs/results/config-fields/README.md.

    python -m tests.support.config_fields     writes the table anew

Fields come from the installed transformers: those of the configuration classes, and those that its modeling and loading code
reads, found in the source. tests/models/test_config_fields.py sees that none is missing here, and tries the values.
"""

import ast
import dataclasses
import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.models import CONFIGS

README = Path(__file__).resolve().parents[2] / "docs" / "results" / "config-fields" / "README.md"
START, END = "<!-- table -->", "<!-- end of table -->"
HONOURED, REFUSED, NONE, TRAINING = "honoured", "refused", "no effect", "training"
POSITIONED = {"roberta", "xlm-roberta", "camembert"}
"""Families that number positions from the padding's id on."""


class Field(NamedTuple):
    """A field: what it does, in which families, and values to try that are not the default."""

    effect: str | Mapping[str, str]
    """By family where families differ; "" is every other one."""
    values: tuple[Any, ...]
    note: str = ""
    changes_shapes: bool = False
    """Whether the values make weights of other shapes, so that logits cannot be compared with the default's."""

    def effect_in(self, family: str) -> str:
        """Return what it does in a family."""
        return self.effect if isinstance(self.effect, str) else self.effect.get(family, self.effect[""])


ACTIVATIONS: tuple[str, ...] = (
    "gelu_new",
    "gelu_fast",
    "gelu_10",
    "gelu_python",
    "gelu_accurate",
    "gelu_pytorch_tanh",
    "quick_gelu",
)
ACTIVATIONS += ("relu", "relu2", "relu6", "silu", "swish", "mish", "tanh", "sigmoid", "linear", "leaky_relu", "laplace")
ACTIVATIONS += ("hardswish", "gelu_python_tanh", "sqrtsoftplus")

FIELDS: dict[str, Field] = {
    # Sizes and constants of the encoder
    "vocab_size": Field(HONOURED, (150,), changes_shapes=True),
    "hidden_size": Field(HONOURED, (24,), changes_shapes=True),
    "dim": Field(HONOURED, (24,), "DistilBERT's hidden_size", changes_shapes=True),
    "num_hidden_layers": Field(HONOURED, (1, 3), changes_shapes=True),
    "n_layers": Field(HONOURED, (1, 3), "DistilBERT's num_hidden_layers", changes_shapes=True),
    "num_attention_heads": Field(HONOURED, (1, 8), "has to divide hidden_size"),
    "n_heads": Field(HONOURED, (1, 8), "DistilBERT's num_attention_heads"),
    "intermediate_size": Field(HONOURED, (40,), changes_shapes=True),
    "hidden_dim": Field(HONOURED, (40,), "DistilBERT's intermediate_size", changes_shapes=True),
    "hidden_act": Field(HONOURED, ACTIVATIONS, "prelu and xielu, which have weights, and unknown names are refused"),
    "activation": Field(HONOURED, ACTIVATIONS, "DistilBERT's hidden_act"),
    "hidden_activation": Field(HONOURED, ACTIVATIONS, "ModernBERT's hidden_act"),
    "max_position_embeddings": Field(
        {"": HONOURED, "modernbert": NONE},
        (64, 80),
        "also the longest row, and in ModernBERT that alone",
        changes_shapes=True,
    ),
    "type_vocab_size": Field(HONOURED, (1, 3), changes_shapes=True),
    "layer_norm_eps": Field(HONOURED, (0.01, 0.5), "DistilBERT's is 1e-12 whatever config.json says"),
    "norm_eps": Field(HONOURED, (0.01, 0.5), "ModernBERT's layer_norm_eps"),
    "norm_bias": Field(HONOURED, (True,), changes_shapes=True),
    "attention_bias": Field(HONOURED, (True,), changes_shapes=True),
    "mlp_bias": Field(HONOURED, (True,), changes_shapes=True),
    "embedding_size": Field(
        {"": NONE, "electra": HONOURED, "deberta-v2": REFUSED},
        (8,),
        "in DeBERTa, other than hidden_size",
        changes_shapes=True,
    ),
    "pad_token_id": Field(
        {"": NONE, **dict.fromkeys(POSITIONED, HONOURED)},
        (0, 3, -1),
        "where positions are numbered after it; there null and less than -1 are refused",
    ),
    "relative_attention_num_buckets": Field(
        {"": NONE, "mpnet": HONOURED},
        (40,),
        "rows of MPNet's table: distances fall into 32 buckets whatever it says, so fewer are refused",
        changes_shapes=True,
    ),
    "local_attention": Field(HONOURED, (2, 7), "tokens of a window; less than 0 is refused"),
    "sliding_window": Field({"": NONE, "modernbert": HONOURED}, (2,), "half of local_attention"),
    "layer_types": Field(
        {"": NONE, "modernbert": HONOURED},
        (["sliding_attention"] * 4, ["full_attention"] * 4),
        "which layers have windows; other kinds are refused",
    ),
    "global_attn_every_n_layers": Field(
        {"": NONE, "modernbert": HONOURED}, (1, 2), "where layer_types is absent, as in old files"
    ),
    "rope_parameters": Field(
        {"": NONE, "modernbert": HONOURED},
        (
            {kind: {"rope_type": "default", "rope_theta": 7.0} for kind in ("full_attention", "sliding_attention")},
            {"full_attention": {"rope_theta": 9.0}},
        ),
        "bases of rotations; types other than 'default' are refused",
    ),
    "global_rope_theta": Field(
        {"": NONE, "modernbert": HONOURED}, (7.0,), "where rope_parameters is absent, as in old files"
    ),
    "local_rope_theta": Field(
        {"": NONE, "modernbert": HONOURED}, (7.0,), "where rope_parameters is absent, as in old files"
    ),
    "relative_attention": Field(HONOURED, (False,), changes_shapes=True),
    "pos_att_type": Field(HONOURED, (["c2p"], "p2c", None), "others than c2p and p2c do nothing, as in transformers"),
    "max_relative_positions": Field(HONOURED, (12, 30)),
    "position_biased_input": Field(HONOURED, (False,), changes_shapes=True),
    "position_buckets": Field(
        {"": NONE, "deberta-v2": HONOURED}, (-1, 16), "those that no scale has are refused", changes_shapes=True
    ),
    "share_att_key": Field({"": NONE, "deberta-v2": HONOURED}, (False,), changes_shapes=True),
    "norm_rel_ebd": Field({"": NONE, "deberta-v2": HONOURED}, ("none",), changes_shapes=True),
    "conv_kernel_size": Field(
        {"": NONE, "deberta-v2": HONOURED},
        (0, 5),
        "even ones are refused, as they fail in transformers",
        changes_shapes=True,
    ),
    "conv_groups": Field({"": NONE, "deberta-v2": HONOURED}, (2,), "has to divide hidden_size", changes_shapes=True),
    "conv_act": Field({"": NONE, "deberta-v2": HONOURED}, ("gelu", "relu")),
    "pooler_hidden_act": Field(HONOURED, ACTIVATIONS),
    "pooler_hidden_size": Field({"": NONE, "deberta-v2": REFUSED}, (16,), "other than hidden_size"),
    "attention_head_size": Field(
        {"": NONE, "deberta-v2": REFUSED}, (4,), "other than hidden_size / num_attention_heads"
    ),
    "head_dim": Field({"": NONE, "modernbert": REFUSED}, (4,), "other than hidden_size / num_attention_heads"),
    "classifier_pooling": Field(HONOURED, ("mean",)),
    "classifier_bias": Field(HONOURED, (True,), changes_shapes=True),
    "classifier_activation": Field(HONOURED, ACTIVATIONS),
    "use_task_id": Field({"ernie": HONOURED, "": NONE}, (False,), "adds the embedding of task 0", changes_shapes=True),
    "task_type_vocab_size": Field({"ernie": HONOURED, "": NONE}, (2,), changes_shapes=True),
    # Classes
    "id2label": Field(HONOURED, ({"0": "c", "1": "b", "2": "a"},), "gaps, doubles and blank names are refused"),
    "num_labels": Field(HONOURED, (3,), "where id2label is absent, or of another length"),
    "problem_type": Field(
        HONOURED,
        ("single_label_classification", "multi_label_classification"),
        "regression of several values is refused",
    ),
    "architectures": Field(
        NONE,
        (["BertModel"], None),
        "...ForTokenClassification, ...ForMultipleChoice and ...ForQuestionAnswering are refused",
    ),
    "label2id": Field(NONE, ({"LABEL_0": 2, "LABEL_1": 0, "LABEL_2": 1},), "id2label names the classes"),
    # What offramp does not compute
    "is_decoder": Field(REFUSED, (True,)),
    "add_cross_attention": Field(REFUSED, (True,)),
    "is_causal": Field(REFUSED, (True,), "no field of a class, but attention obeys it"),
    "position_embedding_type": Field(REFUSED, ("relative_key", "relative_key_query"), "transformers 5 passes over it"),
    "pruned_heads": Field(REFUSED, ({"0": [1]},), "transformers 5 passes over it"),
    "per_layer_config": Field(REFUSED, ({"1": {"num_attention_heads": 2}},)),
    "fusion_config": Field(REFUSED, ({"patch_embeddings": True},)),
    "quantization_config": Field(
        REFUSED, ({"quant_method": "bitsandbytes", "load_in_8bit": True}, {"quant_method": "gptq"})
    ),
    "auto_map": Field(
        {"": REFUSED},
        ({"AutoConfig": "mine.Config"}, {"AutoModelForSequenceClassification": "mine.Model"}),
        "of configurations and models; trust_remote_code is False, and nothing is asked",
    ),
    # How weights are stored and loaded
    "transformers_weights": Field(HONOURED, (None,), "the name of the safetensors file that is read, and hashed"),
    "dtype": Field(NONE, ("bfloat16", "float16"), "weights are read as they are stored, and computed in by --dtype"),
    "torch_dtype": Field(NONE, ("float16",), "as dtype"),
    "sinusoidal_pos_embds": Field(NONE, (True,), "the table is among the weights"),
    "tie_word_embeddings": Field(NONE, (False,), "there is no language head"),
    "tie_last_hidden_states": Field(NONE, (False,)),
    "initializer_range": Field(NONE, (0.5,)),
    "init_std": Field(NONE, (0.5,)),
    "initializer_factor": Field(NONE, (0.5,)),
    "initializer_cutoff_factor": Field(NONE, (1.0,)),
    # How the same is computed
    "chunk_size_feed_forward": Field(NONE, (1,)),
    "attn_implementation": Field(NONE, ("eager", "sdpa")),
    "experts_implementation": Field(NONE, ("eager",)),
    "gradient_checkpointing": Field(NONE, (True,)),
    "distributed_config": Field(NONE, (None,)),
    # Dropout
    "hidden_dropout_prob": Field(TRAINING, (0.3,)),
    "attention_probs_dropout_prob": Field(TRAINING, (0.3,)),
    "classifier_dropout": Field(TRAINING, (0.3,)),
    "dropout": Field(TRAINING, (0.3,)),
    "pooler_dropout": Field(TRAINING, (0.3,)),
    "cls_dropout": Field({"": NONE, "deberta-v2": TRAINING}, (0.3,)),
    "embedding_dropout": Field(TRAINING, (0.3,)),
    "mlp_dropout": Field(TRAINING, (0.3,)),
    "attention_dropout": Field(TRAINING, (0.3,)),
    "seq_classif_dropout": Field(TRAINING, (0.3,)),
    # Other tasks and outputs
    "summary_type": Field(NONE, ("mean",), "of other heads than the classifier"),
    "summary_use_proj": Field(NONE, (False,), "of other heads than the classifier"),
    "summary_activation": Field(NONE, ("relu",), "of other heads than the classifier"),
    "summary_last_dropout": Field(NONE, (0.5,), "of other heads than the classifier"),
    "qa_dropout": Field(NONE, (0.5,)),
    "legacy": Field(NONE, (False,), "of the language head"),
    "decoder_bias": Field(NONE, (False,)),
    "sparse_prediction": Field(NONE, (True,)),
    "sparse_pred_ignore_index": Field(NONE, (-1,)),
    "deterministic_flash_attn": Field(NONE, (True,)),
    "cls_token_id": Field(NONE, (3,), "the tokenizer puts special tokens"),
    "bos_token_id": Field(NONE, (3,), "the tokenizer puts special tokens"),
    "eos_token_id": Field(NONE, (4,), "the tokenizer puts special tokens"),
    "sep_token_id": Field(NONE, (4,), "the tokenizer puts special tokens"),
    "use_cache": Field(NONE, (True, False)),
    "is_encoder_decoder": Field(NONE, (True,)),
    "output_hidden_states": Field(NONE, (True,)),
    "output_attentions": Field(NONE, (True,)),
    "return_dict": Field(NONE, (False,)),
    "attention_chunk_size": Field(NONE, (2,), "of other families"),
    "transformers_version": Field(NONE, ("4.0.0",)),
}
"""Every field that a configuration of a supported family has, or that transformers reads of one."""
NOT_IN_JSON = {
    "_attn_implementation",
    "_attn_implementation_internal",
    "_experts_implementation",
    "_experts_implementation_internal",
    "_name_or_path",
    "base_model_pp_plan",
    "base_model_tp_plan",
    "get_text_config",
    "model_type",
    "name_or_path",
    "save_pretrained",
    "sub_configs",
}
"""What the loading code reads of a configuration that config.json does not set, or that chooses the family."""
LOADING = (
    "modeling_utils",
    "masking_utils",
    "quantizers.auto",
    "utils.generic",
    "utils.output_capturing",
    "core_model_loading",
)
"""Modules of transformers that read the configurations of all families."""
PREFIXES = {"bert": "Bert", "distilbert": "DistilBert", "xlm-roberta": "XLMRoberta"}
PREFIXES |= {"deberta-v2": "DebertaV2", "mpnet": "MPNet", "modernbert": "ModernBert"}
"""How names of classes of a family begin, where that is not its name with a capital."""


def class_fields(family: str) -> set[str]:
    """List the fields of a family's configuration class, those of its base class and its second names included."""
    config = type(CONFIGS[family])
    return {*(field.name for field in dataclasses.fields(config)), *config.attribute_map}


def effect_in(family: str, name: str) -> str:
    """Return what a field does in a family; one that only other families have does nothing, unless it is refused."""
    effect = FIELDS[name].effect_in(family)
    if not isinstance(FIELDS[name].effect, str) and family in FIELDS[name].effect:
        return effect
    foreign = name not in class_fields(family) and any(name in class_fields(other) for other in CONFIGS)
    return NONE if foreign and effect != REFUSED else effect


def read_by_modeling(family: str) -> set[str]:
    """List the fields that the code of a family's sequence classifier reads, over all classes that it is made of."""
    module = family.replace("-", "_")
    path = importlib.import_module(f"transformers.models.{module}.modeling_{module}").__file__
    tree = ast.parse(Path(str(path)).read_text(encoding="utf-8"))
    defined = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    left, seen = [f"{PREFIXES.get(family, family.capitalize())}ForSequenceClassification"], set[str]()
    while left:
        name = left.pop()
        if name in defined and name not in seen:
            seen.add(name)
            left += [node.id for node in ast.walk(defined[name]) if isinstance(node, ast.Name)]
    assert len(seen) > 7
    return {field for name in seen for field in _reads(defined[name])}


def read_by_loading() -> set[str]:
    """List the fields that the code reads which loads and runs models of all families."""
    paths = [str(importlib.import_module(f"transformers.{name}").__file__) for name in LOADING]
    found = {field for path in paths for field in _reads(ast.parse(Path(path).read_text(encoding="utf-8")))}
    assert len(found) > 15
    return found


def _reads(tree: ast.AST) -> Iterable[str]:
    """Yield the attributes that code reads of `config` or `self.config`, also by getattr and hasattr."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_config(node.value) and not node.attr.startswith("__"):
            yield node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            name = node.args[1]
            if _is_config(node.args[0]) and isinstance(name, ast.Constant):
                yield str(name.value)


def _is_config(node: ast.AST) -> bool:
    return (isinstance(node, ast.Name) and node.id == "config") or (
        isinstance(node, ast.Attribute) and node.attr == "config"
    )


def table() -> str:
    """Lay the fields out in Markdown, a column for each family."""
    families = sorted(CONFIGS)
    lines = [f"| field | {' | '.join(families)} | |", "|" + " --- |" * (len(families) + 2)]
    for name, field in FIELDS.items():
        cells = [effect_in(family, name) for family in families]
        lines.append(f"| `{name}` | {' | '.join(cells)} | {field.note} |")
    return "\n".join(lines)


def written() -> tuple[str, str, str]:
    """Return the README as what stands before the table, the table, and what stands behind it."""
    before, rest = README.read_text(encoding="utf-8").split(START)
    inside, after = rest.split(END)
    return before, inside, after


if __name__ == "__main__":
    head, _, tail = written()
    README.write_text(f"{head}{START}\n\n{table()}\n{END}{tail}", encoding="utf-8")
