"""The memory of a run: receipts in segments, from which a stopped run resumes, and the manifest that publishes its result.

    _receipts/g<n>/run.json         what a run that has not ended yet is: fingerprint and schema; written once, if there is none
    _receipts/g<n>/<driver>-*       its receipts, by `pipeline.journal`
    _shards-<digest>.parquet        published receipts, named by the manifest
    _manifest.json                  written last and at once; a reader trusts it and nothing else

Results of one fingerprint are a generation, <n>. More of the same adds to it; `--overwrite` begins the next one, whose parts
have names of their own, so that the results before it stay whole until the manifest tells of the new ones, and go only then. On
a disk a lock keeps a second driver out. On S3 two drivers may run: parts are the same whoever writes them, receipts are apart,
and whoever publishes last adds what the other has published. State is O(shards), never O(rows).
"""

import contextlib
import itertools
import re
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.listing import InputFile
from pipeline.errors import InputError, StorageError, UserError
from pipeline.output.manifest import (
    MANIFEST_VERSION,
    SHARDS,
    SHARDS_PREFIX,
    Fingerprint,
    Manifest,
    PendingRun,
    difference,
    encode_schema,
    read_manifest,
    totals_as_facts,
    with_parts,
    write_manifest,
)
from pipeline.output.parts import LOCK, MANIFEST, RECEIPTS_FOLDER, REJECTS_FOLDER, Output, generation_of
from pipeline.output.receipt_log import (
    BATCH_ROWS,
    NO_SHARDS,
    Journal,
    ShardNames,
    are_among,
    as_numbers,
    distinct,
    read_segments,
    shard_names,
)
from pipeline.output.receipts import Receipt
from pipeline.output.shard_index import ShardIndex
from pipeline.output.totals import Totals
from pipeline.storage.base import is_remote
from pipeline.storage.local import lock_folder
from pipeline.storage.locate import storage_of
from pipeline.version import versions

RUN_FILE = "run.json"
PUBLISH_TRIES = 10
"""Each of them fails only if another driver has published in between."""


