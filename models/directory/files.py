"""The files of a model in a directory or in the hub's cache, and the check that they are what their names say.

A clone without git-lfs has pointers of three lines in place of large files, and a download that broke off leaves empty or short
ones. All of them are named here in one line, before any library gets to see them.
"""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from models.errors import UnsupportedModelError

CONFIG_FILE = "config.json"
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Names of weight files, in the order in which transformers looks for them."""
INDEX = ".index.json"
"""End of the name of a file that lists the parts of weights."""
POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that stands for another one in git-lfs."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "bpe.codes",
    "spm.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""Names under which transformers saves the tokenizers of the families that offramp runs."""

Name = str | os.PathLike[str]
"""A directory or a hub id."""


def find_file(name: Name, file: str) -> Path:
    """Find a file of a directory or hub id.

    Raises FileNotFoundError if there is none, another OSError if the hub cannot be asked, UnsupportedModelError if it is a
    pointer or empty.
    """
    path = Path(name) / file
    if not path.is_file():
        if Path(name).is_dir():
            raise FileNotFoundError(f"{name}: no {file} there")
        from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache
        from transformers.utils import cached_file  # takes the better part of a second, which a directory does without

        try:
            path = Path(cached_file(str(name), file))
        except OSError as error:
            with contextlib.suppress(ValueError):  # of a name that can be no hub's
                # The hub has answered that there is none.
                if try_to_load_from_cache(str(name), file) is _CACHED_NO_EXIST:
                    raise FileNotFoundError(f"{name}: no {file} there") from error
            raise
    with open(path, "rb") as content:
        start = content.read(len(POINTER))
    if start == POINTER:
        raise UnsupportedModelError(
            f"{name}: {file} is a pointer of git-lfs and not the file; fetch it by `git lfs pull`"
        )
    if not start:
        raise UnsupportedModelError(f"{name}: {file} is empty")
    return path


def read_json(name: Name, file: str) -> dict[str, Any]:
    """Read a JSON object of a model; raise OSError if the file is missing, UnsupportedModelError if it holds anything else."""
    path = find_file(name, file)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnsupportedModelError(f"{name}: {file} is damaged, it is no JSON in UTF-8: {error}") from error
    if not isinstance(values, dict):
        raise UnsupportedModelError(f"{name}: {file} holds no JSON object")
    return values


def weight_files(name: Name) -> list[Path]:
    """List the weight files that transformers would load of a directory or hub id.

    config.json may name another file than the usual ones (`transformers_weights`). Raises FileNotFoundError if there are no
    weights, UnsupportedModelError if a file is missing of several, or is not what it should be.
    """
    named = _named_weights(name)
    for file in WEIGHT_FILES if named is None else (named,):
        try:
            found = find_file(name, file)
        except OSError:
            continue
        return _parts(name, file) if file.endswith(INDEX) else [found]
    looked_for = ", ".join(WEIGHT_FILES) if named is None else f"{named}, which config.json names"
    raise FileNotFoundError(f"{name}: no weights there; looked for {looked_for}")


def model_files(directory: Name) -> list[str]:
    """List the files of a directory that are the model: its config, its weights and its tokenizer; raise as `weight_files`."""
    weights = weight_files(directory)
    lists = [path.name for path in Path(directory).glob(f"*{INDEX}")] if len(weights) > 1 else []
    tokenizer = [name for name in TOKENIZER_FILES if (Path(directory) / name).is_file()]
    return [CONFIG_FILE, *(os.path.relpath(path, directory) for path in weights), *lists, *tokenizer]


def _named_weights(name: Name) -> str | None:
    """Return the weight file that config.json names, if it does."""
    try:
        named = read_json(name, CONFIG_FILE).get("transformers_weights")
    except OSError:
        return None
    if named is None:
        return None
    if not _is_inside(named) or not str(named).endswith((".safetensors", f".safetensors{INDEX}")):
        raise UnsupportedModelError(
            f"{name}: config.json names '{named}' for its weights, which is no safetensors file there"
        )
    return str(named)


def _parts(name: Name, index: str) -> list[Path]:
    """List the files that an index names, each once."""
    parts = read_json(name, index).get("weight_map")
    if not isinstance(parts, dict) or not parts or not all(map(_is_inside, parts.values())):
        raise UnsupportedModelError(f"{name}: {index} lists no files")
    try:
        return [find_file(name, part) for part in sorted(set(parts.values()))]
    except OSError as error:
        raise UnsupportedModelError(f"{name}: {index} lists files that are not all there: {error}") from error


def _is_inside(file: object) -> bool:
    """Return whether this is the name of a file inside a model's directory."""
    return isinstance(file, str) and bool(file) and not Path(file).is_absolute() and ".." not in Path(file).parts
