"""Local paths and s3://bucket/key behind one narrow interface: whole files in and out, and listings with marks.

A location is a string, an absolute path or an s3:// address, and `storage_of` finds who serves it. Objects appear whole or not
at all: a rename on disks, a single put on S3. What fails is a StorageError that names path and cause.
"""

import contextlib
import errno
import fcntl
import io
import json
import os
import stat
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from pipeline.errors import RefusedError, StorageError, UserError

S3_SCHEME = "s3://"
PASSING = {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT, errno.EINTR}
"""Errors of network file systems that often pass."""
REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR}
BACK_OFF_SECONDS = (0.2, 1.0, 5.0)
"""Waits between tries of a write to a disk; S3 has its own."""
BUFFER_BYTES = {False: 1 << 20, True: 8 << 20}
"""Read at once, by whether the file is remote: a request to S3 costs some 50 ms however little it brings."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a listing."""

    path: str
    size: int
    """Bytes."""
    mark: str
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

    def write_if(self, path: str, data: bytes, mark: str | None) -> bool:
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


class LocalStorage:
    """Disks, and whatever is mounted like one."""

    def open(self, path: str) -> StoredFile:
        with naming(path):
            file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by StoredFile
            return StoredFile(_entry(path, os.fstat(file.fileno())), file)

    def read(self, path: str) -> tuple[bytes, str] | None:
        with naming(path):
            try:
                with open(path, "rb") as file:
                    return file.read(), _entry(path, os.fstat(file.fileno())).mark
            except (FileNotFoundError, NotADirectoryError):
                return None

    def stat(self, path: str) -> Entry | None:
        with naming(path), contextlib.suppress(FileNotFoundError, NotADirectoryError):  # or a link that leads nowhere
            found = os.stat(path)
            return _entry(path, found) if stat.S_ISREG(found.st_mode) else None
        return None

    def walk(self, folder: str) -> Iterator[Entry]:
        def unreadable(error: OSError) -> None:  # os.walk would pass over it, and the corpus be incomplete
            if not isinstance(error, FileNotFoundError):
                with naming(str(error.filename)):
                    raise error

        for place, _folders, names in os.walk(folder, onerror=unreadable):
            for name in names:
                entry = self.stat(os.path.join(place, name))
                if entry is not None:
                    yield entry

    def names(self, folder: str, prefix: str = "") -> Iterator[str]:
        with naming(folder), contextlib.suppress(FileNotFoundError), os.scandir(folder) as found:
            for file in found:
                if file.name.startswith(prefix) and not file.is_dir():
                    yield file.name

    def make_folder(self, path: str) -> None:
        with naming(path):
            os.makedirs(path, exist_ok=True)

    def write(self, path: str, data: bytes) -> None:
        with naming(path):
            for wait in (*BACK_OFF_SECONDS, None):
                try:
                    return _replace(path, data)
                except OSError as error:
                    if wait is None or error.errno not in PASSING:
                        raise
                    time.sleep(wait)

    def write_if(self, path: str, data: bytes, mark: str | None) -> bool:
        # The look and the write are two steps here; `lock_folder` keeps other drivers out.
        there = self.stat(path)
        if (there.mark if there else None) != mark:
            return False
        self.write(path, data)
        return True

    def delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            with naming(path), contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def _entry(path: str, found: os.stat_result) -> Entry:
    return Entry(path, found.st_size, str(found.st_mtime_ns))


def _replace(path: str, data: bytes) -> None:
    """Write under a temporary name, flush to disk, and rename."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


_LOCAL = LocalStorage()


def storage_of(location: str) -> Storage:
    """Find who serves a location."""
    if not is_remote(location):
        return _LOCAL
    from pipeline.s3 import S3Storage  # here: boto3 takes a while to load, and most runs are local

    return S3Storage()


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


def use_endpoint(url: str | None) -> None:
    """Send all S3 requests of this process, and of those that it starts, to another server than Amazon's."""
    if url:
        os.environ["AWS_ENDPOINT_URL"] = url


def worker_environment() -> dict[str, str]:
    """Name what workers on other machines need to find the same S3. Credentials are not among it: every node has its own.

    What the submission of the job gives them already is left out, since Ray takes nothing twice.
    """
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
    given = submitted.get("env_vars") or {}
    names = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_MAX_ATTEMPTS")
    return {name: os.environ[name] for name in names if os.environ.get(name, given.get(name)) != given.get(name)}


@contextlib.contextmanager
def lock_folder(folder: str, name: str) -> Iterator[bool]:
    """Hold a local folder against other drivers until the end, however this process ends; raise UserError if one is there.

    Gives False where nothing can be locked: on S3, and on mounts without locks.
    """
    if is_remote(folder):
        yield False
        return
    path = os.path.join(folder, name)
    with naming(path), open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(
                f"--output {folder}: another run is writing there ({file.read().strip() or 'just begun'}); "
                "wait for its end, or stop it"
            ) from error
        except OSError:
            yield False
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield True
