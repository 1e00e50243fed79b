"""Turn texts into flat token ids, without special tokens."""

from array import array
from typing import Protocol

import numpy as np
import tokenizers

from pipeline.corpus.ragged import Ragged


class Encoder(Protocol):
    """Turns texts into token ids."""

    def encode(self, texts: list[str]) -> Ragged:
        """Return the token ids of B texts, without special tokens and without truncation."""
        ...


class HuggingFaceEncoder:
    """Encodes with `tokenizers`: in Rust, on all cores, or on one if the environment has TOKENIZERS_PARALLELISM=false."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        """Encode by this tokenizer, which neither pads nor truncates."""
        self._tokenizer = tokenizer

    def encode(self, texts: list[str]) -> Ragged:
        """Return the token ids of B texts, without special tokens and without truncation."""
        ids, lengths = array("i"), array("q")
        for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            tokens = encoding.ids
            ids.fromlist(tokens)
            lengths.append(len(tokens))
        return Ragged(ids=np.array(ids, np.int32), lengths=np.array(lengths, np.int64))
