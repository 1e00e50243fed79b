"""The bearer token: where it is found, and the hash of it that is kept; `auth` checks it."""

import hashlib
import os
from pathlib import Path

from pipeline.errors import InputError, UserError, one_line

TOKEN_VARIABLE = "OFFRAMP_TOKEN"
"""Environment variable with the token."""


def hash_token(token: bytes) -> bytes:
    """Return the SHA-256 of a token: enough to compare, useless to whoever reads it out of a replica's settings."""
    return hashlib.sha256(token).digest()


def load_token_hash(file: str | None) -> bytes | None:
    """Return the hash of the token in a file, else in TOKEN_VARIABLE, else None.

    Raises UserError for a token that is there and blank, which a secret that was lost looks like, or that cannot be read.
    """
    try:
        token = Path(file).read_text(encoding="utf-8") if file else os.environ.get(TOKEN_VARIABLE)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("token_file", f"{file}: {one_line(error)}") from error
    if token is None:
        return None
    if not token.strip():
        raise (
            InputError("token_file", f"{file}: is empty")
            if file
            else UserError(f"{TOKEN_VARIABLE} is set and blank; unset it to serve without a token")
        )
    return hash_token(token.strip().encode())
