"""The bearer token: where it is found, and the hash of it that is kept; `auth` checks it."""

import hashlib
import os
from pathlib import Path

from pipeline.errors import InputError

TOKEN_VARIABLE = "OFFRAMP_TOKEN"
"""Environment variable with the token."""


def hash_token(token: bytes) -> bytes:
    """Return the SHA-256 of a token: enough to compare, useless to whoever reads it out of a replica's settings."""
    return hashlib.sha256(token).digest()


def load_token_hash(file: str | None) -> bytes | None:
    """Return the hash of the token in a file, else in TOKEN_VARIABLE, else None; raise InputError for an empty file."""
    token = Path(file).read_text() if file else os.environ.get(TOKEN_VARIABLE, "")
    if file and not token.strip():
        raise InputError("token_file", f"{file}: is empty")
    return hash_token(token.strip().encode()) if token.strip() else None
