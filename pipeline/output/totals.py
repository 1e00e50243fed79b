"""Receipts added up, one by one as they come in, or a table of them at once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.counts import Counts, merge_rules
from pipeline.output.receipts import Receipt


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals(Counts):
    """The sum of receipts: a value that never changes, so that threads may share it.

    Example: `totals = totals.plus(receipt)`.
    """

    shards: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    """Files that could not be read to their end, and why."""

    def plus(self, receipt: Receipt) -> Self:
        """Return totals with one more shard."""
        unreadable = self.unreadable
        if receipt.read_error is not None:
            unreadable = unreadable | {receipt.file: receipt.read_error}
        counts = {name: getattr(receipt, name) for name in merge_rules(self)}
        return self._merge(counts, shards=self.shards + 1, unreadable=unreadable)

    def merged(self, more: Self) -> Self:
        """Return the sum of two totals."""
        counts = {name: getattr(more, name) for name in merge_rules(self)}
        return self._merge(counts, shards=self.shards + more.shards, unreadable=self.unreadable | more.unreadable)

    def plus_table(self, receipts: pa.Table) -> Self:
        """Return totals with all shards of a table, by `receipts.RECEIPTS`."""
        broken = receipts.filter(pc.is_valid(receipts["read_error"]))
        unreadable = dict(zip(broken["file"].to_pylist(), broken["read_error"].to_pylist(), strict=True))
        counts = {name: rule.aggregate(receipts[name]) for name, rule in merge_rules(self).items()}
        return self._merge(counts, shards=self.shards + len(receipts), unreadable=self.unreadable | unreadable)

    def numbers(self) -> Iterator[float]:
        """Yield everything that is counted: no number among them is ever below zero."""
        for name in merge_rules(self):
            value = getattr(self, name)
            yield from value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]

    def _merge(self, counts: Mapping[str, Any], *, shards: int, unreadable: dict[str, str]) -> Self:
        """Return totals with these counts merged in, and with this number of shards and these unreadable files."""
        rules = merge_rules(self)
        merged = {name: rules[name].merge(getattr(self, name), count) for name, count in counts.items()}
        return replace(self, shards=shards, unreadable=unreadable, **merged)

    @property
    def rows_rejected(self) -> int:
        """Rejected rows of all reasons."""
        return sum(self.rejected.values())

    @property
    def mean_exit_layer(self) -> float:
        """Mean layer after which rows exit, in [1, L]; 0 without rows."""
        return sum(layer * rows for layer, rows in enumerate(self.exits, start=1)) / max(self.rows_out, 1)

    @property
    def flops_speedup(self) -> float:
        """FLOPs of the plain full-depth model over those spent, on the same rows."""
        return self.flops_full_depth / self.flops if self.flops else 1.0
