"""From a location to the storage that serves it."""

from pathlib import Path

from pipeline.storage.base import Storage, is_remote
from pipeline.storage.local import LocalStorage

_LOCAL = LocalStorage()


def storage_of(location: str) -> Storage:
    """Find who serves a location."""
    if not is_remote(location):
        return _LOCAL
    from pipeline.storage.s3 import S3Storage  # here: boto3 takes a while to load, and most runs are local

    return S3Storage()


def write_text(path: Path, text: str) -> None:
    """Replace a small file whole or not at all."""
    storage_of(str(path)).write(str(path), text.encode())
