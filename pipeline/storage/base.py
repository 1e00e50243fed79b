"""The interface that disks and S3 share: whole files in and out, and listings with versions.

A location is a string, an absolute path or an s3:// address, and `storage_of` returns the storage that serves it. Files appear
whole or not at all: by a rename on disks, by a single put on S3. A failure is a StorageError that names path and cause.
"""

import contextlib
import errno
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import nan
from typing import BinaryIO, Protocol

from pipeline.errors import RefusedError, StorageError, UserError, one_line, printable

S3_SCHEME = "s3://"
REFUSED_ERRNOS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR}
REFUSED_ERRNOS |= {errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}
"""Errors of a disk that works but refuses the request; every other one is the disk's own failure."""
MAX_PATH = 1100
"""Characters of a path in a message, so that the cause after it is seen: a key of S3 has 1,024 bytes at most."""
LOCAL_BUFFER_BYTES, REMOTE_BUFFER_BYTES = 1 << 20, 8 << 20
"""Bytes to read at once; a request to S3 takes some 50 ms however little it returns."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a listing, such as `Entry("s3://bucket/a.csv", 1024, "9bb58f26192e4ba00f01e2e7b136bbd8", 1.8e9)`."""

    path: str
    size: int
    """Bytes."""
    version: str
    """Time of modification in ns since the epoch, or ETag; another version means other content."""
    modified: float = field(default=nan, compare=False)
    """Time of modification in seconds since the epoch, by the storage's clock; NaN where it is not known."""


class RawFile(Protocol):
    """An open file of a disk, or of S3."""

    def readinto(self, buffer: memoryview, /) -> int | None: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def tell(self) -> int: ...
    def close(self) -> None: ...


class StoredFile(io.RawIOBase):
    """A file open for reading.

    A read that fails raises StorageError, never OSError: decoders raise OSError for damaged content, and the two must not be
    confused, since a damaged file is rejected for good and a failing server is not.
    """

    def __init__(self, entry: Entry, source: RawFile) -> None:
        self.entry, self.source = entry, source

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]
        with translate_errors(self.entry.path):
            return self.source.readinto(buffer)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.source.seek(offset, whence)

    def tell(self) -> int:
        return self.source.tell()

    def close(self) -> None:
        if not self.closed:
            self.source.close()
        super().close()


class Storage(Protocol):
    """What offramp asks of a file system; every method raises StorageError if the storage fails."""

    def open(self, path: str) -> StoredFile:
        """Open a file for reading, with its present size and version."""
        ...

    def read(self, path: str) -> tuple[bytes, str] | None:
        """Return content and version of a small file; None if it does not exist."""
        ...

    def stat(self, path: str) -> Entry | None:
        """Return size and version of a file; None if it does not exist."""
        ...

    def walk(self, folder: str) -> Iterator[Entry]:
        """List all files below a folder, in any order."""
        ...

    def names(self, folder: str, prefix: str = "") -> Iterator[str]:
        """List the names, beginning with `prefix`, of the files directly in a folder, in any order."""
        ...

    def children(self, folder: str) -> Iterator[str]:
        """List the names of the files and folders directly in a folder, in any order."""
        ...

    def make_folder(self, path: str) -> None:
        """Make a folder and its parents, if the storage has folders."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Create or replace a file, whole or not at all."""
        ...

    def write_if(self, path: str, data: bytes, version: str | None) -> bool:
        """Write only if the file has this version, or, with None, does not exist yet; return whether it was written."""
        ...

    def delete(self, paths: Iterable[str]) -> None:
        """Delete those of these files that exist."""
        ...


@contextlib.contextmanager
def translate_errors(path: str) -> Iterator[None]:
    """Turn an OSError into a StorageError that names the path and the cause."""
    try:
        yield
    except OSError as error:
        kind = RefusedError if error.errno in REFUSED_ERRNOS else StorageError
        raise kind(f"{printable(path, MAX_PATH)}: {error.strerror or one_line(error)}") from error


def is_remote(location: str) -> bool:
    """Return whether a location is on S3; raise UserError for a scheme that is not supported."""
    if location.startswith(S3_SCHEME):
        return True
    if "://" in location:
        raise UserError(f"{location}: known are local paths and {S3_SCHEME}")
    return False


def absolute(location: str) -> str:
    """Return the one spelling that all processes use: an absolute path without `..`, and no slash at its end."""
    if is_remote(location):
        return location.rstrip("/")
    return os.path.abspath(os.path.expanduser(location))


def buffered(file: StoredFile) -> BinaryIO:
    """Buffer an open file, by larger pieces if it is remote."""
    return io.BufferedReader(file, REMOTE_BUFFER_BYTES if is_remote(file.entry.path) else LOCAL_BUFFER_BYTES)
