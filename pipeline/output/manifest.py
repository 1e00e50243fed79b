"""The manifest: `_manifest.json`, and the list of shards, a Parquet file that the manifest names with its digest.

The list is a file of its own for results of any size, so that there is one way to read it: a million shards would make a JSON
file of hundreds of MB, while a reader of totals wants a kilobyte, and one of shards wants columns. It is named after its
content and never changes, and the manifest is replaced atomically, so the two always fit. The manifest that was replaced last
stays beside it, as PREVIOUS_MANIFEST, and so does its list.

Whoever may write to the folder may have written any of it. So a document is checked where it is parsed: names in it are those
of our own files in this very folder, or it is damaged.
"""

import base64
import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.errors import InputError, UserError, one_line
from pipeline.nights import Night
from pipeline.output.parts import MANIFEST, PREVIOUS_MANIFEST, generation_of
from pipeline.output.receipt_log import check_receipts
from pipeline.predicted import Predicted
from pipeline.storage.locate import storage_of

MANIFEST_VERSION = 4
OLDER_VERSION = 3
"""Version of older manifests that are read as well, in which every shard has a part of its own, named after it."""
SHARDS_PREFIX = "_shards-"
SHARDS_NAME = re.compile(r"_shards-[0-9a-f]{16}\.parquet")
"""Name of a list of shards: the first digits of its digest."""
PART, REJECTS_PART = "part", "rejects_part"
"""Columns of the list of shards, which has the receipts: paths of a shard's part and of its rejects, relative to the folder."""
PREDICTIONS, NEW_PREDICTIONS = "predictions", "new_predictions"
"""Keys of what is predicted of all rows, and of those that the manifest before did not have, by `Predicted.to_json`."""
NIGHTS = "nights"
"""Key of what this manifest and those before it added, the oldest first, each by `nights.Night`."""
EXPECTED_DISAGREEMENT = "expected_disagreement"
"""Key of the disagreement that the calibration lets one expect of tonight's rows, where a calibration chose the thresholds."""
HARD_ROWS = "hard_rows"
"""Key of tonight's rows that go deep beside those of the calibration, likewise."""
Fingerprint = dict[str, str]
"""What decides the results, by name: model, tokenizer, criterion, columns, schema, code version."""
AGAIN = "the command that wrote the folder makes it again"


class DamagedNoteError(InputError):
    """Raised for a note in an output folder that is cut, foreign or gone; the message names the file and what to do."""

    def __init__(self, path: str, what: str, instead: str = "") -> None:
        """Take what is wrong with the note at this path, and what may be done `instead` of starting over."""
        super().__init__("output", f"{path}: {what}; {f'{instead}, or ' * bool(instead)}start over with `overwrite`")
        self.path, self.what = path, what


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

    def predicted(self, key: str) -> Predicted | None:
        """Return what was predicted of all rows (PREDICTIONS), or the new ones (NEW_PREDICTIONS); None if it is not counted."""
        return Predicted.from_json(self.facts[key]) if key in self.facts else None

    @property
    def nights(self) -> list[Night]:
        """What this manifest and those before it added; one night in all where an earlier version did not keep them."""
        if NIGHTS in self.facts:
            return [Night.from_json(night) for night in self.facts[NIGHTS]]
        totals, published = self.facts["totals"], str(self.facts.get("published", ""))
        return [Night.of(totals, published=published, drift={}, classes={})]

    @property
    def shards_path(self) -> str:
        """Path of the list of shards."""
        return f"{self.folder}/{self.facts['shards']['path']}"

    def read_shards(self) -> bytes:
        """Read the list of shards, a Parquet file by `receipts.RECEIPTS`; raise DamagedNoteError if it is gone or damaged."""
        data = storage_of(self.folder).read(self.shards_path)
        if data is None:
            raise DamagedNoteError(self.shards_path, f"is gone, though {MANIFEST} names it", AGAIN)
        if digest_of(data[0]) != self.facts["shards"]["digest"]:
            raise DamagedNoteError(self.shards_path, f"is not what {MANIFEST} was written for", AGAIN)
        with parsing(self.shards_path, data[0], AGAIN):
            check_receipts(data[0])
        return data[0]

    def has_list_of(self, other: "Manifest | None") -> bool:
        """Return whether another manifest names the same list of shards."""
        return other is not None and self.facts["shards"]["path"] == other.facts["shards"]["path"]


