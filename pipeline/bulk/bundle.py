"""Bundles: the shards that are worked on together, and how they travel between stages, as one Arrow row.

A shard is what is accounted for and resumed; a bundle of shards is what a task works on and what is retried, one call of the
engine and one part file. Ray Data cuts and joins blocks of many rows as it likes, but it cannot cut a row. So a bundle travels
as a single row, of a JSON cell that holds its receipts and list cells that hold its rows, rejects and audits, and one bundle in
is one bundle out of every stage.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.clock import Clock, peak_memory_mb
from pipeline.corpus.reader import Shard
from pipeline.output.parts import Output
from pipeline.output.receipts import Receipt, decode_receipts, encode_receipts
from pipeline.rejects import Reason, Reject
from pipeline.rows import IntArray, offsets_of
from pipeline.schema import AUDITS, DETAIL, FILE, ID, REASON, REJECTS, ROW, SHARD

RECEIPTS_CELL, SENT_CELL, ROWS_CELL, REJECTS_CELL, AUDITS_CELL = "receipts", "sent", "rows", "rejects", "audits"
BUNDLE_REJECTS = pa.schema([*REJECTS, pa.field(SHARD, pa.int32(), nullable=False)])
"""Columns of travelling rejects, with the number of their shard in the bundle."""
BUNDLE_ROWS = {"cpu": 16_384, "cuda": 65_536}
"""Rows of a bundle, about, by device: a GPU is through 16,384 short rows in a tenth of a second."""
BUNDLE_BYTES = 64 << 20
"""Bytes of text after which a bundle ends early, whatever its rows."""
HELD_BACK = 13 / 8
"""Bundles' worth of rows to wait for, so that what is left for the last bundle of a task is usually no small remainder."""


