"""The storage that serves a location."""

import os
from pathlib import Path

from pipeline.storage.base import Storage, is_remote
from pipeline.storage.local import LocalStorage

_LOCAL = LocalStorage()


def storage_of(location: str) -> Storage:
    """Return the storage that serves a location; raise UserError for a scheme that is not supported."""
    if not is_remote(location):
        return _LOCAL
    from pipeline.storage.s3 import S3Storage  # imported here because boto3 loads slowly and most runs are local

    return S3Storage()


def object_store_options(location: str) -> dict[str, str]:
    """Return how libraries in Rust are to reach a location as our own storage does; a disk takes no options.

    Raises RefusedError if there are no credentials for S3.
    """
    if not is_remote(location):
        return {}
    from pipeline.storage import s3

    return s3.object_store_options(location)


def use_endpoint(url: str | None) -> None:
    """Send all S3 requests of this process, and of those that it starts, to another server than Amazon's."""
    if url:
        os.environ["AWS_ENDPOINT_URL"] = url
        os.environ.pop("AWS_ENDPOINT_URL_S3", None)  # which would win


def write_text(path: Path, text: str) -> None:
    """Create or replace a small text file, whole or not at all."""
    storage_of(str(path)).write(str(path), text.encode())
