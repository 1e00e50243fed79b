"""The parts of an output folder: how they are named, and how they are written, whole or not at all.

A part is named after its content, which names its shards. So whoever writes the same part twice writes the same file, and work
that is done twice in other bundles leaves files beside each other, of which receipts, and in the end the manifest, name one.

A part, and the file of its rejects, carries the receipts of its shards in its Parquet metadata, under RECEIPTS_KEY. So the
notes of a folder can be made again from its parts.

What every exit says of the audited rows of a part is in a file of the same name in AUDITS_FOLDER: nothing else names it, it is
there before its part, and it goes with it.
"""

import hashlib
import os
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.corpus.listing import matches
from pipeline.errors import InputError, RefusedError
from pipeline.output.receipts import Receipt, pack_receipts
from pipeline.rows import offsets_of
from pipeline.schema import AUDITS
from pipeline.storage.base import absolute, is_remote
from pipeline.storage.locate import storage_of

MANIFEST, PREVIOUS_MANIFEST, LOCK = "_manifest.json", "_manifest.previous.json", "_lock"
REJECTS_FOLDER, RECEIPTS_FOLDER, ATTEMPTS_FOLDER, AUDITS_FOLDER = "_rejects", "_receipts", "_attempts", "_audits"
RECEIPTS_KEY = "offramp.receipts"
"""Key of the receipts in the metadata of a part, by `receipts.pack_receipts`."""
WRITTEN_KEY = "offramp.written"
"""Key, in the metadata of a file of audits, of when it was written, by UTC: that tells its night."""
PART_PATTERN = r"part-([0-9a-f]{16})(?:\.g([2-9]|[1-9][0-9]{1,8}))?\.parquet"
REJECTS_PATTERN = f"{REJECTS_FOLDER}/{PART_PATTERN}"
"""What a part, and a file of rejects, is called in receipts; no other name of theirs is believed."""
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
"""How times of the folder are written, by UTC: 2026-11-27T02:13:20Z."""
_PART_NAME = re.compile(PART_PATTERN)


@dataclass(frozen=True, slots=True)
class Output:
    """The folder that parts are written to, and the generation in their names, by which new results lie beside old ones."""

    folder: str
    generation: int = 1

    def part(self, content: str) -> str:
        """Return the name of the part with this digest of 16 hexadecimal digits: "part-0123456789abcdef.g2.parquet"."""
        return f"part-{content}.parquet" if self.generation == 1 else f"part-{content}.g{self.generation}.parquet"

    def write(
        self,
        receipts: Sequence[Receipt],
        rows: pa.Table,
        rejects: pa.Table,
        audits: pa.Table | None = None,
        written: str = "",
    ) -> list[Receipt]:
        """Write the rejects of some shards and their audits, if there are any, and then their part.

        Rows and rejects lie shard after shard, as many as the receipts count; audits, by `schema.AUDITS`, name their shards. A
        part with audited rows has a file of audits, though none of them may be recorded; it says that it was `written` now,
        unless it was before. Returns the receipts with where rows and rejects are; raises StorageError naming path and cause.
        """
        starts = offsets_of(np.array([receipt.rows_out for receipt in receipts])).tolist()
        rejects_starts = offsets_of(np.array([receipt.rejects for receipt in receipts])).tolist()
        if (len(rows), len(rejects)) != (starts[-1], rejects_starts[-1]):
            raise AssertionError(f"the bundle that begins with shard {receipts[0].shard} lost rows")
        placed = [
            replace(receipt, part="", part_row=start, rejects_part=None, rejects_row=rejects_start)
            for receipt, start, rejects_start in zip(receipts, starts, rejects_starts, strict=False)
        ]
        if len(rejects):
            rejects_part = f"{REJECTS_FOLDER}/{self._write(REJECTS_FOLDER, placed, rejects)}"
            placed = [replace(receipt, rejects_part=rejects_part) if receipt.rejects else receipt for receipt in placed]
        kept = audits if any(receipt.audited for receipt in receipts) else None
        part = self._write("", placed, rows, kept, written)
        return [replace(receipt, part=part) for receipt in placed]

    def _write(
        self, folder: str, receipts: Sequence[Receipt], rows: pa.Table, audits: pa.Table | None = None, at: str = ""
    ) -> str:
        data = parquet_bytes(rows.replace_schema_metadata(None), {RECEIPTS_KEY: pack_receipts(receipts)})
        name = self.part(hashlib.blake2b(data, digest_size=8).hexdigest())
        if audits is not None:
            written = {WRITTEN_KEY: at or time.strftime(TIME_FORMAT, time.gmtime())}
            storage_of(self.folder).write(f"{self.folder}/{AUDITS_FOLDER}/{name}", parquet_bytes(audits, written))
        storage_of(self.folder).write(f"{self.folder}/{folder}/{name}" if folder else f"{self.folder}/{name}", data)
        return name

    def names(self, folder: str = "") -> list[str]:
        """List the parts of this generation that are in the output folder, or in a folder below it."""
        found = storage_of(self.folder).names(f"{self.folder}/{folder}" if folder else self.folder, "part-")
        return [name for name in found if generation_of(name) == self.generation]

    def owns(self, names: pa.ChunkedArray) -> bool:
        """Return whether all of these names are those of parts of this generation."""
        return len(self.digests_of(names.to_pylist())) == len(names)

    def digests_of(self, names: Sequence[str]) -> pa.Array:
        """Return the digests in those of these names that are parts of this generation."""
        candidates = pa.array(names, pa.string())
        pattern = "^" + self.part("|").replace(".", r"\.").replace("|", "[0-9a-f]{16}") + "$"
        return pc.utf8_slice_codeunits(candidates.filter(pc.match_substring_regex(candidates, pattern)), 5, 21)


