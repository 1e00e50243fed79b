"""Generations: which results an output folder holds or is about to hold, and which of them a run goes on with.

Results of one fingerprint are a generation. More of the same adds to it. Overwriting begins the next one, whose parts have
names of their own, so that the results before it stay whole until the manifest names the new ones.
"""

import json
import re
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import pyarrow as pa

from pipeline.errors import InputError
from pipeline.output.manifest import (
    SHARDS_NAME,
    SHARDS_PREFIX,
    DamagedNoteError,
    Fingerprint,
    Manifest,
    decode_schema,
    difference,
    encode_schema,
    parse_fingerprint,
    parsing,
    read_manifest,
    read_previous_manifest,
)
from pipeline.output.parts import MANIFEST, RECEIPTS_FOLDER, REJECTS_FOLDER, Output, generation_of
from pipeline.output.receipt_log import batches, count_shards, read_segments, receipts_in_parts
from pipeline.storage.locate import storage_of

RUN_FILE = "run.json"
NOTE_PATH = re.compile(rf"g([1-9][0-9]{{0,8}})/({RUN_FILE}|[0-9a-f]{{12}}-[0-9]{{6,9}}\.parquet)")
"""Path, in the folder of receipts, of a note of ours; what else is there is not touched."""
MAX_SECRET = 64
"""Longest secret of a run, in bytes: as long as keys of BLAKE2 may be."""
MAX_GENERATION = 999_999_999
"""Generation with as many digits as names of parts may have."""


