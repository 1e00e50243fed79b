"""Models in an object store, copied to this machine's disk, and the check that every machine runs the same weights."""

import hashlib
import os
import platform
import shutil
import tempfile
from pathlib import Path

from models.directory.digest import weights_digest
from pipeline.errors import InputError, StorageError
from pipeline.storage.base import Entry, absolute, buffered, is_remote, translate_errors
from pipeline.storage.locate import storage_of

COPY_BYTES = 8 << 20
"""Bytes of a model file to copy at once."""


def local_model(name: str) -> str:
    """Return what `from_pretrained` takes: a copy on this disk for an s3:// address, a hub id or a directory as it is.

    A machine copies each version of the files, by their ETags, once: to ~/.cache/offramp, or $XDG_CACHE_HOME/offramp. Raises
    UserError if there is no model at the address, StorageError if it cannot be read.
    """
    if not is_remote(name):
        return os.path.expanduser(name)
    address = absolute(name)
    entries = {entry.path.removeprefix(f"{address}/"): entry for entry in storage_of(address).walk(address)}
    files = {file: entry for file, entry in sorted(entries.items()) if "/" not in file}
    if "config.json" not in files:
        raise InputError("model", f"{name}: no model there (no config.json below that address)")
    versions = hashlib.sha256("\n".join(f"{file} {entry.version}" for file, entry in files.items()).encode())
    folder = _cache() / versions.hexdigest()[:16]
    if not folder.is_dir():
        _copy(files, folder)
    return str(folder)


def checked_model(name: str, weights: str, *, precision: tuple[str, str] | None = None) -> str:
    """Return what `local_model` does, for one of many machines that work on the same.

    Raises StorageError if the digest of its weights is not `weights`, or if this machine's precision, the first of two, is not
    the one that the work was begun in.
    """
    model, machine = local_model(name), platform.node()
    here, begun = precision or ("", "")
    if weights_digest(model) != weights:
        raise StorageError(f"{name}: other weights on {machine} than the run began with; bring the same to every node")
    if here != begun:
        raise StorageError(f"{name}: {machine} computes in {here}, and the run began in {begun}; ask for another dtype")
    return model


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "offramp"


def _copy(files: dict[str, Entry], folder: Path) -> None:
    """Copy into a temporary folder and rename it, so that the folder appears whole, also after a loss of power.

    Processes of one machine may copy at the same time: the first to rename wins, and the copies of the others are equal. Raises
    StorageError if a file is no longer the one that was listed: a model that is being replaced is no model.
    """
    with translate_errors(str(folder)):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for name, entry in files.items():
                with (
                    buffered(storage_of(entry.path).open(entry.path)) as source,
                    open(temporary / name, "wb") as target,
                ):
                    shutil.copyfileobj(source, target, COPY_BYTES)
                    target.flush()
                    os.fsync(target.fileno())
            for entry in files.values():
                if storage_of(entry.path).stat(entry.path) != entry:
                    raise StorageError(f"{entry.path}: was replaced while the model was copied; try again")
            _sync(temporary)
            temporary.rename(folder)
            _sync(folder.parent)
        except OSError:
            if not folder.is_dir():
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Have the disk keep the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