def read_audits(folder: str, part: str) -> tuple[pa.Table, str] | None:
    """Read the audits of a part, by `schema.AUDITS`, and when they were written; None if they are gone, damaged or foreign."""
    path = f"{folder}/{AUDITS_FOLDER}/{part}"
    data = storage_of(path).read(path)
    if data is None:
        return None
    try:
        with pq.ParquetFile(pa.BufferReader(data[0])) as file:
            written = (file.metadata.metadata or {}).get(WRITTEN_KEY.encode(), b"").decode()
            return file.read().cast(AUDITS), written
    except (pa.ArrowException, OSError, ValueError):
        return None


def generation_of(name: str) -> int | None:
    """Return the generation in the name of a part; None for other files."""
    match = _PART_NAME.fullmatch(name)
    return int(match[2] or 1) if match else None


def parquet_bytes(rows: pa.Table, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a Parquet file of these rows, with this metadata of the file: a part is some MB, and is written in one piece."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, rows.schema, compression="zstd") as writer:
        writer.write_table(rows)
        writer.add_key_value_metadata(metadata or {})
    data: bytes = sink.getvalue().to_pybytes()
    return data


def prepare_folder(output: str, corpus: str) -> str:
    """Create the output folder and check that it can be written; raise InputError if not, or if it lies in the corpus."""
    folder = absolute(output)
    try:
        folder.encode()
    except UnicodeEncodeError as error:
        raise InputError("output", f"{folder}: the name is no UTF-8, which results are opened by") from error
    if _lies_in(folder, absolute(corpus)) or matches(absolute(corpus), f"{folder}/part-{'0' * 16}.parquet"):
        raise InputError("output", f"{output}: lies inside the input, where the next run would read it as corpus")
    storage, probe = storage_of(folder), f"{folder}/.probe.{uuid.uuid4().hex[:8]}.tmp"
    try:
        for name in (REJECTS_FOLDER, RECEIPTS_FOLDER, ATTEMPTS_FOLDER, AUDITS_FOLDER):
            if os.path.islink(f"{folder}/{name}"):  # what is removed there would be somebody else's
                raise InputError("output", f"{folder}/{name}: is a link, which leads out of the folder; remove it")
            storage.make_folder(f"{folder}/{name}")
        storage.write(probe, b"")
        storage.delete([probe])
    except RefusedError as error:
        raise InputError("output", f"{output}: cannot be written: {error}") from error
    return folder


def _lies_in(folder: str, corpus: str) -> bool:
    """Return whether a folder is the corpus or lies below it."""
    if is_remote(folder) != is_remote(corpus):
        return False
    if is_remote(folder):
        return f"{folder}/".startswith(f"{corpus}/")
    return Path(folder).resolve().is_relative_to(Path(corpus).resolve())
