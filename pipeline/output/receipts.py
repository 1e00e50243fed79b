"""The receipt of a finished shard: which rows it is about, and what was counted of them. No row ever reaches the driver."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Self

import pyarrow as pa

from pipeline.output.counts import Counts, arrow_schema


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt(Counts):
    """One finished shard: all that the driver ever hears of it."""

    shard: str
    """Id of the shard, by `listing.InputFile.shard_id`."""
    file: str
    """Path of the input file."""
    size: int
    """Bytes of the file as it was read."""
    version: str
    """Version of the file as it was read, by `listing.InputFile.version`."""
    start: int
    """First row of the shard, counted in the file."""
    last: bool
    """Whether the file ends with this shard."""
    read_error: str | None = None
    """Why the file could not be read any further; None if it could."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))


RECEIPTS = arrow_schema(Receipt)
"""Columns of a table of receipts, one row a shard."""


def receipts_table(receipts: Sequence[Receipt], schema: pa.Schema = RECEIPTS) -> pa.Table:
    """Put receipts into a table, one row each."""
    columns = {column.name: [getattr(receipt, column.name) for receipt in receipts] for column in schema}
    for column in schema:
        if pa.types.is_map(column.type):
            columns[column.name] = [list(values.items()) for values in columns[column.name]]
    return pa.table(columns, schema=schema)
