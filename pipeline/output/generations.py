"""Generations: which results an output folder holds or is about to hold, and which of them a run goes on with.

Results of one fingerprint are a generation. More of the same adds to it. Overwriting begins the next one, whose parts have
names of their own, so that the results before it stay whole until the manifest names the new ones.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Self

import pyarrow as pa

from pipeline.errors import InputError
from pipeline.output.manifest import (
    MANIFEST_VERSION,
    OLDER_VERSION,
    Fingerprint,
    Manifest,
    decode_schema,
    difference,
    encode_schema,
    read_manifest,
)
from pipeline.output.parts import MANIFEST, RECEIPTS_FOLDER, generation_of
from pipeline.storage.locate import storage_of

RUN_FILE = "run.json"


@dataclass(frozen=True, slots=True)
class PendingRun:
    """A run that has begun and not published yet: the content of its `run.json`."""

    fingerprint: Fingerprint
    schema: pa.Schema
    """Columns of the parts."""
    overwrites: bool
    """Whether it was begun to replace earlier results."""

    def to_json(self) -> bytes:
        values = {"fingerprint": self.fingerprint, "schema": encode_schema(self.schema), "overwrites": self.overwrites}
        return json.dumps(values, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        values = json.loads(data)
        return cls(values["fingerprint"], decode_schema(values["schema"]), values["overwrites"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Generations:
    """What an output folder holds, by generation."""

    folder: str
    manifest: Manifest | None
    pending: Mapping[int, PendingRun]
    """Runs that have not published yet."""
    segments: Mapping[int, list[str]]
    """Paths of stored receipts that no manifest covers yet."""

    @classmethod
    def read(cls, folder: str) -> Self:
        """List what the folder holds."""
        storage, manifest = storage_of(folder), read_manifest(folder)
        pending: dict[int, PendingRun] = {}
        segments: dict[int, list[str]] = {}
        for entry in storage.walk(f"{folder}/{RECEIPTS_FOLDER}"):
            match = re.fullmatch(rf".*/g(\d+)/({RUN_FILE}|[0-9a-f]+-\d+\.parquet)", entry.path)
            if match and match[2] == RUN_FILE:
                data = storage.read(entry.path)
                if data is not None:
                    pending[int(match[1])] = PendingRun.from_json(data[0])
            elif match:
                segments.setdefault(int(match[1]), []).append(entry.path)
        ordered = {generation: sorted(paths) for generation, paths in segments.items()}
        return cls(folder=folder, manifest=manifest, pending=pending, segments=ordered)

    def with_current_manifest(self) -> Self:
        """Read the manifest again, which other drivers may have replaced."""
        return replace(self, manifest=read_manifest(self.folder))

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
        return max([self.published, *self.pending, *(generation_of(name) or 0 for name in self.part_names())])

    def part_names(self) -> Iterator[str]:
        """List the parts in the folder, of all generations."""
        return iter(storage_of(self.folder).names(self.folder, "part-"))

    def choose(self, fingerprint: Fingerprint, *, overwrite: bool) -> int:
        """Return the generation to go on with, or to begin; raise InputError if the folder holds other results."""
        same = [number for number, run in self.pending.items() if not difference(run.fingerprint, fingerprint)]
        if self.manifest and self.manifest.facts["version"] not in (OLDER_VERSION, MANIFEST_VERSION):
            raise self._refusal("holds results of another version of offramp; choose another folder")
        if overwrite:
            begun = [number for number in same if self.pending[number].overwrites and number >= self.published]
            return max(begun) if begun else self.newest() + 1
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
        """Write `run.json`, before the first part, if it is not there; raise InputError if another run's is."""
        storage, path = storage_of(self.folder), run_file(self.folder, generation)
        storage.make_folder(receipts_folder(self.folder, generation))
        if not storage.write_if(path, run.to_json(), None):
            existing = storage.read(path)
            if existing and difference(PendingRun.from_json(existing[0]).fingerprint, run.fingerprint):
                raise self._refusal("another run has begun to write there; choose another folder")
        return replace(self, pending={**self.pending, generation: run})

    def _refuse_if(self, difference: str) -> None:
        """Raise InputError if the results that are there differ from those of this run."""
        if difference:
            raise self._refusal(f"holds results of another run: {difference}. Choose another folder, or overwrite it")

    def _refusal(self, what: str) -> InputError:
        return InputError("output", f"{self.folder}: {what}")


def receipts_folder(folder: str, generation: int) -> str:
    """Return the folder of a generation's `run.json` and segments."""
    return f"{folder}/{RECEIPTS_FOLDER}/g{generation}"


def run_file(folder: str, generation: int) -> str:
    """Return the path of a generation's `run.json`, which is there from its first part until it is published."""
    return f"{receipts_folder(folder, generation)}/{RUN_FILE}"
