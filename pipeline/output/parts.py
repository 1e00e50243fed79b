"""The parts of an output folder: how they are named, and how they are written, whole or not at all.

A part is named after its content, which names its shards. So whoever writes the same part twice writes the same file, and work
that is done twice in other bundles leaves files beside each other, of which receipts, and in the end the manifest, name one.
"""

import hashlib
import json
import re
from collections.abc import Sequence
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
SHARDS_KEY = "offramp.shards"
"""Key of a part's Parquet metadata: the ids of its shards, as a JSON list."""
PART_NAME = re.compile(r"part-([0-9a-f]{16})(?:\.g(\d+))?\.parquet")


@dataclass(frozen=True, slots=True)
class Output:
    """The folder that parts are written to, and the generation in their names, by which new results lie beside old ones."""

    folder: str
    generation: int = 1

    def part(self, content: str) -> str:
        """Return the name of the part with this digest of 16 hexadecimal digits: "part-0123456789abcdef.g2.parquet"."""
        return f"part-{content}.parquet" if self.generation == 1 else f"part-{content}.g{self.generation}.parquet"

    def write(self, shards: Sequence[str], rows: pa.Table, rejects: pa.Table) -> tuple[str, str | None]:
        """Write the rejects of some shards, if there are any, and then their part; return the paths of both in the folder.

        Raises StorageError naming path and cause.
        """
        rejects_part = f"{REJECTS_FOLDER}/{self._write(REJECTS_FOLDER, shards, rejects)}" if len(rejects) else None
        return self._write("", shards, rows), rejects_part

    def _write(self, folder: str, shards: Sequence[str], rows: pa.Table) -> str:
        data = parquet_bytes(rows.replace_schema_metadata({SHARDS_KEY: json.dumps([*shards])}))
        name = self.part(hashlib.blake2b(data, digest_size=8).hexdigest())
        storage_of(self.folder).write(f"{self.folder}/{folder}/{name}" if folder else f"{self.folder}/{name}", data)
        return name

    def digests_of(self, names: Sequence[str]) -> pa.Array:
        """Return the digests in those of these names that are parts of this generation."""
        candidates = pa.array(names, pa.string())
        pattern = "^" + self.part("|").replace(".", r"\.").replace("|", "[0-9a-f]{16}") + "$"
        return pc.utf8_slice_codeunits(candidates.filter(pc.match_substring_regex(candidates, pattern)), 5, 21)


def generation_of(name: str) -> int | None:
    """Return the generation in the name of a part; None for other files."""
    match = PART_NAME.fullmatch(name)
    return int(match[2] or 1) if match else None


def parquet_bytes(rows: pa.Table) -> bytes:
    """Return a Parquet file of these rows: a part is some MB, and is written in one piece."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data


def prepare_folder(output: str, corpus: str) -> str:
    """Create the output folder and check that it can be written; raise InputError if not, or if it lies in the corpus."""
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
    """Return whether a folder is the corpus or lies below it."""
    if is_remote(folder) != is_remote(corpus):
        return False
    if is_remote(folder):
        return f"{folder}/".startswith(f"{corpus}/")
    return Path(folder).resolve().is_relative_to(Path(corpus).resolve())