@dataclass(frozen=True, slots=True)
class PendingRun:
    """A run that has begun and not published yet: the content of its `run.json`."""

    fingerprint: Fingerprint
    schema: pa.Schema
    """Columns of the parts."""
    overwrites: bool
    """Whether it was begun to replace earlier results."""
    secret: str = field(default_factory=lambda: secrets.token_hex(16))
    """What decides which rows the audit draws, beside their shard: nobody who supplies texts knows it. It is not published."""

    def to_json(self) -> bytes:
        values = {"fingerprint": self.fingerprint, "schema": encode_schema(self.schema), "overwrites": self.overwrites}
        values["secret"] = self.secret
        return json.dumps(values, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Parse what `to_json` returned; raise one of many errors, by `manifest.parsing`, for anything else."""
        values = json.loads(data)
        if not isinstance(values["overwrites"], bool):
            raise ValueError("overwrites is neither true nor false")
        schema, secret = decode_schema(values["schema"]), values.get("secret", "")  # there was none once
        if not isinstance(secret, str) or len(secret.encode()) > MAX_SECRET:
            raise ValueError("secret is no text, or a long one")
        return cls(parse_fingerprint(values["fingerprint"]), schema, values["overwrites"], secret)

    def difference(self, other: "PendingRun") -> str:
        """Describe how another run differs in what it writes; empty if it does not."""
        before, now = ({field.name: str(field.type) for field in run.schema} for run in (self, other))
        return difference(self.fingerprint, other.fingerprint) or difference(before, now)


@dataclass(frozen=True, slots=True, kw_only=True)
class Generations:
    """What an output folder holds, by generation."""

    folder: str
    manifest: Manifest | None
    pending: Mapping[int, PendingRun]
    """Runs that have not published yet."""
    segments: Mapping[int, list[str]]
    """Paths of stored receipts that no manifest covers yet."""
    version: str | None
    """Version of the file that holds the manifest, damaged or not; None without one."""
    damaged: Sequence[DamagedNoteError] = ()
    """What is wrong with notes that cannot be read, which keep everybody out who does not overwrite them."""
    begun: Collection[int] = ()
    """Generations that have a `run.json`, damaged or not."""

    @classmethod
    def read(cls, folder: str) -> Self:
        """List what the folder holds; raise UserError if it holds results of another version of offramp."""
        storage, damaged = storage_of(folder), []
        manifest, version = None, None
        try:
            manifest = read_manifest(folder)
            version = manifest.version if manifest else None
        except DamagedNoteError as error:
            damaged.append(error)
            there = storage.stat(f"{folder}/{MANIFEST}")
            version = there.version if there else None
        pending: dict[int, PendingRun] = {}
        segments: dict[int, list[str]] = {}
        begun = []
        for entry in storage.walk(f"{folder}/{RECEIPTS_FOLDER}"):
            match = NOTE_PATH.fullmatch(entry.path.removeprefix(f"{folder}/{RECEIPTS_FOLDER}/"))
            if match and match[2] == RUN_FILE:
                begun.append(int(match[1]))
                data = storage.read(entry.path)
                try:
                    if data is not None:
                        pending[int(match[1])] = _parse_run(entry.path, data[0], manifest, int(match[1]))
                except DamagedNoteError as error:
                    damaged.append(error)
            elif match:
                segments.setdefault(int(match[1]), []).append(entry.path)
        return cls(
            folder=folder,
            manifest=manifest,
            pending=pending,
            segments={generation: sorted(paths) for generation, paths in segments.items()},
            version=version,
            damaged=damaged,
            begun=begun,
        )

    def with_current_manifest(self) -> Self:
        """Read the manifest again, which other drivers may have replaced."""
        manifest = read_manifest(self.folder)
        return replace(self, manifest=manifest, version=manifest.version if manifest else None)

    def may_be_restored(self) -> bool:
        """Return whether the manifest may be an earlier one, put back by hand: then a later list of shards may be there.

        So it looks as well until a second manifest is published, and after a run that was killed as it published.
        """
        previous = read_previous_manifest(self.folder)
        return self.manifest is not None and (previous is None or previous.has_list_of(self.manifest))

    @property
    def published(self) -> int:
        """Generation that the manifest names; 0 without one."""
        return self.manifest.generation if self.manifest else 0

    def published_difference(self, fingerprint: Fingerprint) -> str:
        """Describe how the published results differ from a fingerprint; empty if they do not, or if there are none."""
        return difference(self.manifest.fingerprint, fingerprint) if self.manifest else ""

    def goes_on_from(self, *, overwrite: bool) -> Fingerprint:
        """Return the fingerprint of the results that a run would go on with; an empty one if it would begin anew."""
        begun = self.pending[max(self.pending)] if self.pending else None
        if self.manifest and not overwrite:
            return self.manifest.fingerprint
        return begun.fingerprint if begun and begun.overwrites >= overwrite else {}

    def newest(self) -> int:
        """Return the highest generation of which anything is there; 0 if nothing is."""
        parts = (generation_of(name) or 0 for name in self.part_names())
        return max([self.published, *self.begun, *self.segments, *parts])

    def next_one(self) -> int:
        """Return the generation after all that anything is there of; raise InputError if that has no name."""
        newest = self.newest()
        if newest >= MAX_GENERATION:
            raise self._refusal(f"holds parts of generation {newest}, which is the last; choose another folder")
        return newest + 1

    def part_names(self) -> Iterator[str]:
        """List the parts in the folder, of all generations."""
        return iter(storage_of(self.folder).names(self.folder, "part-"))

    def choose(self, fingerprint: Fingerprint, *, overwrite: bool) -> int:
        """Return the generation to go on with, or to begin; raise InputError if the folder holds other results."""
        same = [number for number, run in self.pending.items() if not difference(run.fingerprint, fingerprint)]
        if overwrite:
            begun = [number for number in same if self.pending[number].overwrites and number >= self.published]
            return max(begun) if begun else self.next_one()
        if self.damaged:
            raise self.damaged[0]
        if self.manifest:
            self._refuse_if(self.published_difference(fingerprint))
            return self.published
        if same:
            return max(same)
        if self.pending:
            self._refuse_if(difference(self.pending[max(self.pending)].fingerprint, fingerprint))
        if next(self.part_names(), None) is not None:
            raise self._refusal(f"holds parts but no {MANIFEST}; choose another folder, or overwrite it")
        return 1

    def begin(self, generation: int, run: PendingRun) -> Self:
        """Write `run.json`, before the first part, or go on with one that is there; raise InputError if another run's is."""
        storage, path = storage_of(self.folder), run_file(self.folder, generation)
        storage.make_folder(receipts_folder(self.folder, generation))
        if not storage.write_if(path, run.to_json(), None):
            existing = storage.read(path)
            other = _parse_run(path, existing[0], self.manifest, generation) if existing else run
            if differs := other.difference(run):
                raise self._refusal(f"another run has begun to write there: {differs}; choose another folder")
            run = other
        return replace(self, pending={**self.pending, generation: run}, begun={*self.begun, generation})

    def _refuse_if(self, difference: str) -> None:
        """Raise InputError if the results that are there differ from those of this run."""
        if difference:
            raise self._refusal(f"holds results of another run: {difference}. Choose another folder, or overwrite it")

    def _refusal(self, what: str) -> InputError:
        return InputError("output", f"{self.folder}: {what}")


def _parse_run(path: str, data: bytes, manifest: Manifest | None, generation: int) -> PendingRun:
    """Parse a `run.json`; raise DamagedNoteError if it is none."""
    published = manifest is not None and manifest.generation == generation
    with parsing(path, data, f"remove it, as {MANIFEST} says the same" if published else ""):
        return PendingRun.from_json(data)


def receipts_folder(folder: str, generation: int) -> str:
    """Return the folder of a generation's `run.json` and segments."""
    return f"{folder}/{RECEIPTS_FOLDER}/g{generation}"


def run_file(folder: str, generation: int) -> str:
    """Return the path of a generation's `run.json`, which is there from its first part until it is published."""
    return f"{receipts_folder(folder, generation)}/{RUN_FILE}"


@dataclass(frozen=True, slots=True)
class FoundReceipts:
    """Receipts of a generation that its manifest does not cover."""

    data: list[bytes]
    remarks: list[str]
    """Lines on what was damaged."""


def read_found_receipts(generations: Generations, output: Output) -> FoundReceipts:
    """Read the segments of a generation, and lists of shards that no manifest names; for damaged segments, its parts."""
    segments = read_segments(generations.segments.get(output.generation, ()))
    recovered = receipts_in_parts(output.folder, output.names()) if segments.damaged else []
    remarks = [f"{path}: is damaged; what it said is taken from the parts" for path in segments.damaged]
    lists = _unnamed_lists(generations, output) if generations.may_be_restored() else []
    return FoundReceipts(segments.whole + lists + recovered, remarks)


def _unnamed_lists(generations: Generations, output: Output) -> list[bytes]:
    """Read the lists of shards of a generation that its manifest does not name."""
    folder, named = output.folder, generations.manifest.shards_path if generations.manifest else ""
    names = [name for name in storage_of(folder).names(folder, SHARDS_PREFIX) if SHARDS_NAME.fullmatch(name)]
    found = read_segments(f"{folder}/{name}" for name in names if f"{folder}/{name}" != named)
    return [data for data in found.whole if all(output.owns(table["part"]) for table in batches([data], ["part"]))]


def recover_list(manifest: Manifest, output: Output) -> list[bytes]:
    """Read published receipts from the parts; raise DamagedNoteError if they tell of fewer shards than the manifest."""
    published = manifest.facts["shards"]["rows"]
    recovered = receipts_in_parts(output.folder, output.names())
    if count_shards(recovered) < published:  # their rejects may tell which parts are gone, whose shards are then lost
        recovered += receipts_in_parts(f"{output.folder}/{REJECTS_FOLDER}", output.names(REJECTS_FOLDER))
    if (count := count_shards(recovered)) < published:
        what = f"is gone or damaged, and the parts that are left tell of {count:,} of its {published:,} shards"
        raise DamagedNoteError(manifest.shards_path, what, "bring it or them back")
    return recovered
