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
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Self

import pyarrow as pa

from pipeline.corpus.folders.delta import check_rewritten
from pipeline.corpus.listing import Corpus, InputFile
from pipeline.errors import InputError, StorageError, UserError
from pipeline.nights import Night
from pipeline.output.generations import (
    Generations,
    PendingRun,
    read_found_receipts,
    receipts_folder,
    recover_list,
)
from pipeline.output.manifest import (
    MANIFEST_VERSION,
    NEW_PREDICTIONS,
    NIGHTS,
    PREDICTIONS,
    DamagedNoteError,
    Fingerprint,
    Manifest,
    read_previous_manifest,
)
from pipeline.output.parts import LOCK, MANIFEST, TIME_FORMAT, Output
from pipeline.output.publish import (
    check_accounted_for,
    clean_up,
    list_shards,
    manifest_facts,
    nights_of,
    predicted,
    predicted_facts,
    remove_leftovers,
    remove_list,
    write_manifest,
)
from pipeline.output.receipt_log import ReceiptLog, batches, read_segments
from pipeline.output.receipts import Receipt
from pipeline.output.shard_index import StoredParts, take_inventory
from pipeline.output.totals import Totals
from pipeline.predicted import NO_BINS, Comparison, PredictionBins
from pipeline.storage.base import is_remote
from pipeline.storage.local import lock_folder

PUBLISH_TRIES = 10
"""A try fails only if another driver has published meanwhile."""


