"""The receipt of a finished shard: which rows it is about, and what was counted of them. No row ever reaches the driver."""

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

import pyarrow as pa

from pipeline.output.counts import MEASURED, Counts, arrow_schema


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
    span: int
    """Rows of the file that the shard accounts for: `rows_in`, and those that could not be read where their number is known."""
    read_error: str | None = None
    """Why the rows after the shard could not be read; None if they could."""
    part: str = ""
    """Name of the part that holds its rows, which it may share with other shards; empty until that is written."""
    part_row: int = 0
    """Where its `rows_out` rows begin in the part."""
    rejects_part: str | None = None
    """Path, relative to the output folder, of the file that holds its rejects; None without any."""
    rejects_row: int = 0
    """Where its rejects begin in that file."""

    @property
    def rejects(self) -> int:
        """Number of its rows in the file of rejects, in which what could not be read is one more."""
        return sum(self.rejected.values()) + (self.read_error is not None)


FIELDS = tuple(field.name for field in fields(Receipt))


def encode_receipts(receipts: Sequence[Receipt]) -> str:
    """Encode receipts as JSON, as they travel between processes."""
    values = [[getattr(receipt, name) for name in FIELDS] for receipt in receipts]
    return json.dumps(values, separators=(",", ":"))


def decode_receipts(text: str) -> list[Receipt]:
    """Decode what `encode_receipts` returned."""
    return [Receipt(**dict(zip(FIELDS, values, strict=True))) for values in json.loads(text)]


MAX_PACKED_BYTES = 128 << 20
"""Bytes of packed receipts once they are unpacked: those of some 100,000 shards, more than a bundle ever has."""


def pack_receipts(receipts: Sequence[Receipt]) -> str:
    """Pack receipts for the metadata of their part: some 600 bytes for one, and 150 for each of many.

    With 256 classes that is 1,100 and 600.

    What was measured, seconds and memory, is left out: so work that is done twice makes the same file.
    """
    packed = [
        {f.name: getattr(receipt, f.name) for f in fields(Receipt) if MEASURED not in f.metadata}
        for receipt in receipts
    ]
    return base64.b64encode(zlib.compress(json.dumps(packed, separators=(",", ":")).encode())).decode()


def unpack_receipts(packed: bytes) -> list[Receipt]:
    """Unpack what `pack_receipts` returned; raise ValueError for anything else."""
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(base64.b64decode(packed, validate=True), MAX_PACKED_BYTES)
        return [Receipt(**values) for values in json.loads(text)]
    except (zlib.error, TypeError, RecursionError) as error:
        raise ValueError(f"no packed receipts: {error}") from error


RECEIPTS = arrow_schema(Receipt)
"""Columns of a table of receipts, one row a shard."""


def receipts_table(receipts: Sequence[Receipt], schema: pa.Schema = RECEIPTS) -> pa.Table:
    """Put receipts into a table, one row each."""
    columns = {column.name: [getattr(receipt, column.name) for receipt in receipts] for column in schema}
    for column in schema:
        if pa.types.is_map(column.type):
            columns[column.name] = [list(values.items()) for values in columns[column.name]]
    return pa.table(columns, schema=schema)


def from_table(table: pa.Table) -> list[Receipt]:
    """Take receipts out of a table by RECEIPTS."""
    maps = [column.name for column in table.schema if pa.types.is_map(column.type)]
    return [Receipt(**values | {name: dict(values[name]) for name in maps}) for values in table.to_pylist()]
