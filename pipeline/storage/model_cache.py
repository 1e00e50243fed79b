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
from pipeline.storage.local import flush_folder
from pipeline.storage.locate import storage_of

LAYOUT = "flushed"
"""Part of the name of a copy: those that were made before copies were flushed are not believed."""
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
    versions = [LAYOUT, *(f"{file} {entry.version}" for file, entry in files.items())]
    folder = _cache() / hashlib.sha256("\n".join(versions).encode()).hexdigest()[:16]
    if not _is_whole(files, folder):
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


def _is_whole(files: dict[str, Entry], folder: Path) -> bool:
    """Return whether a copy has every file, each of its size: one that was cut later, by whomever, is made again."""
    try:
        return all((folder / name).stat().st_size == entry.size for name, entry in files.items())
    except OSError:
        return False


def _copy(files: dict[str, Entry], folder: Path) -> None:
    """Copy into a temporary folder, flush it and rename it, so that the folder appears whole, also after a power cut.

    Processes of one machine may copy at the same time: the first to rename wins, and the copies of the others are equal. Raises
    StorageError if a file is no longer the one that was listed: a model that is being replaced is no model.
    """
    with translate_errors(str(folder)):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        torn = temporary.with_suffix(".torn")
        try:
            for name, entry in files.items():
                _copy_file(entry, temporary / name)
            for entry in files.values():
                if storage_of(entry.path).stat(entry.path) != entry:
                    raise StorageError(f"{entry.path}: was replaced while the model was copied; try again")
            flush_folder(str(temporary))
            if folder.is_dir() and not _is_whole(files, folder):
                folder.rename(torn)
            temporary.rename(folder)
            flush_folder(str(folder.parent))
        except OSError:
            if not _is_whole(files, folder):
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(torn, ignore_errors=True)


def _copy_file(entry: Entry, path: Path) -> None:
    with buffered(storage_of(entry.path).open(entry.path)) as source, open(path, "wb") as target:
        shutil.copyfileobj(source, target, COPY_BYTES)
        target.flush()
        os.fsync(target.fileno())
