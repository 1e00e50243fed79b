"""Digests by which two models are the same: of their weights, from the files, and of documents.

A document lists its parts one by one. So a new field of some class changes no digest, which would make every output folder and
every calibration refuse to go on, unless it is listed because it decides predictions.
"""

import hashlib
import json
from collections.abc import Mapping

from models.directory.files import Name, weight_files

CHUNK_BYTES = 1 << 24


def weights_digest(name: Name) -> str:
    """Hash the weight files of a directory or hub id; equal files give equal hashes, by whatever name they are found.

    Raises FileNotFoundError if there are none, UnsupportedModelError if they are damaged.
    """
    digest = hashlib.blake2b(digest_size=8)
    for path in weight_files(name):
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def document_hash(document: Mapping[str, object]) -> str:
    """Hash a document, whatever the order of its keys."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
