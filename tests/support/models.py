"""Tiny random models of every family, and a tokenizer trained here."""

import copy
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    CamembertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ErnieConfig,
    ModernBertConfig,
    MPNetConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    XLMRobertaConfig,
)

from models.early_exit import EarlyExitModel
from pipeline.benchmark.synthetic import CLASSES
from pipeline.rows import TokenRows

Model = TypeVar("Model", bound=torch.nn.Module)

SIZES = {"vocab_size": 200, "max_position_embeddings": 70, "num_labels": 3}
BERT_SIZES = SIZES | {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
SPECIAL_IDS = {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
"""Ids in so small a vocabulary; ModernBERT's own are beyond it."""
CONFIGS: dict[str, PretrainedConfig] = {
    "bert": BertConfig(**BERT_SIZES),
    "roberta": RobertaConfig(**BERT_SIZES),
    "xlm-roberta": XLMRobertaConfig(**BERT_SIZES),
    "camembert": CamembertConfig(**BERT_SIZES),
    "electra": ElectraConfig(**BERT_SIZES, embedding_size=16),
    "ernie": ErnieConfig(**BERT_SIZES, use_task_id=True),
    "distilbert": DistilBertConfig(**SIZES, dim=32, n_layers=4, n_heads=4, hidden_dim=48),
    "mpnet": MPNetConfig(**BERT_SIZES),
    "deberta-v2": DebertaV2Config(
        **BERT_SIZES,
        type_vocab_size=2,
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
        share_att_key=True,
        position_buckets=8,
        norm_rel_ebd="layer_norm",
        conv_kernel_size=3,
    ),
    "modernbert": ModernBertConfig(**BERT_SIZES, **SPECIAL_IDS, local_attention=16),
}


def random_classifier(family: str, seed: int = 0) -> PreTrainedModel:
    """Make a classifier by transformers alone, with weights large enough that logits differ between rows."""
    torch.manual_seed(seed)
    return spread_weights(AutoModelForSequenceClassification.from_config(copy.deepcopy(CONFIGS[family]))).eval()


def spread_weights(model: Model) -> Model:
    """Draw weights wide enough that rows get different predictions; LayerNorms stay near the identity."""
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name.lower() and "weight" in name), std=0.3)
    return model


def random_exits(model: EarlyExitModel, kind: str, seed: int = 0) -> EarlyExitModel:
    """Put random heads on the lower layers, spread enough that every exit takes some rows."""
    torch.manual_seed(seed)
    model.add_exits(kind)
    for layer in model.exit_layers[:-1]:
        spread_weights(model.exits[str(layer)])
    if model.lte is not None:
        spread_weights(model.lte)
    return model.eval()


def random_rows(count: int, longest: int, seed: int, *, pairs: bool = False) -> TokenRows:
    """Rows of random ids (0 and 1, which are pad ids of some family, among them) and random lengths."""
    random = np.random.default_rng(seed)
    rows = [random.integers(0, 200, random.integers(1, longest + 1)).tolist() for _ in range(count)]
    return TokenRows.from_lists(rows, [int(random.integers(1, len(row) + 1)) for row in rows] if pairs else None)


def wordpiece_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Make a BERT-like tokenizer of the characters and words of these texts; trainers of `tokenizers` break ties at random."""
    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    counts = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    characters = sorted({character for word in counts for character in word})
    pieces = [*characters, *(f"##{character}" for character in characters)]
    words = sorted((word for word in counts if len(word) > 1), key=lambda word: (-counts[word], word))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces, *words][:200]
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def save_tiny_model(directory: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Save an early-exit model with random weights and two classes, complete with its tokenizer."""
    config = BertConfig(**(BERT_SIZES | {"num_labels": 2}), id2label=dict(enumerate(CLASSES)))
    torch.manual_seed(0)
    plain = directory / "plain"
    spread_weights(AutoModelForSequenceClassification.from_config(config)).save_pretrained(plain)
    random_exits(EarlyExitModel.from_pretrained(plain), "pooled").save_pretrained(directory)
    shutil.rmtree(plain)
    tokenizer.save_pretrained(directory)
    return directory


TOLERANCE = 1e-4
"""Packing changes matrix shapes, hence the order of sums: results agree to fp32 rounding, not to the bit."""


def new_model(kind: str = "pooled") -> EarlyExitModel:
    torch.manual_seed(0)
    return random_exits(spread_weights(EarlyExitModel(CONFIGS["bert"])), kind)


def regression_model() -> EarlyExitModel:
    torch.manual_seed(0)
    config = BertConfig(**(BERT_SIZES | {"num_labels": 1}))
    return random_exits(spread_weights(EarlyExitModel(config)), "pooled")


TAGS = ["clean", "staff", "price", "noise", "view"]


def label_set_classifier(family: str = "bert", labels: Sequence[str] = TAGS) -> PreTrainedModel:
    """Make a multi-label classifier by transformers alone, whose logits lie on both sides of 0."""
    torch.manual_seed(0)
    config = copy.deepcopy(CONFIGS[family])
    config.problem_type, config.num_labels = "multi_label_classification", len(labels)
    config.id2label, config.label2id = dict(enumerate(labels)), {label: index for index, label in enumerate(labels)}
    return spread_weights(AutoModelForSequenceClassification.from_config(config)).eval()


def label_set_model(directory: Path, kind: str = "pooled") -> EarlyExitModel:
    """Save a multi-label model with random exits in a directory, and load it."""
    label_set_classifier().save_pretrained(directory)
    random_exits(EarlyExitModel.from_pretrained(directory), kind).save_pretrained(directory)
    return EarlyExitModel.from_pretrained(directory)