def read_manifest(folder: str, name: str = MANIFEST) -> Manifest | None:
    """Read the manifest of an output folder; None if nothing has been published there.

    Raises DamagedNoteError if it is no manifest of ours, and UserError if it is that of another version of offramp.
    """
    path = f"{folder}/{name}"
    data = storage_of(folder).read(path)
    if data is None:
        return None
    try:
        with parsing(path, data[0]):
            facts = dict(json.loads(data[0]))
            if type(facts["version"]) is not int or facts["version"] < 1:
                raise ValueError("no version")
            if facts["version"] in (OLDER_VERSION, MANIFEST_VERSION):
                _check(facts)
                return Manifest(folder=folder, version=data[1], facts=facts)
    except DamagedNoteError as error:
        raise DamagedNoteError(path, error.what, _instead_of_manifest(folder) if name == MANIFEST else "") from error
    raise UserError(f"{folder}: holds results of another version of offramp; choose another folder")


def _instead_of_manifest(folder: str) -> str:
    """Say what may stand in for a damaged manifest: the previous one, if its parts were not overwritten since."""
    previous = read_previous_manifest(folder)
    newest = max((generation_of(name) or 0 for name in storage_of(folder).names(folder, "part-")), default=0)
    stands = previous is not None and previous.generation == newest
    return f"put {PREVIOUS_MANIFEST}, the one before it, in its stead" if stands else ""


def read_previous_manifest(folder: str) -> Manifest | None:
    """Read the manifest that was replaced last; None if there is none that can be read."""
    try:
        return read_manifest(folder, PREVIOUS_MANIFEST)
    except UserError:
        return None


@contextlib.contextmanager
def parsing(path: str, data: bytes, instead: str = "") -> Iterator[None]:
    """Parse a note in the block; whatever it raises becomes a DamagedNoteError that names the note's path."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError, pa.ArrowException) as error:
        what = "is empty" if not data else f"is damaged or not ours ({one_line(error, with_type=True, limit=100)})"
        raise DamagedNoteError(path, what, instead) from error


def _check(facts: dict[str, Any]) -> None:
    """Raise one of many errors if a field of a manifest that we read is not of its form."""
    shards, generation = facts["shards"], facts.get("generation", 1)
    if not SHARDS_NAME.fullmatch(shards["path"]):
        raise ValueError("the name of its list of shards is not one of ours")
    if type(shards["rows"]) is not int or type(generation) is not int or generation < 1 or shards["rows"] < 0:
        raise ValueError("no number of shards, or no generation")
    if not re.fullmatch("[0-9a-f]{32}", shards["digest"]) or not isinstance(facts["totals"], dict):
        raise ValueError("no digest, or no totals")
    parse_fingerprint(facts["fingerprint"])
    for key in (PREDICTIONS, NEW_PREDICTIONS):
        if key in facts:
            Predicted.from_json(facts[key])
    totals = facts["totals"]
    Night.of(totals, published="", drift={}, classes={}).check()
    for night in facts.get(NIGHTS, []):
        Night.from_json(night)
    for counts in (totals.get("label_counts", []), totals.get("score_histogram", []), [totals.get("rows_out", 0)]):
        if not isinstance(counts, list) or not all(type(count) is int for count in counts):
            raise ValueError("no counts of predictions")
    decode_schema(facts["schema"])


def parse_fingerprint(value: Any) -> Fingerprint:
    """Return the fingerprint in a note; raise ValueError if it is none."""
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError("no fingerprint")
    return dict(value)


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
