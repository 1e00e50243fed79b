"""Turn texts into flat token ids, without special tokens.

    HuggingFaceEncoder    by `tokenizers`: any tokenizer; what its ids are is right by definition
    NanotokenEncoder      by nanotoken: WordPiece alone, at a small part of the time
    CheckedEncoder        by nanotoken, for as long as its ids are those of `tokenizers`

nanotoken is a young library, so it is compared on texts made to be difficult when it is built, and on a sample of all others.
"""

import random
import sys
from array import array
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Protocol

import numpy as np
import tokenizers

from pipeline.corpus.probes import probe_texts
from pipeline.corpus.ragged import Ragged
from pipeline.errors import InputError, UserError, is_failure, one_line, require

REFERENCE = f"tokenizers {tokenizers.__version__}"
"""What the right ids are those of."""
ENCODINGS = 1024
"""Texts whose encodings, some kB each, `tokenizers` holds at a time: 3 % faster than 16,384 (docs/results/speed)."""
ENCODED_CHARACTERS = 1 << 22
"""Characters of those texts, at most: more than of texts of 4 kB each, so that only windows of long ones come to it."""
CHECK_EVERY = 1000
"""One of so many rows of a batch is encoded by the reference, too, and one of fewer: 0.1 % of what that takes for all."""
CACHE_ENTRIES = 1 << 16
"""Words that nanotoken remembers: as fast as with its own 1 << 20 (docs/results/speed), in 8 MiB instead of 130."""
WITHOUT = "run without the option"
"""What to do where nanotoken cannot be used."""


class Encoder(Protocol):
    """Turns texts into token ids."""

    @property
    def whole_windows(self) -> int:
        """Windows of a long text up to which encoding all of it costs no more than finding out what of it is needed."""
        ...

    def encode(self, texts: Sequence[str]) -> Ragged:
        """Return the token ids of B texts, without special tokens and without truncation."""
        ...


class HuggingFaceEncoder:
    """Encodes with `tokenizers`: in Rust, on all cores, or on one if the environment has TOKENIZERS_PARALLELISM=false."""

    whole_windows = 1

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        """Encode by this tokenizer, which neither pads nor truncates."""
        self._tokenizer = tokenizer

    def encode(self, texts: Sequence[str]) -> Ragged:
        """Return the token ids of B texts, without special tokens and without truncation."""
        ids, lengths = array("i"), array("q")
        for part in parts_of(texts):
            for encoding in self._tokenizer.encode_batch_fast(part, add_special_tokens=False):
                tokens = encoding.ids
                ids.fromlist(tokens)
                lengths.append(len(tokens))
        return Ragged(ids=np.array(ids, np.int32), lengths=np.array(lengths, np.int64))


def parts_of(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Cut texts into runs of at most ENCODINGS, and of ENCODED_CHARACTERS; a longer text is by itself."""
    start = characters = 0
    for end, text in enumerate(texts):
        if end > start and (end - start == ENCODINGS or characters + len(text) > ENCODED_CHARACTERS):
            yield texts[start:end]
            start, characters = end, 0
        characters += len(text)
    if len(texts) > start:
        yield texts[start:]


class NanotokenEncoder:
    """Encodes with nanotoken, on one thread."""

    whole_windows = 8

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        """Encode as this tokenizer does; raise a UserError if nanotoken is not installed or does not.

        That is found out on texts which are difficult to tokenize, such as those with special tokens in them.
        """
        require("nanotoken", extra="fast-tokenizer")
        import nanotoken

        kind = type(tokenizer.model).__name__
        if kind != "WordPiece":
            raise InputError("fast_tokenizer", f"is for WordPiece, and this model's is {kind}; {WITHOUT}")
        self.name = f"nanotoken {version('nanotoken')}"
        nanotoken.set_cache_entries(CACHE_ENTRIES)
        try:
            self._tokenizer = nanotoken.WordPieceTokenizer.from_json(tokenizer.to_str())
        except nanotoken.UnsupportedTokenizerError as error:
            raise InputError("fast_tokenizer", f"{self.name}: {one_line(error)}; {WITHOUT}") from error
        probes = probe_texts(tokenizer)
        if self.encode(probes) != HuggingFaceEncoder(tokenizer).encode(probes):
            raise InputError("fast_tokenizer", f"{self.name} gives other ids than {REFERENCE}; {WITHOUT}")

    def encode(self, texts: Sequence[str]) -> Ragged:
        """Return the token ids of B texts, without special tokens and without truncation."""
        ids, offsets = self._tokenizer.encode_batch(texts, add_special_tokens=False, parallel=False)
        return Ragged(ids=ids.view(np.int32), lengths=np.diff(offsets))


class CheckedEncoder:
    """Encodes with nanotoken until it differs from the reference in a row of the sample, or fails; with the reference then.

    The batch in which it differs is encoded again, and one line on stderr says so.
    """

    def __init__(self, fast: NanotokenEncoder, reference: HuggingFaceEncoder) -> None:
        self._fast: NanotokenEncoder | None = fast
        self._reference = reference
        self._random = random.Random(0)

    @property
    def whole_windows(self) -> int:
        """Windows of a long text up to which encoding all of it costs no more than finding out what of it is needed."""
        return (self._fast or self._reference).whole_windows

    def encode(self, texts: Sequence[str]) -> Ragged:
        """Return the token ids of B texts, without special tokens and without truncation."""
        if self._fast is None:
            return self._reference.encode(texts)
        try:
            tokens = self._fast.encode(texts)
        except BaseException as error:
            if not is_failure(error):
                raise
            problem = f"fails ({one_line(error, with_type=True, limit=200)})"
        else:
            sample = self._random.sample(range(len(texts)), -(-len(texts) // CHECK_EVERY))
            if tokens.take(np.array(sample, np.int64)) == self._reference.encode([texts[row] for row in sample]):
                return tokens
            problem = f"gives other ids than {REFERENCE}"
        print(f"{self._fast.name} {problem}; {REFERENCE} goes on in its place", file=sys.stderr, flush=True)
        self._fast = None
        return self._reference.encode(texts)


def encoder_of(tokenizer: tokenizers.Tokenizer, fast: str | None) -> Encoder:
    """Return the encoder of a tokenizer, which is a fast one if library and version are given, such as "nanotoken 0.1.0".

    If this machine has no such library or it does not fit, one line on stderr says so, and the encoder is that of `tokenizers`.
    """
    reference = HuggingFaceEncoder(tokenizer)
    if fast is None:
        return reference
    try:
        encoder = NanotokenEncoder(tokenizer)
        if encoder.name != fast:
            raise InputError("fast_tokenizer", f"is {encoder.name} on this machine, and was {fast} where the run began")
    except UserError as error:
        print(f"{one_line(error)}; {REFERENCE} goes on in its place", file=sys.stderr, flush=True)
        return reference
    return CheckedEncoder(encoder, reference)


def plain_tokenizer(tokenizer_json: str) -> tokenizers.Tokenizer:
    """Load a tokenizer that neither pads nor truncates, whatever its file says."""
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
