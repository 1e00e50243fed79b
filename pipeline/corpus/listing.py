"""The files of a corpus: a file, a folder or a glob, local or on S3, as InputFile records. No file is opened here."""

import glob
import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.errors import InputError
from pipeline.storage.base import Entry, absolute, is_remote
from pipeline.storage.locate import storage_of

FORMATS = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """A file of the corpus; another size or version means other content."""

    path: str
    """Absolute, or an s3:// address."""
    name: str
    """Path relative to the input folder, which rows without an id of their own are named after."""
    size: int
    """Stored bytes, compressed if the file is."""
    version: str
    """Time of modification in ns since the epoch, or ETag."""
    format: str
    """One of "parquet", "jsonl", "csv", "tsv" and "text"."""
    compression: str | None
    """Either "gzip" or "zstd"; None for a file that is not compressed."""

    def shard_id(self, start: int) -> str:
        """Return the id of the shard that starts at this row: the same on every run while the file is the same."""
        key = f"{self.path}\0{self.size}\0{self.version}\0{start}"
        return hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Corpus:
    """The files to read, in order of their names."""

    files: list[InputFile]
    ignored: list[str]
    """Names of the other files in the folder, whose formats are unknown."""

    @property
    def size(self) -> int:
        """Stored bytes of all files."""
        return sum(file.size for file in self.files)


def list_inputs(pattern: str, *, may_be_empty: bool = False) -> Corpus:
    """List a file, a folder (recursively) or a glob; raise UserError if there is nothing to read.

    With `may_be_empty`, a folder without files and a glob without matches are an empty corpus.
    """
    location = absolute(pattern)
    storage = storage_of(location)
    # On S3 a name without a known extension is taken for a folder: credentials for its files alone get a 403 for its own name.
    single = storage.stat(location) if not is_remote(location) or _format_of(location) else None
    if single is not None:
        file = _input_file(single, os.path.basename(location))
        if file is None:
            raise InputError("input", f"{location}: unknown extension; known are {_extensions()}")
        return Corpus([file], [])
    root, entries = _find(location)
    if root is None:
        if may_be_empty and (glob.has_magic(location) or is_remote(location)):  # S3 has no empty folders
            return Corpus([], [])
        raise InputError("input", f"{pattern}: no such file, folder or match")
    files, ignored = _sort_out(root, entries)
    if not files and not may_be_empty:
        also = f" ({len(ignored)} other files there, such as {ignored[0]})" if ignored else ""
        raise InputError("input", f"{pattern}: no file to read{also}; known extensions are {_extensions()}")
    return Corpus(files, ignored)


def of_entries(root: str, entries: Iterable[Entry]) -> Corpus:
    """Return the corpus of these files, which lie below the folder `root`."""
    files = [_input_file(entry, entry.path.removeprefix(root).lstrip("/")) for entry in entries]
    return Corpus([file for file in files if file is not None], [])


def _find(location: str) -> tuple[str | None, list[Entry]]:
    """Return the folder that names are relative to, and the files of a folder or a glob; None and nothing if there are none."""
    storage = storage_of(location)
    if os.path.isdir(location):
        return location, list(storage.walk(location))
    root = _fixed_part(location)
    if is_remote(location):
        wanted = _glob_pattern(location.removeprefix(root).lstrip("/")) if root != location else None
        entries = [
            e for e in storage.walk(root) if wanted is None or wanted.fullmatch(e.path.removeprefix(root).lstrip("/"))
        ]
    else:
        matches = dict.fromkeys(glob.glob(location, recursive=True))  # with ** a file may match more than once
        entries = [entry for path in matches if (entry := storage.stat(path)) is not None]
        if matches and not entries:
            raise InputError(
                "input", f"{location}: matches folders and no file; write {location}/* for the files in them"
            )
    return (root if entries else None), entries


def _sort_out(root: str, entries: list[Entry]) -> tuple[list[InputFile], list[str]]:
    """Return the files to read, by name, and the names of others; leave out hidden files and the outputs of earlier runs."""
    files, ignored = [], []
    for name, entry in sorted((entry.path.removeprefix(root).lstrip("/"), entry) for entry in entries):
        if name.startswith(("_", ".")) or "/_" in name or "/." in name:
            continue
        file = _input_file(entry, name)
        files.append(file) if file else ignored.append(name)
    return files, ignored


def matches(pattern: str, path: str) -> bool:
    """Return whether an absolute glob matches a path, or is the path itself."""
    return path == pattern or (glob.has_magic(pattern) and _glob_pattern(pattern).fullmatch(path) is not None)


def _fixed_part(location: str) -> str:
    """Return the folders of a glob before its first wildcard: "/data/in" of "/data/in/*/a.csv"."""
    parts = location.split("/")
    magic = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return "/".join(parts[:magic])


def _glob_pattern(pattern: str) -> re.Pattern[str]:
    """Translate a glob to a regular expression: `*` and `?` stay within a name, and `**` matches any number of folders."""
    meaning = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\*\*/|\*\*$|\*|\?|\[[^\]]+\])", pattern)
    plain = (p.replace("[!", "[^", 1) if p.startswith("[") else re.escape(p) for p in pieces)
    return re.compile("".join(meaning.get(piece, text) for piece, text in zip(pieces, plain, strict=True)))


def _format_of(name: str) -> tuple[str, str | None] | None:
    """Return format and compression of a file by its name, such as ("jsonl", "gzip"); None for an unknown extension."""
    stem, extension = os.path.splitext(name.lower())
    compression = COMPRESSIONS.get(extension)
    kind = FORMATS.get(os.path.splitext(stem)[1] if compression else extension)
    return None if kind is None or (kind == "parquet" and compression) else (kind, compression)


def _input_file(entry: Entry, name: str) -> InputFile | None:
    known = _format_of(name)
    if known is None:
        return None
    kind, compression = known
    try:
        entry.path.encode()
    except UnicodeEncodeError as error:
        raise InputError("input", f"the name of {entry.path!r} is no UTF-8; rename that file") from error
    return InputFile(
        path=entry.path, name=name, size=entry.size, version=entry.version, format=kind, compression=compression
    )


def _extensions() -> str:
    return f"{', '.join(FORMATS)} (text formats also with {' or '.join(COMPRESSIONS)})"
