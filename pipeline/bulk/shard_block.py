"""A shard as it travels between stages: one Arrow row."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import pyarrow as pa

from pipeline.clock import Clock, peak_memory_mb
from pipeline.output.receipts import Receipt
from pipeline.rows import TokenRows
from pipeline.schema import SEGMENT, TOKENS

RECEIPT, ROWS = "receipt", "rows"


@dataclass(slots=True)
class ShardBlock:
    """A shard on its way: the receipt so far and its rows."""

    receipt: Receipt
    rows: pa.Table

    def to_arrow(self) -> pa.Table:
        structs = self.rows.combine_chunks().to_struct_array()
        if isinstance(structs, pa.ChunkedArray):
            structs = structs.combine_chunks()
        rows = pa.ListArray.from_arrays(pa.array([0, len(self.rows)], pa.int32()), structs)
        return pa.table({RECEIPT: [self.receipt.to_json()], ROWS: rows})

    @classmethod
    def from_arrow(cls, block: pa.Table) -> Self:
        if len(block) != 1:
            raise AssertionError(f"a stage got {len(block)} shards at once")
        structs = block[ROWS].combine_chunks().flatten()
        return cls(Receipt.from_json(block[RECEIPT][0].as_py()), pa.Table.from_struct_array(structs))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Note time and memory of a stage on the receipt."""
        started = Clock()
        yield
        receipt = self.receipt
        self.receipt = replace(
            receipt,
            seconds=receipt.seconds | {name: started.seconds},
            cpu_seconds=receipt.cpu_seconds | {name: started.cpu_seconds},
            peak_mb=receipt.peak_mb | {name: peak_memory_mb()},
        )


def token_rows(rows: pa.Table) -> TokenRows:
    """Take the tokens out of rows by `schema.token_schema`."""
    if len(rows) == 0:
        return TokenRows.from_lists([])
    column = rows[TOKENS].combine_chunks()
    offsets = column.offsets.to_numpy().astype(np.int64)
    return TokenRows(
        token_ids=column.values.to_numpy()[offsets[0] : offsets[-1]],
        offsets=offsets - offsets[0],
        segments=rows[SEGMENT].to_numpy(),
    )
