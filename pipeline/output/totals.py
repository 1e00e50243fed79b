"""Receipts added up, one by one as they come in, or a table of them at once."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import printable
from pipeline.output.counts import Counts, merge_rules
from pipeline.output.receipts import Receipt
from pipeline.rejects import MAX_DETAIL_CHARACTERS
from pipeline.storage.base import MAX_PATH

NAMED_FILES = 50
"""Unreadable files that totals, and so a manifest and a report, name: a corpus may have a million of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals(Counts):
    """The sum of receipts: a value that never changes, so that threads may share it.

    Example: `totals = totals.plus(receipt)`.
    """

    shards: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    """Files that could not be read to their end, and why: the first NAMED_FILES of them, escaped; the rejects have all."""
    read_errors: int = 0
    """Shards after which something could not be read."""

    def plus(self, receipt: Receipt) -> Self:
        """Return totals with one more shard."""
        broken = [] if receipt.read_error is None else [(receipt.file, receipt.read_error)]
        counts = {name: getattr(receipt, name) for name in merge_rules(self)}
        return self._merge(counts, shards=1, broken=broken, read_errors=len(broken))

    def merged(self, more: Self) -> Self:
        """Return the sum of two totals."""
        counts = {name: getattr(more, name) for name in merge_rules(self)}
        return self._merge(counts, shards=more.shards, broken=more.unreadable.items(), read_errors=more.read_errors)

    def plus_table(self, receipts: pa.Table) -> Self:
        """Return totals with all shards of a table, by `receipts.RECEIPTS`."""
        failed = receipts.select(["file", "read_error"]).filter(pc.is_valid(receipts["read_error"]))
        broken = zip(failed["file"].to_pylist(), failed["read_error"].to_pylist(), strict=True)
        counts = {name: rule.aggregate(receipts[name]) for name, rule in merge_rules(self).items()}
        return self._merge(counts, shards=len(receipts), broken=broken, read_errors=len(failed))

    def numbers(self) -> Iterator[float]:
        """Yield everything that is counted: no number among them is ever below zero."""
        for name in merge_rules(self):
            value = getattr(self, name)
            yield from value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]

    def _merge(
        self, counts: Mapping[str, Any], *, shards: int, broken: Iterable[tuple[str, str]], read_errors: int
    ) -> Self:
        """Return totals with these counts, shards and read errors more; `broken` are files with the cause of each."""
        rules, unreadable = merge_rules(self), dict(self.unreadable)
        for file, cause in broken:
            if len(unreadable) == NAMED_FILES:
                break
            unreadable.setdefault(printable(file, MAX_PATH), printable(cause, MAX_DETAIL_CHARACTERS))
        merged = {name: rules[name].merge(getattr(self, name), count) for name, count in counts.items()}
        return replace(
            self,
            shards=self.shards + shards,
            unreadable=unreadable,
            read_errors=self.read_errors + read_errors,
            **merged,
        )

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
