"""Tokenizers of the three kinds that encoders have, trained here, and pieces of text on which they differ."""

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from pipeline.benchmark.synthetic import reviews
from tests.support.models import wordpiece_tokenizer

TEXTS = [review.text for review in reviews(400, seed=3)]
PIECES = [
    *"abc",
    "room ",
    "the ",
    "clean",
    "[SEP]",
    "[MASK] ",
    "<s>",
    "</s> ",
    "é",
    "\u0301",
    "中",
    "文 ",
    "😀",
    ". ",
    "\n",
]
PIECES += ["  ", "\t", "x" * 130, "don't ", "3.14 ", "\u00a0", "\u200b", "ﬁ", "---", "#", "not"]


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """RoBERTa's kind: byte-level BPE, special tokens <s> A </s></s> B </s>."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", model_max_length=64)


def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """XLM-R's kind: SentencePiece unigrams over white-space words."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", model_max_length=64)


TOKENIZERS = {
    "wordpiece": wordpiece_tokenizer(TEXTS),
    "byte-level": byte_level_tokenizer(),
    "unigram": unigram_tokenizer(),
}
