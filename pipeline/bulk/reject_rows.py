"""Rejected rows of a shard."""

import os

import pyarrow as pa

from pipeline.output.receipts import Receipt
from pipeline.rejects import Reason, Reject
from pipeline.schema import (
    DETAIL,
    FILE,
    ID,
    REASON,
    REJECTS,
    ROW,
)


def rejected(rows: pa.Table, lost: dict[int, Reject]) -> pa.Table:
    """Write down why these rows are rejects from now on."""
    if not lost:
        return rows
    columns = {REASON: rows[REASON].to_pylist(), DETAIL: rows[DETAIL].to_pylist()}
    for row, problem in lost.items():
        columns[REASON][row], columns[DETAIL][row] = problem.reason, problem.detail
    for name, values in columns.items():
        rows = rows.set_column(
            rows.schema.get_field_index(name), rows.schema.field(name), pa.array(values, pa.string())
        )
    return rows


def _rejects(rows: pa.Table, receipt: Receipt) -> pa.Table:
    """Rejected rows, and one for the file itself if it could not be read to its end."""
    table = rows.select([ID, ROW, REASON, DETAIL]).append_column(
        FILE, pa.array([receipt.file] * len(rows), pa.string())
    )
    table = table.select(REJECTS.names).cast(REJECTS)
    if receipt.read_error is None:
        return table
    last = {
        ID: os.path.basename(receipt.file),
        FILE: receipt.file,
        ROW: None,
        REASON: Reason.UNREADABLE_FILE,
        DETAIL: f"from row {receipt.start + receipt.rows_in} on: {receipt.read_error}",
    }
    return pa.concat_tables([table, pa.Table.from_pylist([last], REJECTS)])
