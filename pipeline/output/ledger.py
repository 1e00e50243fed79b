"""The ledger of an output folder: which shards are done, from which a stopped run resumes and a finished one is published.

    with Ledger(folder, fingerprint) as ledger:
        left = ledger.unfinished(corpus.files)     # path -> starts of the shards that are done
        ledger.begin(schema)
        ...                                        # write parts to ledger.output
        ledger.add(receipts)
        ledger.publish(seconds, {})

On a disk a lock keeps a second driver out. On S3 two drivers may run: no part is written over another, receipts are apart, and
whoever publishes last adds what the other one has published. Memory is O(shards), never O(rows).
"""

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa

from pipeline.corpus.listing import InputFile
from pipeline.errors import InputError, StorageError, UserError
from pipeline.output.generations import Generations, PendingRun, receipts_folder
from pipeline.output.manifest import MANIFEST_VERSION, Fingerprint, Manifest, read_manifest
from pipeline.output.parts import LOCK, MANIFEST, Output
from pipeline.output.publish import clean_up, list_shards, manifest_facts, remove_leftovers, write_manifest
from pipeline.output.receipt_log import (
    BATCH_ROWS,
    NO_SHARDS,
    ReceiptLog,
    ShardIds,
    are_among,
    distinct,
    parse_ids,
    part_ids,
    read_segments,
    shard_ids,
)
from pipeline.output.receipts import Receipt
from pipeline.output.shard_index import ShardIndex
from pipeline.output.totals import Totals
from pipeline.storage.base import is_remote
from pipeline.storage.local import lock_folder
from pipeline.storage.locate import storage_of

PUBLISH_TRIES = 10
"""A try fails only if another driver has published meanwhile."""


