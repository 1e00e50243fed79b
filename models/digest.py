"""Hash the weights of a checkpoint from its files, without loading it."""

import hashlib
import json
import os
from pathlib import Path

CHUNK_BYTES = 1 << 24
KINDS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Names of weight files, in the order in which transformers looks for them."""


def weights_digest(name: str | os.PathLike[str]) -> str:
    """Hash the weight files of a directory or hub id; equal files give equal hashes, by whatever name they are found.

    Raises FileNotFoundError if there are none.
    """
    digest = hashlib.blake2b(digest_size=8)
    for path in weight_files(name):
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def weight_files(name: str | os.PathLike[str]) -> list[Path]:
    """List the weight files that transformers would load of a directory or hub id; raise FileNotFoundError without any."""
    name = str(name)
    for kind in KINDS:
        try:
            found = _find(name, kind)
        except OSError:
            continue
        if not kind.endswith(".json"):
            return [found]
        parts = sorted(set(json.loads(found.read_text(encoding="utf-8"))["weight_map"].values()))
        return [_find(name, part) for part in parts]
    raise FileNotFoundError(f"{name}: no weights there; looked for {', '.join(KINDS)}")


def _find(name: str, file: str) -> Path:
    """Find a file of a directory or hub id; raise OSError if there is none."""
    if (path := Path(name) / file).is_file():
        return path
    from transformers.utils import cached_file  # takes the better part of a second, which a directory does without

    return Path(cached_file(name, file))
