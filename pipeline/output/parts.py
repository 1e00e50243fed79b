"""Parts of an output folder: what they are called, and how they are written, whole or not at all."""

import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.corpus.listing import matches
from pipeline.errors import InputError, RefusedError
from pipeline.storage.base import absolute, is_remote
from pipeline.storage.locate import storage_of

MANIFEST, LOCK = "_manifest.json", "_lock"
REJECTS_FOLDER, RECEIPTS_FOLDER, ATTEMPTS_FOLDER = "_rejects", "_receipts", "_attempts"
PART = re.compile(r"part-([0-9a-f]+)(?:\.g(\d+))?\.parquet")


@dataclass(frozen=True, slots=True)
class Output:
    """Where the parts of a run go. Results that replace others are of a later generation, whose parts have other names."""

    folder: str
    generation: int = 1

    def part(self, shard: str) -> str:
        """Name a shard's part: repeating the shard rewrites the same file."""
        return f"part-{shard}.parquet" if self.generation == 1 else f"part-{shard}.g{self.generation}.parquet"

    def rejects(self, shard: str) -> str:
        """Name the part of a shard's rejects."""
        return f"{REJECTS_FOLDER}/{self.part(shard)}"

    def write(self, shard: str, rows: pa.Table, rejects: pa.Table) -> None:
        """Write a shard's part, and before it that of its rejects, if there are any.

        Raises StorageError naming path and cause.
        """
        storage, rejects_path = storage_of(self.folder), f"{self.folder}/{self.rejects(shard)}"
        if len(rejects):
            storage.write(rejects_path, parquet_bytes(rejects))
        else:
            storage.delete([rejects_path])  # an earlier try of this shard may have had some
        storage.write(f"{self.folder}/{self.part(shard)}", parquet_bytes(rows))

    def shards_of(self, names: list[str]) -> pa.Array:
        """Return the shards of those files that are parts of this generation."""
        found = pa.array(names, pa.string())
        pattern = "^" + self.part("|").replace(".", r"\.").replace("|", "[0-9a-f]{16}") + "$"
        return pc.utf8_slice_codeunits(found.filter(pc.match_substring_regex(found, pattern)), 5, 21)


def generation_of(name: str) -> int | None:
    """Return the generation of a part; None for other files."""
    found = PART.fullmatch(name)
    return int(found[2] or 1) if found else None


def parquet_bytes(rows: pa.Table) -> bytes:
    """Make a Parquet file in memory: a part is some MB, and so it can be written at once."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data


def prepare_folder(output: str, corpus: str) -> str:
    """Make the output folder and see that it can be written; raise UserError if not, or if it lies in the corpus."""
    folder = absolute(output)
    if _lies_in(folder, absolute(corpus)) or matches(absolute(corpus), f"{folder}/part-{'0' * 16}.parquet"):
        raise InputError("output", f"{output}: lies inside the input, where the next run would read it as corpus")
    storage, probe = storage_of(folder), f"{folder}/.probe"
    try:
        for name in (REJECTS_FOLDER, RECEIPTS_FOLDER, ATTEMPTS_FOLDER):
            storage.make_folder(f"{folder}/{name}")
        storage.write(probe, b"")
        storage.delete([probe])
    except RefusedError as error:
        raise InputError("output", f"{output}: cannot be written: {str(error).split(': ', 1)[-1]}") from error
    return folder


def _lies_in(folder: str, corpus: str) -> bool:
    if is_remote(folder) != is_remote(corpus):
        return False
    if is_remote(folder):
        return f"{folder}/".startswith(f"{corpus}/")
    return Path(folder).resolve().is_relative_to(Path(corpus).resolve())
