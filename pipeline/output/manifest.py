"""The manifest: `_manifest.json`, and the list of shards, a Parquet file that the manifest names with its digest.

The list is a file of its own for results of any size, so that there is one way to read it: a million shards would make a JSON
file of hundreds of MB, while a reader of totals wants a kilobyte, and one of shards wants columns. It is named after its
content and never changes, and the manifest is replaced atomically, so the two always fit.
"""

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.errors import StorageError
from pipeline.output.parts import MANIFEST
from pipeline.storage.locate import storage_of

MANIFEST_VERSION = 4
OLDER_VERSION = 3
"""Version of older manifests that are read as well, in which every shard has a part of its own, named after it."""
SHARDS_PREFIX = "_shards-"
PART, REJECTS_PART = "part", "rejects_part"
"""Columns of the list of shards, which has the receipts: paths of a shard's part and of its rejects, relative to the folder."""
Fingerprint = dict[str, str]
"""What decides the results, by name: model, tokenizer, criterion, columns, schema, code version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A published result."""

    folder: str
    version: str
    """Version of the file in storage, which lets a driver replace exactly this manifest and no newer one."""
    facts: dict[str, Any]
    """The JSON document."""

    @property
    def generation(self) -> int:
        """Generation of the results: 1, or more after overwriting."""
        return int(self.facts.get("generation", 1))

    @property
    def fingerprint(self) -> Fingerprint:
        """Fingerprint of the run that made the results."""
        return dict(self.facts["fingerprint"])

    @property
    def schema(self) -> pa.Schema:
        """Columns of the parts."""
        return decode_schema(self.facts["schema"])

    @property
    def shards_path(self) -> str:
        """Path of the list of shards."""
        return f"{self.folder}/{self.facts['shards']['path']}"

    def read_shards(self) -> bytes:
        """Read the list of shards, a Parquet file by `receipts.RECEIPTS`; raise StorageError if it is gone or damaged."""
        data = storage_of(self.folder).read(self.shards_path)
        if data is None:
            raise StorageError(f"{self.shards_path}: is gone, though {MANIFEST} names it")
        if digest_of(data[0]) != self.facts["shards"]["digest"]:
            raise StorageError(f"{self.shards_path}: is not what {MANIFEST} was written for")
        return data[0]


def read_manifest(folder: str) -> Manifest | None:
    """Read the manifest of an output folder; None if nothing has been published there."""
    data = storage_of(folder).read(f"{folder}/{MANIFEST}")
    return None if data is None else Manifest(folder=folder, version=data[1], facts=json.loads(data[0]))


def encode_schema(schema: pa.Schema) -> dict[str, Any]:
    """Encode a schema for JSON: names and types for people, and the exact bytes for pyarrow."""
    exact = base64.b64encode(schema.serialize().to_pybytes()).decode()
    return {"columns": {field.name: str(field.type) for field in schema}, "arrow": exact}


def decode_schema(encoded: dict[str, Any]) -> pa.Schema:
    """Decode what `encode_schema` returned."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(encoded["arrow"])))


def difference(before: Fingerprint, now: Fingerprint) -> str:
    """Describe how two fingerprints differ: "criterion was entropy 0.1, is entropy 0.2"; empty if they are equal."""
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return "; ".join(f"{name} was {before.get(name, 'not set')}, is {now.get(name, 'not set')}" for name in names)


def digest_of(data: bytes) -> str:
    """Return the digest by which a manifest names its list of shards: blake2b, 32 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()