@dataclass(slots=True)
class Bundle:
    """S shards: their receipts so far, and every row of them either among the rows or among the rejects."""

    receipts: list[Receipt]
    """One for each shard; `rows_out` counts its rows that every stage so far could work on."""
    rows: pa.Table
    """Those rows, shard after shard, by the schema of the last stage."""
    rejects: pa.Table
    """All others, by BUNDLE_REJECTS."""
    sent: float
    """When the last stage was through with it, in seconds since the epoch."""
    audits: pa.Table = field(default_factory=AUDITS.empty_table)
    """What every exit says of some rows, by `schema.AUDITS`."""

    @classmethod
    def of_shards(cls, shards: list[Shard], clock: Clock) -> Self:
        """Put shards together that have been read in the time of this clock."""
        rejects = [
            shard.rejects.append_column(SHARD, pa.array(np.full(len(shard.rejects), number, np.int32)))
            for number, shard in enumerate(shards)
        ]
        bundle = cls(
            receipts=[_receipt(shard) for shard in shards],
            rows=pa.concat_tables([shard.rows for shard in shards]),
            rejects=pa.concat_tables(rejects).cast(BUNDLE_REJECTS),
            sent=time.time(),
        )
        bundle.note("read", clock)
        return bundle

    def to_arrow(self) -> pa.Table:
        """Put the bundle into one Arrow row."""
        return pa.table(
            {
                RECEIPTS_CELL: [encode_receipts(self.receipts)],
                SENT_CELL: [time.time()],
                ROWS_CELL: _to_cell(self.rows),
                REJECTS_CELL: _to_cell(self.rejects),
                AUDITS_CELL: _to_cell(self.audits),
            }
        )

    @classmethod
    def from_arrow(cls, block: pa.Table) -> Self:
        """Take a bundle out of the one Arrow row of a block."""
        if len(block) != 1:
            raise AssertionError(f"a stage got {len(block)} bundles at once")
        receipts = decode_receipts(block[RECEIPTS_CELL][0].as_py())
        rows, rejects = _from_cell(block[ROWS_CELL]), _from_cell(block[REJECTS_CELL])
        return cls(receipts, rows, rejects, block[SENT_CELL][0].as_py(), _from_cell(block[AUDITS_CELL]))

    @property
    def bounds(self) -> IntArray:
        """Return where the rows of each shard begin in `rows`, and the end: [S + 1]."""
        return offsets_of(np.array([receipt.rows_out for receipt in self.receipts]))

    def shard_numbers(self, rows: IntArray | None = None) -> IntArray:
        """Return the number of the shard of each row, or of these rows: [B]."""
        every = np.repeat(np.arange(len(self.receipts)), [receipt.rows_out for receipt in self.receipts])
        return every if rows is None else every[rows]

    def reject(self, lost: Mapping[int, Reject]) -> None:
        """Move rows, by their index, over to the rejects."""
        if not lost:
            return
        indices = np.fromiter(lost, np.int64, len(lost))
        numbers, moved = self.shard_numbers(indices), self.rows.take(indices)
        columns = {
            ID: moved[ID],
            FILE: [self.receipts[number].file for number in numbers],
            ROW: moved[ROW],
            REASON: [reject.reason for reject in lost.values()],
            DETAIL: [reject.detail for reject in lost.values()],
            SHARD: pa.array(numbers, pa.int32()),
        }
        self.rejects = pa.concat_tables([self.rejects, pa.table(columns, schema=BUNDLE_REJECTS)])
        self.rows = self.rows.take(np.setdiff1d(np.arange(len(self.rows)), indices))
        by_shard: dict[int, Counter[str]] = {}
        for number, reject in zip(numbers.tolist(), lost.values(), strict=True):
            by_shard.setdefault(number, Counter())[str(reject.reason)] += 1
        for number, reasons in by_shard.items():
            receipt = self.receipts[number]
            self.receipts[number] = replace(
                receipt,
                rows_out=receipt.rows_out - reasons.total(),
                rejected=dict(Counter(receipt.rejected) + reasons),
            )

    def keep(self, wanted_B: npt.NDArray[np.bool_]) -> None:
        """Keep those rows only for which `wanted_B` is true; the others are another worker's, and no rejects."""
        counts = np.bincount(self.shard_numbers()[wanted_B], minlength=len(self.receipts))
        self.rows = self.rows.filter(pa.array(wanted_B))
        self.note_each(lambda number: {"rows_out": int(counts[number])})

    def write(self, output: Output) -> None:
        """Write the part of the bundle, its rejects and its audits, and note on the receipts where their rows are."""
        if any(r.rows_in != r.rows_out + sum(r.rejected.values()) for r in self.receipts):
            raise AssertionError(f"the bundle that begins with shard {self.receipts[0].shard} lost rows")
        self.receipts = output.write(self.receipts, self.rows, self.rejects_part(), self.audits)

    def rejects_part(self) -> pa.Table:
        """Return the rejects as they are written: shard after shard by row, and at its end one for what could not be read."""
        cut = [(number, receipt) for number, receipt in enumerate(self.receipts) if receipt.read_error is not None]
        rest = [
            {
                ID: os.path.basename(receipt.file),
                FILE: receipt.file,
                ROW: None,
                REASON: Reason.UNREADABLE_FILE,
                DETAIL: f"{_unread(receipt)}: {receipt.read_error}",
                SHARD: number,
            }
            for number, receipt in cut
        ]
        whole = pa.concat_tables([self.rejects, pa.Table.from_pylist(rest, BUNDLE_REJECTS)])
        return whole.sort_by([(SHARD, "ascending"), (ROW, "ascending")]).select(REJECTS.names)

    def note_each(self, facts: Callable[[int], Mapping[str, Any]]) -> None:
        """Note facts on the receipt of every shard, by its number."""
        self.receipts = [replace(receipt, **facts(number)) for number, receipt in enumerate(self.receipts)]

    def note(self, stage: str, clock: Clock, waited: float | None = None) -> None:
        """Note what a stage took, each shard in proportion to its rows, and how long the bundle had waited for it."""
        rows, peak = sum(receipt.rows_in for receipt in self.receipts), peak_memory_mb()
        seconds, cpu_seconds = clock.seconds, clock.cpu_seconds
        for number, receipt in enumerate(self.receipts):
            fraction = receipt.rows_in / rows if rows else 1 / len(self.receipts)
            waits = receipt.waits if waited is None else receipt.waits | {stage: round(waited * fraction, 6)}
            self.receipts[number] = replace(
                receipt,
                seconds=receipt.seconds | {stage: round(seconds * fraction, 6)},
                cpu_seconds=receipt.cpu_seconds | {stage: round(cpu_seconds * fraction, 6)},
                peak_mb=receipt.peak_mb | {stage: round(peak, 1)},
                waits=waits,
            )

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure time and memory of a stage, and the time since the one before it, and note them on the receipts."""
        waited, started = max(time.time() - self.sent, 0.0), Clock()
        yield
        self.note(name, started, waited)
        self.sent = time.time()


def gather(shards: Iterable[Shard], rows: int) -> Iterator[list[Shard]]:
    """Gather shards, in their order, into bundles of about this many rows; BUNDLE_BYTES may end one earlier."""
    waiting: list[Shard] = []
    count = size = 0
    for shard in shards:
        if waiting and size + shard.rows.nbytes > BUNDLE_BYTES:
            yield waiting
            waiting, count, size = [], 0, 0
        waiting.append(shard)
        count, size = count + len(shard), size + shard.rows.nbytes
        if count >= rows * HELD_BACK:
            ends = np.cumsum([len(held) for held in waiting])
            cut = int(np.abs(ends - rows).argmin()) + 1
            yield waiting[:cut]
            waiting = waiting[cut:]
            count, size = sum(map(len, waiting)), sum(held.rows.nbytes for held in waiting)
    if waiting:
        yield waiting


def _receipt(shard: Shard) -> Receipt:
    """Begin the receipt of a shard that has been read."""
    return Receipt(
        shard=shard.id,
        file=shard.file.path,
        size=shard.file.size,
        version=shard.file.version,
        start=shard.start,
        span=shard.span,
        last=shard.last,
        input_bytes=shard.fraction * shard.file.size,
        read_error=shard.read_error,
        rows_in=len(shard),
        rows_out=len(shard.rows),
        rejected=dict(Counter(shard.rejects[REASON].to_pylist())),
    )


def _unread(receipt: Receipt) -> str:
    """Say which rows of a file could not be read: "from row 20 on", or "rows 20 to 29" where the rows after those can."""
    first, end = receipt.start + receipt.rows_in, receipt.start + receipt.span
    return f"from row {first} on" if receipt.last or end <= first else f"rows {first} to {end - 1}"


def _to_cell(rows: pa.Table) -> pa.ListArray:
    """Put a table into one list cell of structs."""
    structs = rows.combine_chunks().to_struct_array()
    if isinstance(structs, pa.ChunkedArray):
        structs = structs.combine_chunks()
    return pa.ListArray.from_arrays(pa.array([0, len(rows)], pa.int32()), structs)


def _from_cell(cell: pa.ChunkedArray) -> pa.Table:
    """Take a table out of one list cell of structs."""
    return pa.Table.from_struct_array(cell.combine_chunks().flatten())
