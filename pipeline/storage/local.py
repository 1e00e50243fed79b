"""Disks, and whatever is mounted like one."""

import contextlib
import errno
import fcntl
import os
import stat
import time
import uuid
from collections.abc import Iterable, Iterator

from pipeline.errors import InputError
from pipeline.storage.base import Entry, StoredFile, is_remote, naming

PASSING = {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT, errno.EINTR}
"""Errors of network file systems that often pass."""
BACK_OFF_SECONDS = (0.2, 1.0, 5.0)
"""Waits between tries of a write to a disk; S3 has its own."""


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
                    return file.read(), _entry(path, os.fstat(file.fileno())).version
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

    def write_if(self, path: str, data: bytes, version: str | None) -> bool:
        # The look and the write are two steps here; `lock_folder` keeps other drivers out.
        there = self.stat(path)
        if (there.version if there else None) != version:
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
            raise InputError(
                "output",
                f"{folder}: another run is writing there ({file.read().strip() or 'just begun'}); "
                "wait for its end, or stop it",
            ) from error
        except OSError:
            yield False
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield True
