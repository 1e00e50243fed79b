"""Load the tokenizer of a model directory or hub id, and see that it is the model's."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from models.directory.files import find_file, read_json
from models.early_exit import EarlyExitModel
from models.hugging_face import quiet_transformers
from pipeline.corpus.tokenize import TokenizerSpec
from pipeline.errors import InputError, UserError, one_line

TOKENIZER_FILE, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
SENTENCEPIECE_FILES = ("sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model")
"""Files that transformers reads by sentencepiece where there is no tokenizer.json, and by tiktoken, in vain, without it."""
VOCABULARY_FILES = (TOKENIZER_FILE, "vocab.txt", "vocab.json", *SENTENCEPIECE_FILES)
"""Files of which a tokenizer has at least one."""
REASON_CHARACTERS = 160
"""Characters that are passed on of what a library says of a tokenizer that it cannot load."""
FEWEST_TOKENS = 0.5
"""Least number of a tokenizer's tokens, as a fraction of the model's. Tables are padded by some percent at most; what
transformers makes up where files are missing has some five tokens."""


def load_tokenizer_spec(name: str, model: EarlyExitModel, max_tokens: int | None = None) -> TokenizerSpec:
    """Load the tokenizer that belongs to a model; raise InputError if it has none to use, or reads fewer tokens."""
    limit = model.shape.max_tokens
    if max_tokens is not None and max_tokens > limit:
        raise InputError("max_tokens", f"{max_tokens}: the model takes {limit} tokens at most")
    tokenizer = load_tokenizer(name)
    _check_vocabulary(name, tokenizer, model.shape.vocabulary)
    try:
        return TokenizerSpec.from_hugging_face(tokenizer, max_tokens or min(limit, int(tokenizer.model_max_length)))
    except (TypeError, ValueError) as error:
        raise _no_tokenizer(name, one_line(error)) from error


def load_tokenizer(name: str) -> Any:
    """Load transformers' tokenizer of a directory or hub id; raise InputError if its files are missing or damaged.

    Where there are no files transformers makes up a tokenizer of a few special tokens, to which every word is unknown.
    """
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # `tokenizers` raises Exception itself, and each kind of file fails in a way of its own
        raise _no_tokenizer(name, _cause(name, error)) from error
    files = [TOKENIZER_FILE, *getattr(tokenizer, "vocab_files_names", {}).values()]
    if Path(name).is_dir() and not _has_any(name, files):
        looked_for = ", ".join(dict.fromkeys(files))
        raise _no_tokenizer(name, f"there are no files of one, such as {looked_for}; save it there beside the model")
    if _has_any(name, [TOKENIZER_CONFIG]) and _own_code(name):
        raise _no_tokenizer(name, "it is code of its own (auto_map), which offramp does not run")
    return tokenizer


def _own_code(name: str) -> bool:
    """Return whether tokenizer_config.json names code that makes the tokenizer, which transformers passes over in silence."""
    named = read_json(name, TOKENIZER_CONFIG).get("auto_map")
    return bool(named) and (not isinstance(named, dict) or "AutoTokenizer" in named)


def _has_any(name: str, files: Sequence[str]) -> bool:
    """Return whether any of these files is there; raise InputError if one is empty, or a pointer of git-lfs."""
    found = []
    for file in files:
        try:
            found.append(find_file(name, file))
        except OSError:
            continue
        except UserError as error:
            raise InputError("model", str(error)) from error
    return bool(found)


def _check_vocabulary(name: str, tokenizer: Any, rows: int) -> None:
    """Raise InputError unless the ids of a tokenizer fit a model with so many rows in its table of words."""
    ids = tokenizer.get_vocab().values()
    known, highest = len(ids), max(ids, default=0)
    if highest >= rows:
        raise _no_tokenizer(
            name, f"it has ids up to {highest:,}, and the model knows {rows:,} tokens: it is another model's"
        )
    if known < FEWEST_TOKENS * rows:
        raise _no_tokenizer(
            name,
            f"it knows {known:,} tokens, and the model {rows:,}: its files are missing, damaged, or another model's",
        )


def _cause(name: str, error: Exception) -> str:
    """Say on one line why a tokenizer cannot be loaded; raise InputError for a file of it that is damaged."""
    if Path(name).is_dir() and not _has_any(name, VOCABULARY_FILES):
        return f"there are no files of one, such as {', '.join(VOCABULARY_FILES[:2])}; save it there beside the model"
    for file in (TOKENIZER_FILE, TOKENIZER_CONFIG):
        try:
            read_json(name, file)
        except OSError:
            continue
        except UserError as damage:
            raise InputError("model", str(damage)) from error
    if find_spec("sentencepiece") is None and not _has_any(name, [TOKENIZER_FILE]):
        for file in SENTENCEPIECE_FILES:
            if _has_any(name, [file]):
                return f"{file} needs the package sentencepiece, which is not installed; or save it as {TOKENIZER_FILE}"
    return one_line(error, with_type=not isinstance(error, OSError | ValueError | ImportError), limit=REASON_CHARACTERS)


def _no_tokenizer(name: str, why: str) -> InputError:
    return InputError("model", f"{name}: no usable tokenizer: {why}")