class Ledger:
    """Receipts of one output folder. Use as a context manager: it holds a lock, and stores receipts at its end."""

    def __init__(self, folder: str, fingerprint: Fingerprint, *, overwrite: bool = False) -> None:
        self.folder, self.fingerprint, self.overwrite = folder, fingerprint, overwrite
        self.storage = storage_of(folder)
        self._resources = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Open or start the ledger; raise UserError if the folder holds results of another kind of run, or another driver."""
        with contextlib.ExitStack() as opening:
            locked = opening.enter_context(lock_folder(self.folder, LOCK))
            self._manifest = read_manifest(self.folder)
            self._runs, self._segments = self._read_runs()
            generation = self._choose_generation()
            if locked:
                self._remove_leftovers()
            self._open(generation)
            self._resources = opening.pop_all()
            self._resources.callback(lambda: self._journal.close())
        return self

    def _open(self, generation: int) -> None:
        """Go on with a generation, or begin it."""
        self.output = Output(self.folder, generation)
        self._totals, self._index, self._lost = Totals(), ShardIndex(), NO_SHARDS
        self._load()
        self._journal = Journal(self._place(generation), self._keep)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # All that matters was stored before: by `publish`, or, after a stop, as far as the storage let us.
        with contextlib.suppress(StorageError):
            self._resources.close()

    @property
    def schema(self) -> pa.Schema | None:
        """Columns of the parts, if there is a run to go on with, or results to add to."""
        generation = self.output.generation
        if generation in self._runs:
            return self._runs[generation].schema
        return self._manifest.schema if self._published_generation() == generation and self._manifest else None

    def begin(self, schema: pa.Schema) -> None:
        """Note what the run is, before its first part is written; raise UserError if another driver runs something else."""
        place = self._place(self.output.generation)
        self.storage.make_folder(place)
        mine = PendingRun(self.fingerprint, schema, self.overwrite)
        if not self.storage.write_if(f"{place}/{RUN_FILE}", mine.to_json(), None):
            there = self.storage.read(f"{place}/{RUN_FILE}")
            if there and difference(PendingRun.from_json(there[0]).fingerprint, self.fingerprint):
                raise InputError(
                    "output", f"{self.folder}: another run has begun to write there; choose another folder"
                )
        self._runs[self.output.generation] = mine

    def add(self, receipt: Receipt) -> None:
        """Take note of a finished shard: within a second or so it is stored, and no run does it again.

        Raises StorageError if earlier ones could not be stored.
        """
        self._journal.add(receipt)

    def flush(self) -> None:
        """Store all receipts now; raise StorageError if that fails."""
        self._journal.flush()

    def totals(self) -> Totals:
        """Return the sum of all stored receipts, as of now."""
        return self._totals

    def unpublished(self) -> Totals:
        """What no manifest tells of yet: tonight's receipts added up, also of a run that was stopped or withheld."""
        same = self._manifest is not None and self._published_generation() == self.output.generation
        return self._totals.beyond(self._manifest.facts["totals"] if same and self._manifest else {})

    def unfinished(self, files: list[InputFile], *, keep_gone: bool = True) -> dict[str, tuple[int, ...]]:
        """Return the files that still have work, by path, with the starts of their shards that are done.

        Raises UserError naming a file that changed since its shards were done, or, without `keep_gone`, one that is no more;
        with `overwrite` what was done is then left behind, and all files have work.
        """
        problem = self._index.outdated(files, self.folder, keep_gone=keep_gone)
        if problem and not self.overwrite:
            raise UserError(problem)
        if problem:
            self._open(self._newest_generation() + 1)
        return self._index.unfinished(files)

    def published(self) -> bool:
        """Say whether the manifest already tells of exactly these shards."""
        if self._manifest is None or self._published_generation() != self.output.generation or len(self._lost):
            return False
        return int(self._manifest.facts["shards"]["rows"]) == len(self._index)

    def publish(self, seconds: float, checked: Mapping[str, object]) -> str:
        """Write the manifest, with what was checked, and return its location.

        The results are valid from here on, and what they replace goes.

        Raises UserError if another driver has published something else meanwhile.
        """
        self.flush()
        for _ in range(PUBLISH_TRIES):
            replaced = self._manifest
            try:
                done = self._try_to_publish(replaced, seconds, checked)
            except StorageError:
                newer_manifest = read_manifest(self.folder)  # whoever has published takes away what the last one named
                if (newer_manifest and newer_manifest.version) == (replaced and replaced.version):
                    raise
                done = False
            if done:
                self._manifest = read_manifest(self.folder)
                assert self._manifest is not None
                if replaced is not None and replaced.facts.get("shards") != self._manifest.facts["shards"]:
                    self.storage.delete([f"{self.folder}/{replaced.facts['shards']['path']}"])
                self.finish()
                return f"{self.folder}/{MANIFEST}"
            self._manifest = read_manifest(self.folder)
            newer = self._published_generation() or 0
            if newer > self.output.generation or (newer == self.output.generation and self._differs()):
                raise InputError("output", f"{self.folder}: another run has published other results there meanwhile")
        raise StorageError(f"{self.folder}/{MANIFEST}: others replace it all the time")

    def finish(self) -> None:
        """Remove what a published result has no more use for; does nothing if that is done."""
        generation = self.output.generation
        if generation not in self._runs and generation not in self._segments:
            return
        if generation > 1:
            for place in (self.folder, f"{self.folder}/{REJECTS_FOLDER}"):
                old = (n for n in self.storage.names(place, "part-") if (generation_of(n) or generation) < generation)
                self.storage.delete(f"{place}/{name}" for name in old)
            self.storage.delete(p for g, paths in self._segments.items() if g < generation for p in paths)
            self.storage.delete(f"{self._place(g)}/{RUN_FILE}" for g in self._runs if g < generation)
        self.storage.delete([*self._segments.get(generation, ()), *self._journal.segments])
        self.storage.delete(
            [f"{self._place(generation)}/{RUN_FILE}"]
        )  # last: as long as it is there, there is work to do

    def _published_generation(self) -> int | None:
        return self._manifest.generation if self._manifest else None

    def _differs(self) -> str:
        return difference(self._manifest.fingerprint, self.fingerprint) if self._manifest else ""

    def _published_shards(self) -> list[bytes]:
        """Read the receipts that the manifest names, if it tells of this generation."""
        return (
            [self._manifest.read_shards()]
            if self._manifest and self._manifest.generation == self.output.generation
            else []
        )

    def _place(self, generation: int) -> str:
        return f"{self.folder}/{RECEIPTS_FOLDER}/g{generation}"

    def _read_runs(self) -> tuple[dict[int, PendingRun], dict[int, list[str]]]:
        """Find the runs that have not ended, and the segments of each generation."""
        runs: dict[int, PendingRun] = {}
        segments: dict[int, list[str]] = {}
        for entry in self.storage.walk(f"{self.folder}/{RECEIPTS_FOLDER}"):
            found = re.fullmatch(rf".*/g(\d+)/({RUN_FILE}|[0-9a-f]+-\d+\.parquet)", entry.path)
            if found and found[2] == RUN_FILE:
                data = self.storage.read(entry.path)
                if data is not None:
                    runs[int(found[1])] = PendingRun.from_json(data[0])
            elif found:
                segments.setdefault(int(found[1]), []).append(entry.path)
        return runs, {generation: sorted(paths) for generation, paths in segments.items()}

    def _choose_generation(self) -> int:
        """Find the generation to go on with, or to begin; raise UserError if there are other results."""
        published = self._published_generation() or 0
        same = [g for g, run in self._runs.items() if not difference(run.fingerprint, self.fingerprint)]
        if self._manifest and self._manifest.facts["version"] != MANIFEST_VERSION:
            raise InputError(
                "output", f"{self.folder}: holds results of another version of offramp; choose another folder"
            )
        if self.overwrite:
            begun = [g for g in same if self._runs[g].overwrites and g >= published]
            return max(begun) if begun else self._newest_generation() + 1
        if published:
            self._refuse(self._differs())
            return published
        if same:
            return max(same)
        if self._runs:
            self._refuse(difference(self._runs[max(self._runs)].fingerprint, self.fingerprint))
        if next(iter(self._part_names()), None) is not None:
            raise InputError(
                "output", f"{self.folder}: holds parts but no {MANIFEST}; choose another folder, or overwrite it"
            )
        return 1

    def _newest_generation(self) -> int:
        """Return the highest generation of which anything is there; 0 if nothing is."""
        return max(
            [self._published_generation() or 0, *self._runs, *(generation_of(n) or 0 for n in self._part_names())]
        )

    def _refuse(self, what: str) -> None:
        if what:
            raise InputError(
                "output", f"{self.folder}: holds results of another run: {what}. Choose another folder, or overwrite it"
            )

    def _part_names(self) -> Iterable[str]:
        return self.storage.names(self.folder, "part-")

    def _load(self) -> None:
        """Read what is done. Shards whose parts have been taken away, or lost by a disk, count for nothing."""
        sources = read_segments(self._segments.get(self.output.generation, ()))
        sources += self._published_shards()
        there = None if is_remote(self.folder) or not sources else self._parts_there()
        for table in distinct(sources):
            if there is not None:
                mask = are_among(shard_names(table), there)
                self._lost = np.concatenate([self._lost, shard_names(table)[~mask]])
                table = table if mask.all() else table.filter(pa.array(mask))
            self._index.add_table(table)
            self._totals = self._totals.plus_table(table)

    def _parts_there(self) -> ShardNames:
        """List the parts of this generation, in order. Not for S3: what was put stays, and a million names take minutes."""
        found, names = [NO_SHARDS], iter(self._part_names())
        while batch := list(itertools.islice(names, BATCH_ROWS)):
            found.append(as_numbers(self.output.shards_of(batch)))
        return np.sort(np.concatenate(found))

    def _keep(self, receipt: Receipt) -> None:
        self._totals = self._totals.plus(receipt)
        self._index.add(receipt)

    def _try_to_publish(self, replaced: Manifest | None, seconds: float, checked: Mapping[str, object]) -> bool:
        """Put all receipts together, our own, those found at the start and those published, and write them and the manifest."""
        mine = read_segments(self._journal.segments)
        if len(mine) < len(self._journal.segments):  # of two drivers with other inputs, on S3
            raise StorageError(
                f"{self.folder}: another driver took receipts away; the same command does their shards again"
            )
        older = read_segments(self._segments.get(self.output.generation, ())) + self._published_shards()
        totals, index, sink, rows = Totals(), ShardIndex(), pa.BufferOutputStream(), 0
        lost = np.setdiff1d(self._lost, np.concatenate([NO_SHARDS, *(shard_names(table) for table in distinct(mine))]))
        with pq.ParquetWriter(sink, SHARDS, compression="zstd") as writer:
            for table in distinct([*mine, *older], lost):
                totals = totals.plus_table(table)
                index.add_table(table)
                writer.write_table(with_parts(table, self.output))
                rows += len(table)
        run = self._runs.get(self.output.generation)
        facts: dict[str, Any] = {
            "generation": self.output.generation,
            "fingerprint": self.fingerprint,
            "schema": encode_schema(run.schema if run else self.schema),
            "files": len(list(index.files)),
            **totals_as_facts(totals),
            "seconds": round(seconds, 3),
            **checked,
            "published": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": versions(),
        }
        self._totals = totals
        return write_manifest(self.folder, replaced, facts, sink.getvalue().to_pybytes(), rows)

    def _remove_leftovers(self) -> None:
        """Remove what killed drivers left behind: temporary files, and lists of shards that no manifest names."""
        if is_remote(self.folder):
            return
        places = [self.folder, f"{self.folder}/{REJECTS_FOLDER}", *(self._place(g) for g in self._runs)]
        for place in places:
            names = self.storage.names(place, ".")
            self.storage.delete(f"{place}/{name}" for name in names if name.endswith(".tmp"))
        named = self._manifest.facts.get("shards", {}).get("path") if self._manifest else None
        lists = self.storage.names(self.folder, SHARDS_PREFIX)
        self.storage.delete(f"{self.folder}/{name}" for name in lists if name != named)