class Ledger:
    """Receipts of one output folder. Use as a context manager: it holds a lock, and stores receipts at its end."""

    def __init__(
        self,
        folder: str,
        fingerprint: Fingerprint,
        *,
        overwrite: bool = False,
        follow: Callable[[], None] = lambda: None,
    ) -> None:
        """Take the folder and what is to be in it; `follow` brings what others read by to the manifest.

        It is called whenever a manifest is in, before what that replaced is removed.
        """
        self.folder, self.fingerprint, self.overwrite = folder, fingerprint, overwrite
        self._follow = follow
        self.remarks: list[str] = []
        """Lines on what was found lost or damaged, and how it was made good."""
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

    def begin(self, schema: pa.Schema) -> str:
        """Record the run, before its first part is written, and return its secret; go on with one that was begun.

        Raises UserError if another driver runs something else.
        """
        run = PendingRun(self.fingerprint, schema, self.overwrite)
        self._generations = self._generations.begin(self.output.generation, run)
        return self._generations.pending[self.output.generation].secret

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
        return self._published.merged(self._unpublished)

    def unpublished(self) -> Totals:
        """Return the sum of what no manifest names yet, also of a run that was stopped or withheld."""
        return self._unpublished

    def unfinished(self, files: list[InputFile], *, keep_gone: bool = True) -> dict[str, tuple[int, ...]]:
        """Return the files that still have work, by path, with the starts of their shards that are done.

        Raises UserError naming a file that changed since its shards were done, or one that is gone, without `keep_gone` or if a
        part of it was lost; when overwriting, all that was done is then left behind, and all files have work.
        """
        problem = self._index.outdated(files, self.folder, keep_gone=keep_gone)
        if problem and not self.overwrite:
            raise UserError(problem)
        if problem:
            self._open(self._generations.next_one())
        return self._index.unfinished(files)

    def check_rewritten(self, corpus: Corpus, left: Mapping[str, Collection[int]]) -> None:
        """Raise InputError if rows of a table that have results stand in files with work left as well.

        `left` is what `unfinished` returned. Files that are gone from a table may have been rewritten as others.
        """
        done = self._index.files
        if corpus.table is not None and len(done) > sum(file.path in done for file in corpus.files):
            check_rewritten(corpus.table, [path for path, starts in left.items() if not starts], done)

    def left_out(self, files: Iterable[InputFile]) -> str:
        """Say which files only the results have that are to be overwritten; empty if none are, or their list is damaged."""
        manifest = self._generations.manifest
        if manifest is None or manifest.generation == self.output.generation:
            return ""
        gone: set[str] = set()
        with contextlib.suppress(DamagedNoteError):
            for table in batches([manifest.read_shards()], ["file"]):
                gone.update(table["file"].unique().to_pylist())
        gone -= {file.path for file in files}
        return f"{len(gone):,} files have results, and the input has them no more, such as {min(gone)}" if gone else ""

    def published(self) -> bool:
        """Return whether the manifest already names exactly these shards."""
        if self._own_manifest is None or len(self._lost) or self._recovered:
            return False
        return int(self._own_manifest.facts["shards"]["rows"]) == len(self._index)

    def nights(self) -> list[Night]:
        """Return what each publishing of these results added, the oldest first, and what the next one would add, as of now."""
        return nights_of(self._new, self._own_manifest)

    def compare(self, bins: PredictionBins) -> Comparison:
        """Compare what is predicted with what the manifest says that is to be replaced."""
        totals, before = self.totals(), self._generations.manifest
        return Comparison(
            bins=bins,
            all=predicted(totals, bins),
            new=predicted(totals, bins, self._own_manifest),
            all_before=before.predicted(PREDICTIONS) if before else None,
            new_before=before.predicted(NEW_PREDICTIONS) if before else None,
            since=str(before.facts.get("published", "")) if before else "",
        )

    def publish(self, seconds: float, checked: Mapping[str, object], bins: PredictionBins = NO_BINS) -> str:
        """Write the manifest, `checked` and what is predicted included, and return its location.

        From here on the results are valid, and what they replace is removed.

        Raises UserError if another driver has published something else meanwhile.
        """
        self.flush()
        for _ in range(PUBLISH_TRIES):
            older = read_previous_manifest(self.folder)
            done = self._try_to_publish(seconds, checked, bins)
            self._generations = self._generations.with_current_manifest()
            if done:
                remove_list(older, self._generations)
                self.finish()
                return f"{self.folder}/{MANIFEST}"
            self._check_still_wanted()
        raise StorageError(f"{self.folder}/{MANIFEST}: others replace it all the time")

    def finish(self) -> None:
        """Bring others to a published result, and remove what it has no more use for; do nothing if that is done."""
        self._follow()
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
        self._recovered: dict[str, list[bytes]] = {}
        self._load()
        self._log = ReceiptLog(receipts_folder(self.folder, generation), self._on_stored)

    def _load(self) -> None:
        """Read which shards are done. Those whose parts were removed, or lost by a disk, do not count.

        Raises InputError if such a part is of an earlier version, which cut files into shards in another way.
        """
        published, found = self._published_receipts(), read_found_receipts(self._generations, self.output)
        for line in found.remarks:
            self._remark(line)
        inventory = take_inventory(published, found.data, self._stored_parts() if published or found.data else None)
        self._published, self._unpublished, self._new = inventory.published, inventory.unpublished, inventory.new
        self._index, self._lost = inventory.index, inventory.lost
        if not len(self._lost):
            return
        if self._own_manifest and self._own_manifest.facts["version"] != MANIFEST_VERSION:
            raise InputError(
                "output", f"{self.folder}: was written by another version of offramp and lacks parts; overwrite it"
            )
        self._remark(f"parts of {len(self._lost):,} shards are gone from {self.folder}; they are made again")

    def _stored_parts(self) -> StoredParts | None:
        """List the parts that are there; None on S3, which loses none, and takes minutes to list a million."""
        return None if is_remote(self.folder) and not self._recovered else StoredParts.list(self.output)

    def _published_receipts(self) -> list[bytes]:
        """Read the list of published shards; where it is gone or damaged, make it again from the parts.

        Raises DamagedNoteError if they tell of fewer shards than the manifest.
        """
        manifest = self._own_manifest
        if manifest is None:
            return []
        if manifest.shards_path in self._recovered:
            return self._recovered[manifest.shards_path]
        try:
            return [manifest.read_shards()]
        except DamagedNoteError as error:
            self._generations = self._generations.with_current_manifest()
            if self._own_manifest is None or not manifest.has_list_of(self._own_manifest):
                return self._published_receipts()  # another driver has published meanwhile
            recovered = recover_list(manifest, self.output)
            self._recovered = {manifest.shards_path: recovered}
            self._remark(f"{error.path}: {error.what}; it is made again from what the parts say")
            return recovered

    def _remark(self, line: str) -> None:
        """Note what was found lost or damaged, once."""
        if line not in self.remarks:
            self.remarks.append(line)

    def _on_stored(self, receipt: Receipt) -> None:
        """Count a receipt that is stored; called by the log's thread."""
        self._unpublished = self._unpublished.plus(receipt)
        if not (self._lost == int(receipt.shard, 16)).any():
            self._new = self._new.plus(receipt)
        self._index.add(receipt)

    def _try_to_publish(self, seconds: float, checked: Mapping[str, object], bins: PredictionBins) -> bool:
        """Publish all receipts; return False if another driver has published since the manifest was read."""
        before = self._generations
        try:
            # What is published stays: its parts are safe, while another driver may remove unused ones of ours.
            found = read_found_receipts(before, self.output).data
            published, others = self._published_receipts(), [*found, *self._own_receipts()]
            stored = self._stored_parts()
            shards = list_shards(published, others, stored.hold if stored else None, self.output)
            check_accounted_for([*published, *others], shards, self.folder)
            generation = self.output.generation
            checked = {**checked, **predicted_facts(shards.totals, bins, self._own_manifest)}
            at = time.strftime(TIME_FORMAT, time.gmtime())
            nights = nights_of(shards.new, self._own_manifest, at, checked)
            checked[NIGHTS] = [asdict(night) for night in nights]
            facts = manifest_facts(
                shards,
                self.fingerprint,
                self.schema,
                generation=generation,
                seconds=seconds,
                published=at,
                checked=checked,
            )
            if done := write_manifest(before, facts, shards):
                self._published, self._unpublished, self._new = shards.totals, Totals(), Totals()
            return done
        except StorageError:
            # A concurrent publisher may have deleted what we were reading.
            now = before.with_current_manifest()
            if now.version == before.version:
                raise
            return False

    def _own_receipts(self) -> list[bytes]:
        """Read the receipts that this driver has stored; raise StorageError if some are gone."""
        segments = read_segments(self._log.segments).whole
        if len(segments) < len(self._log.segments):  # on S3, where two drivers may have inputs of their own
            raise StorageError(
                f"{self.folder}: another driver took receipts away; the same command does their shards again"
            )
        return segments

    def _check_still_wanted(self) -> None:
        """Raise InputError if another driver has published results that ours must not replace."""
        published, own = self._generations.published, self.output.generation
        other = published == own and self._generations.published_difference(self.fingerprint)
        types = self._own_manifest is not None and self.schema != self._own_manifest.schema
        if published > own or other or types:
            raise InputError("output", f"{self.folder}: another run has published other results there meanwhile")
