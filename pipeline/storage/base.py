"""Local paths and s3://bucket/key behind one narrow interface: whole files in and out, and listings with marks.

A location is a string, an absolute path or an s3:// address, and `storage_of` finds who serves it. Objects appear whole or not
at all: a rename on disks, a single put on S3. What fails is a StorageError that names path and cause.
"""

import contextlib
import errno
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from pipeline.errors import RefusedError, StorageError, UserError

S3_SCHEME = "s3://"
REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR}
BUFFER_BYTES = {False: 1 << 20, True: 8 << 20}
"""Read at once, by whether the file is remote: a request to S3 costs some 50 ms however little it brings."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a listing."""

    path: str
    size: int
    """Bytes."""
    version: str
    """Another mark means other content: time of modification in ns since the epoch, or ETag."""


class Bytes(Protocol):
    """What both kinds of open files can do."""

    def readinto(self, buffer: memoryview, /) -> int | None: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def tell(self) -> int: ...
    def close(self) -> None: ...


class StoredFile(io.RawIOBase):
    """A file open for reading. Failures to read it are StorageErrors, never OSErrors: those tell of damaged content."""

    def __init__(self, entry: Entry, source: Bytes) -> None:
        self.entry, self.source = entry, source

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]
        with naming(self.entry.path):
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
    """What a file system must be able to do."""

    def open(self, path: str) -> StoredFile:
        """Open a file for reading, with its present size and mark."""
        ...

    def read(self, path: str) -> tuple[bytes, str] | None:
        """Read a small file and its mark; None where there is none."""
        ...

    def stat(self, path: str) -> Entry | None:
        """Look a file up; None where there is none."""
        ...

    def walk(self, folder: str) -> Iterator[Entry]:
        """List all files below a folder, in no order."""
        ...

    def names(self, folder: str, prefix: str = "") -> Iterator[str]:
        """List the names of the files right in a folder that start so, in no order."""
        ...

    def make_folder(self, path: str) -> None:
        """Make a folder, and those above it, where there are folders."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Make or replace a file, whole or not at all."""
        ...

    def write_if(self, path: str, data: bytes, version: str | None) -> bool:
        """Write only if the file still has this mark, or, with None, if there is none yet; say whether it was done."""
        ...

    def delete(self, paths: Iterable[str]) -> None:
        """Delete files, as far as they are there."""
        ...


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Turn an OSError into a StorageError that names the path and the cause."""
    try:
        yield
    except OSError as error:
        kind = RefusedError if error.errno in REFUSED else StorageError
        raise kind(f"{path}: {error.strerror or ' '.join(str(error).split())}") from error


def is_remote(location: str) -> bool:
    """Say whether a location is no local path; raise UserError for schemes that nobody serves."""
    if location.startswith(S3_SCHEME):
        return True
    if "://" in location:
        raise UserError(f"{location}: known are local paths and {S3_SCHEME}")
    return False


def absolute(location: str) -> str:
    """Write a location so that every process, wherever it works, names it alike: no `..`, and no slash at its end."""
    if is_remote(location):
        return location.rstrip("/")
    return os.path.abspath(os.path.expanduser(location))


def buffered(file: StoredFile) -> BinaryIO:
    """Put a buffer before an open file, as large as its storage likes."""
    return io.BufferedReader(file, BUFFER_BYTES[is_remote(file.entry.path)])
