"""Disks, and whatever is mounted like one."""

import contextlib
import errno
import fcntl
import os
import stat
import time
import uuid
from collections.abc import Iterable, Iterator

from pipeline.errors import UserError, printable
from pipeline.storage.base import Entry, StoredFile, is_remote, translate_errors

TRANSIENT_ERRNOS = {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT, errno.EINTR}
"""Errors of network file systems that often pass."""
MAX_HOLDER_BYTES = 200
"""Bytes of a lock file that are believed to name its holder."""
BACK_OFF_SECONDS = (0.2, 1.0, 5.0)
"""Waits between attempts to write to a disk; S3's client has its own."""


class LocalStorage:
    """The storage of local paths."""

    def open(self, path: str) -> StoredFile:
        with translate_errors(path):
            file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by StoredFile
            return StoredFile(_entry(path, os.fstat(file.fileno())), file)

    def read(self, path: str) -> tuple[bytes, str] | None:
        with translate_errors(path):
            try:
                with open(path, "rb") as file:
                    return file.read(), _entry(path, os.fstat(file.fileno())).version
            except (FileNotFoundError, NotADirectoryError):
                return None

    def stat(self, path: str) -> Entry | None:
        # A dangling symbolic link counts as absent too.
        with translate_errors(path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            status = os.stat(path)
            return _entry(path, status) if stat.S_ISREG(status.st_mode) else None
        return None

    def walk(self, folder: str) -> Iterator[Entry]:
        def unreadable(error: OSError) -> None:  # os.walk would skip the folder, and the listing would be incomplete
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                with translate_errors(str(error.filename)):
                    raise error

        for parent, _folders, names in os.walk(folder, onerror=unreadable):
            for name in names:
                entry = self.stat(os.path.join(parent, name))
                if entry is not None:
                    yield entry

    def names(self, folder: str, prefix: str = "") -> Iterator[str]:
        with translate_errors(folder), contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(prefix) and not entry.is_dir():
                    yield entry.name

    def make_folder(self, path: str) -> None:
        with translate_errors(path):
            os.makedirs(path, exist_ok=True)

    def write(self, path: str, data: bytes) -> None:
        with translate_errors(path):
            for wait in (*BACK_OFF_SECONDS, None):
                try:
                    return write_atomically(path, data)
                except OSError as error:
                    if wait is None or error.errno not in TRANSIENT_ERRNOS:
                        raise
                    time.sleep(wait)

    def write_if(self, path: str, data: bytes, version: str | None) -> bool:
        # Not atomic: another process may write between the check and the write. Drivers exclude each other by `lock_folder`.
        entry = self.stat(path)
        if (entry.version if entry else None) != version:
            return False
        self.write(path, data)
        return True

    def delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            with translate_errors(path), contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def write_atomically(path: str, data: bytes) -> None:
    """Create or replace a file by a rename, so that no reader, and no crash, ever sees half of it."""
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
    """Lock a folder, by its file `name`, until the block or the process ends; raise UserError if another process holds it.

    Yields whether the folder is locked: False on S3 and on mounts without locks.
    """
    if is_remote(folder):
        yield False
        return
    path = os.path.join(folder, name)
    with translate_errors(path), open(path, "ab+", buffering=0, opener=_open_no_link) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = printable(file.read(MAX_HOLDER_BYTES).decode(errors="replace").strip()) or "just begun"
            raise UserError(
                f"{folder}: another run is writing there ({holder}); wait for its end, or stop it"
            ) from error
        except OSError:
            yield False
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}".encode())
        yield True


def _open_no_link(path: str, flags: int) -> int:
    """Open a file of ours, and not what a link of its name leads to: that would be somebody else's, and truncated."""
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise UserError(f"{path}: is no file; remove it") from error
        raise


def _entry(path: str, status: os.stat_result) -> Entry:
    return Entry(path, status.st_size, str(status.st_mtime_ns), status.st_mtime)
