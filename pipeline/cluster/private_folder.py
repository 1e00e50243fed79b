"""The folder of a Ray of our own: sockets, logs and spilled objects, which no other user of the machine can reach.

Ray's own default is shared by all users, and its sockets may be written by everybody. The folder is gone at the end; what a
process left that was killed, the next one removes.
"""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from pipeline.cluster.address import temporary_folder
from pipeline.errors import UserError, one_line

PREFIX = "offramp-ray-"
LONGEST_PATH = 43
"""Bytes of the folder's path. Ray puts sockets below it, whose paths Linux limits to 107 (unix(7)), with 64 of Ray's own:
`/session_2026-11-26_18-40-40_123456_4194304/sockets/plasma_store`."""
LOCK = "in-use"

_made: list[tuple[Path, int]] = []
"""The folder of this process and the descriptor that holds its lock."""


def make() -> str:
    """Make the folder where Ray keeps its own, or in /tmp where that has a long name; raise UserError if it cannot be made."""
    parent = temporary_folder()
    if len(os.fsencode(parent)) + len(f"/{PREFIX}12345678") > LONGEST_PATH:
        parent = "/tmp"
    try:
        _sweep(Path(parent))
        made = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=parent))  # which nobody else may enter
        lock = os.open(made / LOCK, os.O_CREAT | os.O_RDWR)
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = made.rename(made.with_name(made.name[1:]))  # now that it is locked, others may find it
    except OSError as error:
        raise UserError(f"Ray needs a folder for its sockets and logs: {one_line(error)}; set TMPDIR to one") from error
    _made.append((folder, lock))
    return str(folder)


def remove() -> None:
    """Remove the folder, once no process of Ray is at work that uses it."""
    while _made:
        folder, lock = _made.pop()
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _sweep(parent: Path) -> None:
    """Remove folders whose process was killed: those of this user that nobody holds the lock of."""
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            if folder.stat().st_uid != os.getuid():
                continue
            lock = os.open(folder / LOCK, os.O_RDWR)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # its process lives
            pass
        finally:
            os.close(lock)
