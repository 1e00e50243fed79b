"""The files of a corpus: a file, a folder or a glob, local or on S3, as InputFile records. No file is opened here.

Every file counts once, and of all that is not read the corpus has a remark: see `storage.tree` and `storage.layouts`.
"""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from pipeline.corpus.folders.delta import live_files
from pipeline.corpus.folders.hive import Partitions, partitions_of
from pipeline.corpus.folders.saved import leave_out_unlisted
from pipeline.errors import InputError, RefusedError, printable
from pipeline.storage.base import Entry, absolute, is_remote, translate_errors
from pipeline.storage.globs import Glob
from pipeline.storage.layouts import DELTA, layout_of
from pipeline.storage.locate import storage_of
from pipeline.storage.tree import LeftOut, Tree, tree_of_entries, tree_on_disk

FORMATS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2", ".xz": "xz"}


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """A file of the corpus; another size or version means other content."""

    path: str
    """Absolute and without links, or an s3:// address."""
    name: str
    """Path relative to the input folder, which rows without an id of their own are named after."""
    size: int
    """Stored bytes, compressed if the file is."""
    version: str
    """Time of modification in ns since the epoch, or ETag."""
    format: str
    """One of "parquet", "arrow", "jsonl", "csv", "tsv" and "text"."""
    compression: str | None
    """One of "gzip", "zstd", "bzip2" and "xz"; None for a file that is not compressed."""
    partitions: Partitions = ()
    """Columns that the folders it lies in give to all its rows, below the input: `folders.hive`."""
    may_lack_columns: bool = False
    """Whether a column that it has not is null in all its rows: it is a file of a table, which may have got columns later."""
    problem: str | None = None
    """Why it cannot be read whatever its content; None if nothing is known against it."""

    def shard_id(self, start: int) -> str:
        """Return the id of the shard that starts at this row: the same on every run while the file is the same."""
        key = f"{self.path}\0{self.size}\0{self.version}\0{start}"
        return hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Corpus:
    """The files to read, in order of their names."""

    files: list[InputFile]
    remarks: list[str] = field(default_factory=list)
    """What is left alone, in a line for each reason."""
    table: str | None = None
    """Folder of the Delta table whose files these are; None for others."""

    @property
    def size(self) -> int:
        """Stored bytes of all files."""
        return sum(file.size for file in self.files)


def list_inputs(pattern: str, *, may_be_empty: bool = False) -> Corpus:
    """List a file, a folder (recursively) or a glob.

    With `may_be_empty`, a folder without files and a glob without matches are an empty corpus. Raises InputError if there is
    nothing to read, for a link that leads nowhere, and for a folder whose own rules say which of its files count.
    """
    # On S3 a slash more at the end is part of the keys.
    location = pattern.removesuffix("/") if is_remote(pattern) else absolute(pattern)
    single = _single(location)
    if single is not None:
        file = _input_file(single, os.path.basename(location))
        if file is None:
            raise InputError("input", f"{printable(location)}: unknown extension; known are {_extensions()}")
        return Corpus([file])
    root, tree = _tree(location)
    if tree is not None and tree.is_folder and tree.layouts.get("") == DELTA:
        return _delta_corpus(root, tree, may_be_empty=may_be_empty)
    if tree is not None and tree.matched_folders and not tree.files:
        raise InputError("input", f"{location}: matches folders and no file; write {location}/* for the files in them")
    if tree is None or not (tree.files or tree.left_out or tree.is_folder):
        if may_be_empty and (is_remote(location) or Glob.of(location)):  # S3 has no empty folders
            return Corpus([])
        raise InputError("input", f"{pattern}: no such file, folder or match")
    leave_out_unlisted(root, tree)
    corpus = _corpus_of(tree)
    if corpus.files:
        tree.refuse_layouts(root)
        for folder in [root if is_remote(root) else os.path.realpath(root), *tree.linked_folders]:
            corpus.remarks.extend(_refuse_table_above(folder))
    elif not may_be_empty:
        also = f" ({'; '.join(corpus.remarks)})" if corpus.remarks else ""
        raise InputError("input", f"{pattern}: no file to read{also}; known extensions are {_extensions()}")
    return corpus


def _single(location: str) -> Entry | None:
    """Return the file that a location is, or None; raise InputError if it is neither a file nor a folder."""
    if is_remote(location):
        # A name without a known extension is taken for a folder: credentials for its files alone get a 403 for its own name.
        return storage_of(location).stat(location) if _format_of(location) else None
    where = printable(location)
    if os.path.islink(location) and not os.path.exists(location):
        target = printable(os.readlink(location))
        raise InputError("input", f"{where}: is a link to {target}, which is not there")
    with translate_errors(location):
        mode = os.stat(location).st_mode if os.path.exists(location) else stat.S_IFDIR
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise InputError("input", f"{where}: is a pipe, a socket or a device; write its content to a file")
    return storage_of(location).stat(os.path.realpath(location)) if stat.S_ISREG(mode) else None


