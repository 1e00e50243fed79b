"""Which shards of which files are done, for a million of them: some 25 bytes each, and a file's path once.

`take_inventory` tells, of all receipts of a generation, those whose parts are there from those whose parts a disk has lost.
"""

import itertools
from array import array
from collections.abc import Iterable, Iterator, KeysView
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus.listing import InputFile
from pipeline.errors import UserError
from pipeline.output.parts import REJECTS_FOLDER, Output
from pipeline.output.receipt_log import (
    BATCH_ROWS,
    NO_SHARDS,
    ShardIds,
    are_among,
    batches,
    first_ones,
    ids_of,
    not_among,
    parse_ids,
    part_ids,
    rejects_ids,
)
from pipeline.output.receipts import RECEIPTS, Receipt
from pipeline.output.totals import Totals
from pipeline.storage.locate import storage_of


class ShardIndex:
    """Finished shards, in no order, each of them once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        """Number of each file by path, in the order in which they came."""
        self._versions: list[tuple[int, str]] = []
        """Size and version of each file when its shards were done, by number."""
        self._file, self._start, self._rows, self._last = array("i"), array("q"), array("q"), array("b")
        self._lost: dict[str, str] = {}
        """Files of which a part is lost: the name of one, by path."""

    def __len__(self) -> int:
        return len(self._file)

    @property
    def files(self) -> KeysView[str]:
        """Paths of all files with a shard that is done, or was."""
        return self._numbers.keys()

    def changed(self, file: InputFile) -> bool:
        """Return whether shards of this file were done while it had other content."""
        number = self._numbers.get(file.path)
        return number is not None and self._versions[number] != (file.size, file.version)

    def outdated(self, files: Iterable[InputFile], folder: str, *, keep_gone: bool) -> str:
        """Say in one line why the results cannot stand beside these files; empty if they can.

        Either a file has changed since its shards were done, or it is gone: without `keep_gone` that is wrong at once, and with
        it if rows of the file were lost.
        """
        listed = set()
        for file in files:
            listed.add(file.path)
            if self.changed(file):
                return (
                    f"{file.path}: changed since {folder} was made from it; "
                    "give the new content a new name, or start over (overwrite)"
                )
        lost = next((path for path in self._lost if path not in listed), None)
        if lost is not None:
            return (
                f"{folder}/{self._lost[lost]}: is gone, with rows of {lost}, which the input has no more; "
                "bring one of the two back, or start over (overwrite)"
            )
        gone = None if keep_gone else next((path for path in self.files if path not in listed), None)
        if gone is None:
            return ""
        return (
            f"{gone}: {folder} has results of it, but the input has it no more; "
            "an incremental run keeps them, overwriting starts over"
        )

    def add(self, receipt: Receipt) -> None:
        """Record a finished shard; raise UserError if its file had other content when earlier shards were done."""
        self._file.append(self._number(receipt.file, receipt.size, receipt.version))
        self._start.append(receipt.start)
        self._rows.append(receipt.span)
        self._last.append(receipt.last)

    def add_table(self, receipts: pa.Table) -> None:
        """Record many finished shards at once, by `receipts.RECEIPTS`; raise UserError as `add` does."""
        for file in receipts.group_by(["file", "size", "version"]).aggregate([]).to_pylist():
            self._number(file["file"], file["size"], file["version"])
        files = receipts["file"].combine_chunks().dictionary_encode()
        numbers = np.array([self._numbers[path] for path in files.dictionary.to_pylist()], np.int32)
        self._file.frombytes(numbers[files.indices.to_numpy()].tobytes())
        self._start.frombytes(receipts["start"].to_numpy().astype(np.int64).tobytes())
        self._rows.frombytes(receipts["span"].to_numpy().astype(np.int64).tobytes())
        self._last.frombytes(receipts["last"].to_numpy().astype(np.int8).tobytes())

    def add_lost(self, receipts: pa.Table) -> None:
        """Record shards that were done, and whose parts are lost; raise UserError as `add` does."""
        for lost in receipts.group_by(["file", "size", "version"]).aggregate([("part", "min")]).to_pylist():
            self._number(lost["file"], lost["size"], lost["version"])
            self._lost.setdefault(lost["file"], lost["part_min"])

    def unfinished(self, files: Iterable[InputFile]) -> dict[str, tuple[int, ...]]:
        """Return the files that still have work, by path, with the starts of their shards that are done."""
        starts, begun = self._starts_of_incomplete(), {*np.unique(np.array(self._file)).tolist()}
        left: dict[str, tuple[int, ...]] = {}
        for file in files:
            number = self._numbers.get(file.path)
            if number not in begun:
                left[file.path] = ()
            elif number in starts:
                left[file.path] = tuple(sorted(starts[number]))
        return left

    def _starts_of_incomplete(self) -> dict[int, list[int]]:
        """Return the starts of finished shards of the files that lack some, by number.

        Shards of a file do not overlap: it is complete if its last one is there, and as many rows as lie before its end.
        """
        start, rows = np.array(self._start), np.array(self._rows)
        shards = {"file": np.array(self._file), "start": start, "rows": rows, "end": start + rows}
        by_file = (
            pa.table(shards | {"last": np.array(self._last)})
            .group_by("file")
            .aggregate([("start", "list"), ("rows", "sum"), ("end", "max"), ("last", "max")])
        )
        complete = pc.and_(pc.equal(by_file["last_max"], 1), pc.equal(by_file["rows_sum"], by_file["end_max"]))
        incomplete = by_file.filter(pc.invert(complete))
        return dict(zip(incomplete["file"].to_pylist(), incomplete["start_list"].to_pylist(), strict=True))

    def _number(self, path: str, size: int, version: str) -> int:
        """Return the number of a file, a new one if need be; raise UserError if it was recorded with other content."""
        number = self._numbers.setdefault(path, len(self._numbers))
        if number == len(self._versions):
            self._versions.append((size, version))
        elif self._versions[number] != (size, version):
            raise UserError(f"{path}: has results from before and after it changed; start over (overwrite)")
        return number


@dataclass(frozen=True, slots=True)
class StoredParts:
    """The parts of a generation, and files of rejects, that are in its folder: their ids, ascending."""

    parts: ShardIds
    rejects: ShardIds

    @classmethod
    def list(cls, output: Output) -> Self:
        """List what is there."""
        return cls(_ids_in(output, output.folder), _ids_in(output, f"{output.folder}/{REJECTS_FOLDER}"))

    def hold(self, receipts: pa.Table) -> npt.NDArray[np.bool_]:
        """Return which receipts name a part that is there, and rejects that are: [N]."""
        there = are_among(part_ids(receipts), self.parts)
        with_rejects = pc.is_valid(receipts["rejects_part"]).to_numpy()
        there[with_rejects] &= are_among(rejects_ids(receipts), self.rejects)
        return there


def _ids_in(output: Output, folder: str) -> ShardIds:
    """List the ids of the parts of a generation that are in a folder."""
    ids, names = [NO_SHARDS], iter(storage_of(folder).names(folder, "part-"))
    while batch := list(itertools.islice(names, BATCH_ROWS)):
        ids.append(parse_ids(output.digests_of(batch)))
    return np.sort(np.concatenate(ids))


@dataclass(slots=True, kw_only=True)
class Inventory:
    """What is done of a generation."""

    published: Totals = field(default_factory=Totals)
    """The sum of the published shards whose parts are there."""
    unpublished: Totals = field(default_factory=Totals)
    """The sum of all other shards that are done."""
    new: Totals = field(default_factory=Totals)
    """The sum of those of the others that were never published: not of parts that were lost and are made again."""
    index: ShardIndex = field(default_factory=ShardIndex)
    lost: ShardIds = field(default_factory=lambda: NO_SHARDS)
    """Shards that were done, and of which no part is there any more."""


def take_inventory(published: list[bytes], found: list[bytes], stored: StoredParts | None) -> Inventory:
    """Count published receipts and those that no manifest covers, each shard once; `stored` is None where no part is ever lost.

    Raises UserError if there are results of a file from before and after it changed.
    """
    ids, there = ids_of([*published, *found], stored.hold if stored else None)
    wanted = first_ones(ids, there)
    gone = ~are_among(ids, np.sort(ids[wanted]))
    inventory, row = Inventory(lost=np.unique(ids[gone])), 0

    def done_of(sources: list[bytes]) -> Iterator[pa.Table]:
        nonlocal row
        for table in batches(sources, RECEIPTS.names):
            rows = slice(row, row + len(table))
            row, done = rows.stop, table.filter(pa.array(wanted[rows]))
            inventory.index.add_lost(table.filter(pa.array(gone[rows])))
            inventory.index.add_table(done)
            yield done

    for done in done_of(published):
        inventory.published = inventory.published.plus_table(done)
    known = np.sort(ids[:row])
    for done in done_of(found):
        inventory.unpublished = inventory.unpublished.plus_table(done)
        inventory.new = inventory.new.plus_table(not_among(done, known))
    return inventory
