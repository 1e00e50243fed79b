"""Where a machine finds a model: as its own copy if it lies in an object store, and only the one that a run began with."""

import hashlib
import os
import platform
import shutil
import tempfile
from pathlib import Path

from models.digest import weights_digest
from pipeline.errors import InputError, StorageError
from pipeline.storage.base import Entry, absolute, buffered, is_remote, naming
from pipeline.storage.locate import storage_of


def local_model(name: str) -> str:
    """Return what `from_pretrained` takes: hub ids and directories as they are; of an s3:// address a copy on this disk.

    Each version of the files, told by their ETags, is copied once, to ~/.cache/offramp (or $XDG_CACHE_HOME/offramp) on every
    machine that asks. Raises UserError if no model is there, StorageError if it cannot be read.
    """
    if not is_remote(name):
        return name
    place = absolute(name)
    found = {entry.path.removeprefix(f"{place}/"): entry for entry in storage_of(place).walk(place)}
    files = {file: entry for file, entry in sorted(found.items()) if "/" not in file}
    if "config.json" not in files:
        raise InputError("model", f"{name}: no model there (no config.json below that address)")
    version = hashlib.sha256("\n".join(f"{file} {entry.version}" for file, entry in files.items()).encode())
    folder = _cache() / version.hexdigest()[:16]
    if not folder.is_dir():
        _copy(files, folder)
    return str(folder)


def checked_model(name: str, weights: str) -> str:
    """Do as `model_on_disk`; raise StorageError if the weights are not those with this `models.digest` any more."""
    place = local_model(name)
    if weights_digest(place) != weights:
        raise StorageError(
            f"{name}: other weights on {platform.node()} than the run began with; bring the same to every node"
        )
    return place


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "offramp"


def _copy(files: dict[str, Entry], folder: Path) -> None:
    """Copy beside the place and rename, so that a folder is whole; who is first wins, the others' copies are the same."""
    with naming(str(folder)):
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for name, entry in files.items():
                with buffered(storage_of(entry.path).open(entry.path)) as source, open(scratch / name, "wb") as target:
                    shutil.copyfileobj(source, target, 8 << 20)
            scratch.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