def _tree(location: str) -> tuple[str, Tree | None]:
    """Return the folder that names are relative to, and what was found there; a folder comes before a glob of that name."""
    glob = Glob.of(location)
    root = location if glob is None else glob.root or "/"
    if is_remote(location):
        storage = storage_of(location)
        tree = tree_of_entries(location, storage.walk(location), None)
        tree.is_folder = bool(tree.files or tree.left_out)
        if glob is None or tree.is_folder:
            return location, tree
        return root, tree_of_entries(root, storage.walk(root), glob)
    if os.path.isdir(location):
        root, glob = location, None
    if not os.path.isdir(root):
        return root, None
    tree = tree_on_disk(root, glob, lambda name: _format_of(name) is not None)
    tree.is_folder = glob is None
    return root, tree


def _refuse_table_above(folder: str) -> Iterator[str]:
    """Raise InputError if a folder is a part of a table: a partition by Hive's naming, or the data beside its metadata.

    Yields a remark if that cannot be known.
    """
    storage = storage_of(folder)
    while (name := folder.rpartition("/")[2]) == "data" or "=" in name:
        folder = folder.rpartition("/")[0]
        try:
            layout = layout_of([*storage.children(folder or "/")], partial(_names_in, folder))
        except RefusedError:
            yield f"{printable(folder)} cannot be listed: whether {printable(name)} is a part of a table is not known"
            return
        if layout:
            raise InputError("input", f"{printable(folder)}: {layout}")


def _names_in(folder: str, name: str) -> list[str]:
    return [*storage_of(folder).children(f"{folder}/{name}")]


def _corpus_of(tree: Tree) -> Corpus:
    """Sort out the files of a tree by their extensions."""
    files, ignored = [], []
    for name, entry in sorted(tree.files.items()):
        file = _input_file(entry, name)
        files.append(file) if file else ignored.append(_escaped(name))
    left_out = tree.left_out | ({LeftOut.OTHER_KIND: ignored} if ignored else {})
    return Corpus(files, [_remark(why, names) for why, names in left_out.items()])


def _delta_corpus(folder: str, tree: Tree, *, may_be_empty: bool) -> Corpus:
    """Return the files of the newest version of a Delta table; raise InputError if one is missing, or if there are none."""
    version, live = live_files(folder)
    if not live and not may_be_empty:
        raise InputError(
            "input", f"{printable(folder)}: no file to read: the Delta table is empty at version {version}"
        )
    folder = folder if is_remote(folder) else os.path.realpath(folder)
    files = []
    for file in sorted(live, key=lambda file: file.name):
        path = f"{folder}/{file.name}"
        entry = tree.files.get(file.name) or storage_of(path).stat(path)
        if entry is None:
            raise InputError("input", f"{printable(path)}: is not there, though the Delta table names it")
        described = _described(entry, file.name, "parquet", None, file.partitions)
        files.append(replace(described, may_lack_columns=True))
    return Corpus(files, [f"Delta table at version {version}: {len(files):,} files"], folder)


def _remark(why: LeftOut, names: list[str]) -> str:
    what, are = ("file" if why in (LeftOut.OTHER_KIND, LeftOut.UNLISTED) else "name"), "is"
    if len(names) > 1:
        what, are = f"{what}s", "are"
    return f"{len(names):,} {what} {why} {are} left alone, such as {printable(_escaped(names[0]))}"


def of_entries(root: str, entries: Iterable[Entry]) -> Corpus:
    """Return the corpus of these files, which lie below the folder `root`."""
    files = [_input_file(entry, entry.path.removeprefix(root)[1:]) for entry in entries]
    return Corpus([file for file in files if file is not None])


def matches(pattern: str, path: str) -> bool:
    """Return whether an absolute glob matches a path, or is the path itself."""
    glob = Glob.of(pattern)
    return path == pattern or (
        glob is not None and path.startswith(f"{glob.root}/") and glob.matches(path.removeprefix(f"{glob.root}/"))
    )


def _format_of(name: str) -> tuple[str, str | None] | None:
    """Return format and compression of a file by its name, such as ("jsonl", "gzip"); None for an unknown extension."""
    stem, extension = os.path.splitext(name.lower())
    compression = COMPRESSIONS.get(extension)
    kind = FORMATS.get(os.path.splitext(stem)[1] if compression else extension)
    return None if kind is None or (compression and kind in ("arrow", "parquet")) else (kind, compression)


def _input_file(entry: Entry, name: str) -> InputFile | None:
    """Describe a file; return None if its extension is unknown."""
    known = _format_of(name)
    if known is None:
        return None
    return _described(entry, name, *known, partitions_of(_escaped(name)))


def _described(entry: Entry, name: str, kind: str, compression: str | None, partitions: Partitions) -> InputFile:
    path = _escaped(entry.path)
    return InputFile(
        path=path,
        name=_escaped(name),
        size=entry.size,
        version=entry.version,
        format=kind,
        compression=compression,
        partitions=partitions,
        problem=None if path == entry.path else "its name is no UTF-8; rename it",
    )


def _escaped(name: str) -> str:
    r"""Return a name as valid text: bytes that are no UTF-8, which lone surrogates stand for, as `\\xe9`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _extensions() -> str:
    return f"{', '.join(FORMATS)} (text formats also with {' or '.join(COMPRESSIONS)})"
