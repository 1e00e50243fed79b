"""Which files are the corpus: a file, a folder or a glob -> InputFile records. Nothing is opened here."""

import glob
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError

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
    """One file of the corpus with its marks: another size or modification time means other content."""

    path: str
    name: str
    """Path relative to the input folder: the `<file>` of default ids."""
    size: int
    """Bytes on disk."""
    modified: int
    """Modification time, nanoseconds since the epoch."""
    format: str
    compression: str | None

    def shard_id(self, start: int) -> str:
        """Name the shard that starts at this row: the same on every run while the file is the same."""
        key = f"{self.path}\0{self.size}\0{self.modified}\0{start}"
        return hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Corpus:
    """The files to read, in name order, and the files of the folder that are no corpus format."""

    files: list[InputFile]
    ignored: list[str]

    @property
    def size(self) -> int:
        """Bytes on disk of all files."""
        return sum(file.size for file in self.files)


def list_inputs(pattern: str) -> Corpus:
    """List a file, a folder (recursively) or a glob; raise UserError when there is nothing to read."""
    if "://" in pattern:
        raise UserError(f"--input {pattern}: only local paths are read so far")
    path = Path(pattern).expanduser()
    if path.is_file():
        file = _input_file(path, path.name)
        if file is None:
            raise UserError(f"--input {path}: unknown extension; known are {_extensions()}")
        return Corpus([file], [])
    if path.is_dir():
        root, found = path, [p for p in path.rglob("*") if p.is_file()]
    else:
        root = _fixed_part(path)
        found = [Path(p) for p in glob.glob(str(path), recursive=True) if os.path.isfile(p)]
        if not found:
            raise UserError(f"--input {pattern}: no such file, folder or match")
    files, ignored = [], []
    for candidate in sorted(found):
        name = candidate.relative_to(root).as_posix()
        if any(part.startswith(("_", ".")) for part in name.split("/")):
            continue  # hidden files, and the manifests and rejects of earlier runs
        file = _input_file(candidate, name)
        files.append(file) if file else ignored.append(name)
    if not files:
        also = f" ({len(ignored)} other files there, such as {ignored[0]})" if ignored else ""
        raise UserError(f"--input {pattern}: no file to read{also}; known extensions are {_extensions()}")
    return Corpus(files, ignored)


def _fixed_part(path: Path) -> Path:
    parts = path.parts
    magic = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return Path(*parts[:magic])


def _input_file(path: Path, name: str) -> InputFile | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    kind = FORMATS.get(suffixes[-2] if compression and len(suffixes) > 1 else (suffixes[-1] if suffixes else ""))
    if kind is None or (kind == "parquet" and compression):
        return None
    stat = path.stat()
    return InputFile(
        path=str(path.absolute()),
        name=name,
        size=stat.st_size,
        modified=stat.st_mtime_ns,
        format=kind,
        compression=compression,
    )


def _extensions() -> str:
    return f"{', '.join(FORMATS)} (text formats also with {' or '.join(COMPRESSIONS)})"
