"""Publishing: put the receipts of a generation together, write the list of shards and the manifest, and clean up."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.output.generations import Generations, receipts_folder, run_file
from pipeline.output.manifest import (
    MANIFEST_VERSION,
    PART,
    REJECTS_PART,
    SHARDS,
    SHARDS_PREFIX,
    Fingerprint,
    Manifest,
    digest_of,
    encode_schema,
)
from pipeline.output.parts import MANIFEST, REJECTS_FOLDER, Output, generation_of
from pipeline.output.receipt_log import NO_SHARDS, ShardIds, distinct, shard_ids
from pipeline.output.shard_index import ShardIndex
from pipeline.output.totals import Totals
from pipeline.storage.locate import storage_of
from pipeline.version import versions


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardList:
    """All finished shards of a generation, ready to be published."""

    data: bytes
    """Parquet file by `manifest.SHARDS`."""
    shards: int
    files: int
    totals: Totals


def list_shards(own: list[bytes], earlier: list[bytes], lost: ShardIds, output: Output) -> ShardList:
    """Put receipts together, each shard once: this driver's own segments, and those that were there before or published.

    Shards in `lost`, whose parts are missing, are listed only if this driver has done them again.
    """
    again = np.concatenate([NO_SHARDS, *(shard_ids(table) for table in distinct(own))])
    totals, index, sink = Totals(), ShardIndex(), pa.BufferOutputStream()
    with pq.ParquetWriter(sink, SHARDS, compression="zstd") as writer:
        for table in distinct([*own, *earlier], np.setdiff1d(lost, again)):
            totals = totals.plus_table(table)
            index.add_table(table)
            writer.write_table(with_parts(table, output))
    data = sink.getvalue().to_pybytes()
    return ShardList(data=data, shards=len(index), files=len(index.files), totals=totals)


def with_parts(receipts: pa.Table, output: Output) -> pa.Table:
    """Add the paths of each shard's part and rejects, by `manifest.SHARDS`."""
    before, after = output.part("|").split("|")
    parts = pc.binary_join_element_wise(before, receipts["shard"], after, "")
    rejects = pc.binary_join_element_wise(f"{REJECTS_FOLDER}/", parts, "")
    reasons = np.diff(receipts["rejected"].combine_chunks().offsets)
    has_rejects = pc.or_(pc.is_valid(receipts["read_error"]), pa.chunked_array([reasons > 0]))
    columns = {PART: parts, REJECTS_PART: pc.if_else(has_rejects, rejects, None)}
    return pa.table([columns[f.name] if f.name in columns else receipts[f.name] for f in SHARDS], schema=SHARDS)


def manifest_facts(
    shards: ShardList,
    fingerprint: Fingerprint,
    schema: pa.Schema,
    *,
    generation: int,
    seconds: float,
    checked: Mapping[str, object],
) -> dict[str, Any]:
    """Return the JSON document of a manifest, except for the name of the list of shards."""
    totals = shards.totals
    return {
        "generation": generation,
        "fingerprint": fingerprint,
        "schema": encode_schema(schema),
        "files": shards.files,
        "totals": asdict(totals) | {"rows_rejected": totals.rows_rejected},
        "mean_exit_layer": totals.mean_exit_layer,
        "flops_speedup": totals.flops_speedup,
        "seconds": round(seconds, 3),
        **checked,
        "published": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": versions(),
    }


def write_manifest(folder: str, before: Manifest | None, facts: Mapping[str, Any], shards: ShardList) -> bool:
    """Write the list of shards and the manifest; return False if another driver has published since `before` was read."""
    storage, digest = storage_of(folder), digest_of(shards.data)
    name = f"{SHARDS_PREFIX}{digest[:16]}.parquet"
    storage.write(f"{folder}/{name}", shards.data)
    named = {"version": MANIFEST_VERSION, "shards": {"path": name, "rows": shards.shards, "digest": digest}}
    text = json.dumps(named | dict(facts), indent=1) + "\n"
    return storage.write_if(f"{folder}/{MANIFEST}", text.encode(), before.version if before else None)


def clean_up(generations: Generations, generation: int, own_segments: Sequence[str]) -> None:
    """Remove what a published generation has replaced, and its receipts, which the list of shards now holds."""
    folder, storage = generations.folder, storage_of(generations.folder)
    if generation > 1:
        _remove_older_parts(folder, generation)
    storage.delete(path for number, paths in generations.segments.items() if number < generation for path in paths)
    storage.delete(run_file(folder, number) for number in generations.pending if number < generation)
    storage.delete([*generations.segments.get(generation, ()), *own_segments])
    storage.delete([run_file(folder, generation)])  # last: while it is there, there is something to clean up


def _remove_older_parts(folder: str, generation: int) -> None:
    """Remove the parts of earlier generations, and their rejects."""
    storage = storage_of(folder)
    for location in (folder, f"{folder}/{REJECTS_FOLDER}"):
        parts = storage.names(location, "part-")
        older = (name for name in parts if (generation_of(name) or generation) < generation)
        storage.delete(f"{location}/{name}" for name in older)


def remove_leftovers(generations: Generations) -> None:
    """Remove what killed drivers left on a disk: temporary files, and lists of shards that no manifest names."""
    folder, storage = generations.folder, storage_of(generations.folder)
    receipts = [receipts_folder(folder, number) for number in generations.pending]
    for location in (folder, f"{folder}/{REJECTS_FOLDER}", *receipts):
        hidden = storage.names(location, ".")
        storage.delete(f"{location}/{name}" for name in hidden if name.endswith(".tmp"))
    named = generations.manifest.facts.get("shards", {}).get("path") if generations.manifest else None
    lists = storage.names(folder, SHARDS_PREFIX)
    storage.delete(f"{folder}/{name}" for name in lists if name != named)
