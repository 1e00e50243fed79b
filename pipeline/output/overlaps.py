"""Shards that lie in two parts: what two drivers on S3 leave that did the same shards in bundles of their own.

    one driver      part-a: shards 1 2 3        the list of shards      part-a: 1 2 3
    the other       part-b: shards 3 4                                  part-c: 4, which is part-b without 3

Whoever reads a part gets all rows of it. So a shard stays in one part, and the other part is written anew without it.
"""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import StorageError, one_line
from pipeline.output.parts import Output, read_audits
from pipeline.output.receipt_log import (
    NO_SHARDS,
    Hold,
    ShardIds,
    are_among,
    batches,
    distinct,
    first_ones,
    ids_of,
    part_ids,
)
from pipeline.output.receipts import from_table
from pipeline.storage.locate import storage_of

POSITION = ("part", "part_row", "rejects_part", "rejects_row")
"""Columns of a receipt that say where its rows are."""


@dataclass(frozen=True, slots=True)
class Moves:
    """Shards that lie in another part now."""

    positions: dict[str, dict[str, object]]
    """Their new POSITION, by shard."""

    def apply(self, receipts: pa.Table) -> pa.Table:
        """Return receipts with the new positions of their shards."""
        if not self.positions:
            return receipts
        for name in POSITION:
            values = [
                self.positions[shard][name] if shard in self.positions else value
                for shard, value in zip(receipts["shard"].to_pylist(), receipts[name].to_pylist(), strict=True)
            ]
            field = receipts.schema.field(name)
            receipts = receipts.set_column(receipts.schema.names.index(name), field, pa.array(values, field.type))
        return receipts


def separate(sources: list[bytes], hold: Hold | None, output: Output) -> Moves:
    """Write anew, each without the shards that an earlier one has, the parts of which `distinct` takes some shards only.

    Raises StorageError if such a part cannot be read.
    """
    ids, there = ids_of(sources, hold)
    parts = np.concatenate([NO_SHARDS, *(part_ids(table) for table in batches(sources, ["part"]))])
    split = _split_parts(ids, parts, first_ones(ids, there))
    if not len(split):
        return Moves({})
    taken = [table.filter(pa.array(are_among(part_ids(table), split))) for table in distinct(sources, hold)]
    receipts = pa.concat_tables(taken).sort_by([("part", "ascending"), ("part_row", "ascending")])
    positions: dict[str, dict[str, object]] = {}
    for part in pc.unique(receipts["part"]).to_pylist():
        positions |= _rewrite(receipts.filter(pc.equal(receipts["part"], part)), output)
    return Moves(positions)


def _split_parts(ids: ShardIds, parts: ShardIds, wanted: np.ndarray) -> ShardIds:
    """Return the parts of which some shards are wanted, and others are wanted from another part."""
    order = np.argsort(ids[wanted])
    wanted_ids, wanted_parts = ids[wanted][order], parts[wanted][order]
    elsewhere = ~wanted & are_among(ids, wanted_ids)
    home = wanted_parts[np.searchsorted(wanted_ids, ids[elsewhere])]
    return np.intersect1d(parts[elsewhere][home != parts[elsewhere]], wanted_parts)


def _rewrite(table: pa.Table, output: Output) -> dict[str, dict[str, object]]:
    """Write these shards of a part, and their rejects, as a part of their own; return their new positions."""
    receipts = from_table(table)
    rows = _slices(output, receipts[0].part, [(receipt.part_row, receipt.rows_out) for receipt in receipts])
    lost = next((receipt.rejects_part for receipt in receipts if receipt.rejects_part), None)
    spans = [(receipt.rejects_row, receipt.rejects) for receipt in receipts]
    rejected = _slices(output, lost, spans) if lost else pa.table({})
    found, written = read_audits(output.folder, receipts[0].part) or (None, "")
    audits = found and found.filter(pc.is_in(found["shard"], value_set=table["shard"].combine_chunks()))
    placed = output.write(receipts, rows, rejected, audits, written)
    return {receipt.shard: {name: getattr(receipt, name) for name in POSITION} for receipt in placed}


def _slices(output: Output, name: str, spans: list[tuple[int, int]]) -> pa.Table:
    """Read runs of rows, each given by start and length, of a file in the output folder."""
    path = f"{output.folder}/{name}"
    data = storage_of(path).read(path)
    if data is None:
        raise StorageError(f"{path}: is gone, though receipts name it")
    try:
        whole = pq.read_table(BytesIO(data[0]))
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{path}: cannot be read: {one_line(error)}") from error
    return pa.concat_tables([whole.slice(start, count) for start, count in spans])
