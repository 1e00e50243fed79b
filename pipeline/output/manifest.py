"""What a run publishes: `_manifest.json`, and the list of its shards, a Parquet file that the manifest names with its digest.

The list is apart for results of any size, so that there is one way to read it: a million shards would make a JSON file of
hundreds of MB, while a reader of totals wants a kilobyte, and one of shards wants columns. It is named after its content and
never changes; the manifest is replaced at once, and so both always fit.
"""

import base64
import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import StorageError
from pipeline.output.parts import MANIFEST, REJECTS_FOLDER, Output
from pipeline.output.receipts import RECEIPTS
from pipeline.output.totals import Totals
from pipeline.storage.locate import storage_of

MANIFEST_VERSION = 3
SHARDS_PREFIX = "_shards-"
PART, REJECTS_PART = "part", "rejects_part"
SHARDS = pa.schema([pa.field(PART, pa.string(), nullable=False), pa.field(REJECTS_PART, pa.string()), *RECEIPTS])
"""Columns of the list of shards: paths of a shard's part and of its rejects, if any, relative to the folder; its receipt."""
Fingerprint = dict[str, str]
"""What decides the answers, by name: model, tokenizer, criterion, columns, schema, code version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A published result."""

    folder: str
    version: str
    """Of the file itself, for replacing exactly this one."""
    facts: dict[str, Any]
    """The JSON document."""

    @property
    def generation(self) -> int:
        return int(self.facts.get("generation", 1))

    @property
    def fingerprint(self) -> Fingerprint:
        return dict(self.facts["fingerprint"])

    @property
    def schema(self) -> pa.Schema:
        """Columns of the parts."""
        return decode_schema(self.facts["schema"])

    @property
    def shards_path(self) -> str:
        return f"{self.folder}/{self.facts['shards']['path']}"

    def read_shards(self) -> bytes:
        """Read the list of shards, a Parquet file by `schema.SHARDS`; raise StorageError if it is gone or damaged."""
        data = storage_of(self.folder).read(self.shards_path)
        if data is None:
            raise StorageError(f"{self.shards_path}: is gone, though {MANIFEST} names it")
        if _digest(data[0]) != self.facts["shards"]["digest"]:
            raise StorageError(f"{self.shards_path}: is not what {MANIFEST} was written for")
        return data[0]


@dataclass(frozen=True, slots=True)
class PendingRun:
    """A run that has not ended yet, as its file tells of it."""

    fingerprint: Fingerprint
    schema: pa.Schema
    overwrites: bool
    """It was begun to take the place of results that were there."""

    def to_json(self) -> bytes:
        facts = {"fingerprint": self.fingerprint, "schema": encode_schema(self.schema), "overwrites": self.overwrites}
        return json.dumps(facts, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        facts = json.loads(data)
        return cls(facts["fingerprint"], decode_schema(facts["schema"]), facts["overwrites"])


def read_manifest(folder: str) -> Manifest | None:
    """Read the manifest of an output folder; None if nothing has been published there."""
    data = storage_of(folder).read(f"{folder}/{MANIFEST}")
    return None if data is None else Manifest(folder=folder, version=data[1], facts=json.loads(data[0]))


def write_manifest(folder: str, before: Manifest | None, facts: dict[str, Any], shards: bytes, rows: int) -> bool:
    """Publish, unless another driver has published since `before` was read; say whether it was done."""
    storage, digest = storage_of(folder), _digest(shards)
    name = f"{SHARDS_PREFIX}{digest[:16]}.parquet"
    storage.write(f"{folder}/{name}", shards)
    facts = {"version": MANIFEST_VERSION, "shards": {"path": name, "rows": rows, "digest": digest}} | facts
    text = json.dumps(facts, indent=1) + "\n"
    return storage.write_if(f"{folder}/{MANIFEST}", text.encode(), before.version if before else None)


def with_parts(receipts: pa.Table, output: Output) -> pa.Table:
    """Say where the results of each shard are, by `schema.SHARDS`."""
    before, after = output.part("|").split("|")
    parts = pc.binary_join_element_wise(before, receipts["shard"], after, "")
    rejects = pc.binary_join_element_wise(f"{REJECTS_FOLDER}/", parts, "")
    counts = np.diff(receipts["rejected"].combine_chunks().offsets)
    some = pc.or_(pc.is_valid(receipts["read_error"]), pa.chunked_array([counts > 0]))
    columns = {PART: parts, REJECTS_PART: pc.if_else(some, rejects, None)}
    return pa.table([columns[f.name] if f.name in columns else receipts[f.name] for f in SHARDS], schema=SHARDS)


def totals_as_facts(totals: Totals) -> dict[str, Any]:
    """Totals as the manifest tells them."""
    return {
        "totals": asdict(totals) | {"rows_rejected": totals.rows_rejected},
        "mean_exit_layer": totals.mean_exit_layer,
        "flops_speedup": totals.flops_speedup,
    }


def encode_schema(schema: pa.Schema) -> dict[str, Any]:
    """Write a schema for people, by name and type, and for pyarrow, exactly."""
    exact = base64.b64encode(schema.serialize().to_pybytes()).decode()
    return {"columns": {field.name: str(field.type) for field in schema}, "arrow": exact}


def decode_schema(written: dict[str, Any]) -> pa.Schema:
    """Read what `encode_schema` wrote."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(written["arrow"])))


def difference(before: Fingerprint, now: Fingerprint) -> str:
    """Say what differs between two runs; empty if nothing does."""
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return "; ".join(f"{name} was {before.get(name, 'not set')}, is {now.get(name, 'not set')}" for name in names)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