class Ledger:
    """Receipts of one output folder. Use as a context manager: it holds a lock, and stores receipts at its end."""

    def __init__(self, folder: str, fingerprint: Fingerprint, *, overwrite: bool = False) -> None:
        self.folder, self.fingerprint, self.overwrite = folder, fingerprint, overwrite
        self._resources = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Open or start the ledger; raise UserError if the folder holds results of another kind of run, or another driver."""
        with contextlib.ExitStack() as opening:
            self._locked = opening.enter_context(lock_folder(self.folder, LOCK))
            self._generations = Generations.read(self.folder)
            generation = self._generations.choose(self.fingerprint, overwrite=self.overwrite)
            if self._locked:
                remove_leftovers(self._generations)
            self._open(generation)
            self._resources = opening.pop_all()
            self._resources.callback(lambda: self._log.close())
        return self

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
        if generation in self._generations.pending:
            return self._generations.pending[generation].schema
        return self._own_manifest.schema if self._own_manifest else None

    def begin(self, schema: pa.Schema) -> None:
        """Record the run, before its first part is written; raise UserError if another driver runs something else."""
        run = PendingRun(self.fingerprint, schema, self.overwrite)
        self._generations = self._generations.begin(self.output.generation, run)

    def add(self, receipts: Sequence[Receipt]) -> None:
        """Record the finished shards of one part: within a second or so that is stored, and no run does them again.

        Raises StorageError if earlier ones could not be stored.
        """
        self._log.add(receipts)

    def flush(self) -> None:
        """Store all receipts now; raise StorageError if that fails."""
        self._log.flush()

    def totals(self) -> Totals:
        """Return the sum of all stored receipts, as of now."""
        return self._totals

    def unpublished(self) -> Totals:
        """Return the sum of what no manifest names yet, also of a run that was stopped or withheld."""
        return self._totals.beyond(self._own_manifest.facts["totals"] if self._own_manifest else {})

    def unfinished(self, files: list[InputFile], *, keep_gone: bool = True) -> dict[str, tuple[int, ...]]:
        """Return the files that still have work, by path, with the starts of their shards that are done.

        Raises UserError naming a file that changed since its shards were done, or, without `keep_gone`, one that is gone; when
        overwriting, all that was done is then left behind, and all files have work.
        """
        problem = self._index.outdated(files, self.folder, keep_gone=keep_gone)
        if problem and not self.overwrite:
            raise UserError(problem)
        if problem:
            self._open(self._generations.newest() + 1)
        return self._index.unfinished(files)

    def published(self) -> bool:
        """Return whether the manifest already names exactly these shards."""
        if self._own_manifest is None or len(self._lost):
            return False
        return int(self._own_manifest.facts["shards"]["rows"]) == len(self._index)

    def publish(self, seconds: float, checked: Mapping[str, object]) -> str:
        """Write the manifest, `checked` included, and return its location.

        From here on the results are valid, and what they replace is removed.

        Raises UserError if another driver has published something else meanwhile.
        """
        self.flush()
        for _ in range(PUBLISH_TRIES):
            before = self._generations.manifest
            done = self._try_to_publish(before, seconds, checked)
            self._generations = self._generations.with_current_manifest()
            if done:
                self._remove_list_of(before)
                self.finish()
                return f"{self.folder}/{MANIFEST}"
            self._check_still_wanted()
        raise StorageError(f"{self.folder}/{MANIFEST}: others replace it all the time")

    def finish(self) -> None:
        """Remove what a published result has no more use for; do nothing if that is done."""
        generation = self.output.generation
        if generation in self._generations.pending or generation in self._generations.segments:
            clean_up(self._generations, generation, self._log.segments, alone=self._locked)

    @property
    def _own_manifest(self) -> Manifest | None:
        """Manifest of this generation; None if it is not published."""
        return self._generations.manifest if self._generations.published == self.output.generation else None

    def _open(self, generation: int) -> None:
        """Go on with a generation, or begin it."""
        self.output = Output(self.folder, generation)
        self._totals, self._index, self._lost = Totals(), ShardIndex(), NO_SHARDS
        self._load()
        self._log = ReceiptLog(receipts_folder(self.folder, generation), self._on_stored)

    def _load(self) -> None:
        """Read which shards are done. Those whose parts were removed, or lost by a disk, do not count.

        Raises InputError if such a part is of an earlier version, which cut files into shards in another way.
        """
        sources = self._earlier_receipts()
        existing = None if is_remote(self.folder) or not sources else self._existing_parts()
        for table in distinct(sources):
            if existing is not None:
                mask = are_among(part_ids(table), existing)
                self._lost = np.concatenate([self._lost, shard_ids(table)[~mask]])
                table = table if mask.all() else table.filter(pa.array(mask))
            self._index.add_table(table)
            self._totals = self._totals.plus_table(table)
        if len(self._lost) and self._own_manifest and self._own_manifest.facts["version"] != MANIFEST_VERSION:
            raise InputError(
                "output", f"{self.folder}: was written by another version of offramp and lacks parts; overwrite it"
            )

    def _earlier_receipts(self) -> list[bytes]:
        """Read the receipts of this generation that the manifest names, and those that were found at the start.

        On a disk the latter go first: a shard whose part was lost may have been done again, and not been published yet.
        """
        published = [self._own_manifest.read_shards()] if self._own_manifest else []
        found = read_segments(self._generations.segments.get(self.output.generation, ()))
        return published + found if is_remote(self.folder) else found + published

    def _existing_parts(self) -> ShardIds:
        """List the parts that are there, ids ascending; on disks only, since S3 loses none, and lists a million in minutes."""
        ids, names = [NO_SHARDS], self._generations.part_names()
        while batch := list(itertools.islice(names, BATCH_ROWS)):
            ids.append(parse_ids(self.output.digests_of(batch)))
        return np.sort(np.concatenate(ids))

    def _on_stored(self, receipt: Receipt) -> None:
        """Count a receipt that is stored; called by the log's thread."""
        self._totals = self._totals.plus(receipt)
        self._index.add(receipt)

    def _try_to_publish(self, before: Manifest | None, seconds: float, checked: Mapping[str, object]) -> bool:
        """Publish all receipts; return False if another driver has published since `before` was read."""
        try:
            shards = list_shards(self._own_receipts(), self._earlier_receipts(), self._lost, self.output)
            self._totals = shards.totals
            generation = self.output.generation
            facts = manifest_facts(
                shards, self.fingerprint, self.schema, generation=generation, seconds=seconds, checked=checked
            )
            return write_manifest(self.folder, before, facts, shards)
        except StorageError:
            # A concurrent publisher may have deleted the list of shards that we were reading.
            now = read_manifest(self.folder)
            if (now and now.version) == (before and before.version):
                raise
            return False

    def _own_receipts(self) -> list[bytes]:
        """Read the receipts that this driver has stored; raise StorageError if some are gone."""
        segments = read_segments(self._log.segments)
        if len(segments) < len(self._log.segments):  # on S3, where two drivers may have inputs of their own
            raise StorageError(
                f"{self.folder}: another driver took receipts away; the same command does their shards again"
            )
        return segments

    def _remove_list_of(self, before: Manifest | None) -> None:
        """Remove the list of shards of the manifest that was replaced, unless the new one names it too."""
        now = self._generations.manifest
        if before is not None and now is not None and before.facts.get("shards") != now.facts["shards"]:
            storage_of(self.folder).delete([before.shards_path])

    def _check_still_wanted(self) -> None:
        """Raise InputError if another driver has published results that ours must not replace."""
        published, own = self._generations.published, self.output.generation
        other = published == own and self._generations.published_difference(self.fingerprint)
        if published > own or other:
            raise InputError("output", f"{self.folder}: another run has published other results there meanwhile")
