"""A shard on its way between stages: one Arrow row.

Ray Data cuts and joins blocks of many rows as it likes, but it cannot cut a row. So a shard travels as a single row, of a JSON
cell that holds its receipt and two list cells that hold its rows, and one shard in is one shard out of every stage.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import pyarrow as pa

from pipeline.clock import Clock, peak_memory_mb
from pipeline.output.receipts import Receipt
from pipeline.rejects import Reason, Reject
from pipeline.schema import DETAIL, FILE, ID, REASON, REJECTS, ROW

RECEIPT_CELL, ROWS_CELL, REJECTS_CELL = "receipt", "rows", "rejects"


@dataclass(slots=True)
class ShardBlock:
    """A shard: the receipt so far, and every row of it either among the rows or among the rejects."""

    receipt: Receipt
    rows: pa.Table
    """Rows that every stage so far could work on, by the schema of the last one."""
    rejects: pa.Table
    """All others, by `schema.REJECTS`."""

    def to_arrow(self) -> pa.Table:
        """Put the shard into one Arrow row."""
        return pa.table(
            {
                RECEIPT_CELL: [self.receipt.to_json()],
                ROWS_CELL: _to_cell(self.rows),
                REJECTS_CELL: _to_cell(self.rejects),
            }
        )

    @classmethod
    def from_arrow(cls, block: pa.Table) -> Self:
        """Take a shard out of the one Arrow row of a block."""
        if len(block) != 1:
            raise AssertionError(f"a stage got {len(block)} shards at once")
        receipt = Receipt.from_json(block[RECEIPT_CELL][0].as_py())
        return cls(receipt, _from_cell(block[ROWS_CELL]), _from_cell(block[REJECTS_CELL]))

    def reject(self, lost: Mapping[int, Reject]) -> None:
        """Move rows, by their index, over to the rejects."""
        if not lost:
            return
        indices = np.fromiter(lost, np.int64, len(lost))
        moved = self.rows.take(indices)
        columns = {
            ID: moved[ID],
            FILE: [self.receipt.file] * len(lost),
            ROW: moved[ROW],
            REASON: [reject.reason for reject in lost.values()],
            DETAIL: [reject.detail for reject in lost.values()],
        }
        self.rejects = pa.concat_tables([self.rejects, pa.table(columns, schema=REJECTS)])
        self.rows = self.rows.take(np.setdiff1d(np.arange(len(self.rows)), indices))

    def rejects_part(self) -> pa.Table:
        """Return the rejects in the order of their rows, and at the end one for the file if it could not be read further."""
        rejects, receipt = self.rejects.sort_by(ROW), self.receipt
        if receipt.read_error is None:
            return rejects
        rest = {
            ID: os.path.basename(receipt.file),
            FILE: receipt.file,
            ROW: None,
            REASON: Reason.UNREADABLE_FILE,
            DETAIL: f"from row {receipt.start + receipt.rows_in} on: {receipt.read_error}",
        }
        return pa.concat_tables([rejects, pa.Table.from_pylist([rest], REJECTS)])

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure time and memory of a stage and note them on the receipt."""
        started = Clock()
        yield
        receipt = self.receipt
        self.receipt = replace(
            receipt,
            seconds=receipt.seconds | {name: started.seconds},
            cpu_seconds=receipt.cpu_seconds | {name: started.cpu_seconds},
            peak_mb=receipt.peak_mb | {name: peak_memory_mb()},
        )


def _to_cell(rows: pa.Table) -> pa.ListArray:
    """Put a table into one list cell of structs."""
    structs = rows.combine_chunks().to_struct_array()
    if isinstance(structs, pa.ChunkedArray):
        structs = structs.combine_chunks()
    return pa.ListArray.from_arrays(pa.array([0, len(rows)], pa.int32()), structs)


def _from_cell(cell: pa.ChunkedArray) -> pa.Table:
    """Take a table out of one list cell of structs."""
    return pa.Table.from_struct_array(cell.combine_chunks().flatten())
