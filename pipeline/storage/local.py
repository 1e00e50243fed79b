"""Disks, and whatever is mounted like one."""

import contextlib
import errno
import fcntl
import os
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeVar

from pipeline.errors import UserError, printable
from pipeline.storage.base import Entry, StoredFile, is_remote, translate_errors
from pipeline.storage.retry import retried

T = TypeVar("T")

TRANSIENT_ERRNOS = {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT, errno.EINTR}
"""Errors of network file systems that often pass."""
MAX_HOLDER_BYTES = 200
"""Bytes of a lock file that are believed to name its holder."""
BACK_OFF_SECONDS = (0.2, 1.0, 5.0)
"""Waits between attempts at an operation."""


class LocalStorage:
    """The storage of local paths."""

    def open(self, path: str) -> StoredFile:
        def opened() -> StoredFile:
            file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by StoredFile
            return StoredFile(_entry(path, os.fstat(file.fileno())), file)

        return _whole(path, opened)

    def read(self, path: str) -> tuple[bytes, str] | None:
        def content() -> tuple[bytes, str] | None:
            try:
                with open(path, "rb") as file:
                    return file.read(), _entry(path, os.fstat(file.fileno())).version
            except (FileNotFoundError, NotADirectoryError):
                return None

        return _whole(path, content)

    def stat(self, path: str) -> Entry | None:
        def entry() -> Entry | None:
            # A dangling symbolic link counts as absent too.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                status = os.stat(path)
                return _entry(path, status) if stat.S_ISREG(status.st_mode) else None
            return None

        return _whole(path, entry)

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
        with translate_errors(folder), contextlib.suppress(FileNotFoundError):
            entries = retried(lambda: os.scandir(folder), _may_pass, BACK_OFF_SECONDS)
            with entries:
                for entry in entries:
                    if entry.name.startswith(prefix) and not entry.is_dir():
                        yield entry.name

    def children(self, folder: str) -> Iterator[str]:
        with translate_errors(folder), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            yield from retried(lambda: os.listdir(folder), _may_pass, BACK_OFF_SECONDS)

    def make_folder(self, path: str) -> None:
        _whole(path, lambda: make_folders(path))

    def write(self, path: str, data: bytes) -> None:
        _whole(path, lambda: write_atomically(path, data))

    def write_if(self, path: str, data: bytes, version: str | None) -> bool:
        # Not atomic: another process may write between the check and the write. Drivers exclude each other by `lock_folder`.
        entry = self.stat(path)
        if (entry.version if entry else None) != version:
            return False
        self.write(path, data)
        return True

    def delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            _whole(path, partial(_unlink, path))


def _whole(path: str, operation: Callable[[], T]) -> T:
    """Do a whole operation, and try it again while its error may pass."""
    with translate_errors(path):
        return retried(operation, _may_pass, BACK_OFF_SECONDS)


def _may_pass(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in TRANSIENT_ERRNOS


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def write_atomically(path: str, data: bytes) -> None:
    """Create or replace a file by a rename, so that no reader, and no crash, ever sees half of it.

    When this returns the file is on the disk under its name, as far as the disk tells the truth about that.
    """
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    flush_folder(folder)


def make_folders(path: str) -> None:
    """Make a folder and its parents, so that they are on the disk when this returns."""
    missing = []
    while path and not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for each in reversed(missing):
        os.makedirs(each, exist_ok=True)
        flush_folder(os.path.dirname(each))


def flush_folder(path: str) -> None:
    """Wait until the names in a folder are on the disk: without that, a power cut may take back a rename."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # one may write there, and not list: then nobody can wait
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a mount that cannot flush folders
            raise
    finally:
        os.close(descriptor)


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
