"""Receipts added up."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.receipts import Receipt

SUMMED = (
    "rows_in",
    "rows_out",
    "truncated",
    "tokens",
    "layer_tokens",
    "padding_tokens",
    "flops",
    "flops_full_depth",
    "input_bytes",
)
COUNTED = ("exits", "uncertainty_histogram", "length_histogram")


def _add_counts(sums: list[int], more: list[int]) -> None:
    """Add counts to counts in place; the longer list decides."""
    sums += [0] * (len(more) - len(sums))
    for place, count in enumerate(more):
        sums[place] += count


@dataclass(slots=True)
class Totals:
    """Receipts added up."""

    shards: int = 0
    rows_in: int = 0
    rows_out: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    """Files that could not be read to their end, and why."""
    truncated: int = 0
    tokens: int = 0
    exits: list[int] = field(default_factory=list)
    uncertainty_histogram: list[int] = field(default_factory=list)
    length_histogram: list[int] = field(default_factory=list)
    layer_tokens: int = 0
    padding_tokens: int = 0
    flops: float = 0.0
    flops_full_depth: float = 0.0
    input_bytes: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    peak_mb: dict[str, float] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, receipt: Receipt) -> None:
        """Count one more shard."""
        self.shards += 1
        for name in SUMMED:
            setattr(self, name, getattr(self, name) + getattr(receipt, name))
        for reason, count in receipt.rejected.items():
            self.rejected[reason] = self.rejected.get(reason, 0) + count
        if receipt.read_error is not None:
            self.unreadable[receipt.file] = receipt.read_error
        for name in COUNTED:
            _add_counts(getattr(self, name), getattr(receipt, name))
        for stage, seconds in receipt.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        for stage, seconds in receipt.cpu_seconds.items():
            self.cpu_seconds[stage] = self.cpu_seconds.get(stage, 0.0) + seconds
        for name, value in receipt.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        for stage, peak in receipt.peak_mb.items():
            self.peak_mb[stage] = max(self.peak_mb.get(stage, 0.0), peak)

    def add_table(self, receipts: pa.Table) -> None:
        """Count many shards at once, by `schema.RECEIPTS`."""
        self.shards += len(receipts)
        for name in SUMMED:
            setattr(self, name, getattr(self, name) + (pc.sum(receipts[name]).as_py() or 0))
        broken = receipts.filter(pc.is_valid(receipts["read_error"]))
        self.unreadable |= dict(zip(broken["file"].to_pylist(), broken["read_error"].to_pylist(), strict=True))
        for name in COUNTED:
            _add_counts(getattr(self, name), _summed(receipts[name].combine_chunks()))
        for name in ("rejected", "seconds", "cpu_seconds", "sums"):
            _merge(getattr(self, name), receipts[name].combine_chunks(), "sum")
        _merge(self.peak_mb, receipts["peak_mb"].combine_chunks(), "max")

    def beyond(self, told: Mapping[str, Any]) -> Self:
        """Return what is counted here and not in totals of an earlier time, as a manifest has them. Peaks stay as they are."""
        values = asdict(self)
        for name, before in told.items():
            if name not in values or name in ("peak_mb", "unreadable"):
                continue
            if isinstance(before, dict):
                values[name] = {key: value - before.get(key, 0) for key, value in values[name].items()}
            elif isinstance(before, list):
                values[name] = [now - then for now, then in zip_longest(values[name], before, fillvalue=0)]
            else:
                values[name] -= before
        return type(self)(**values)

    @property
    def rows_rejected(self) -> int:
        return sum(self.rejected.values())

    @property
    def mean_exit_layer(self) -> float:
        return sum(layer * rows for layer, rows in enumerate(self.exits, start=1)) / max(self.rows_out, 1)

    @property
    def flops_speedup(self) -> float:
        """FLOPs of the plain full-depth model over those spent, on the same rows."""
        return self.flops_full_depth / self.flops if self.flops else 1.0


def _summed(counts: pa.ListArray) -> list[int]:
    """Add up lists of counts, place by place."""
    lists = pc.list_parent_indices(counts).to_numpy()
    within = np.arange(len(lists)) - np.searchsorted(lists, lists)
    return np.bincount(within, counts.flatten().to_numpy()).astype(np.int64).tolist()


def _merge(into: dict[str, float], maps: pa.MapArray, how: str) -> None:
    """Add up the values of each key, or take the largest."""
    found = pa.table({"key": maps.keys, "value": maps.items}).group_by("key").aggregate([("value", how)])
    for key, value in zip(found["key"].to_pylist(), found[f"value_{how}"].to_pylist(), strict=True):
        into[key] = max(into.get(key, 0.0), value) if how == "max" else into.get(key, 0) + value
