"""What travels between stages, a shard at a time, and the receipt that is left of it in the end.

A shard is one Arrow row: a JSON cell that says what it is and what was done, and a list cell that holds its rows. Ray Data cuts
and joins blocks of many rows as it likes, but it cannot cut a row; so one shard in is one shard out of every stage.
"""

import json
import re
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.rows import TokenRows
from pipeline.schema import RECEIPTS, SEGMENT, TOKENS

RECEIPT, ROWS = "receipt", "rows"
SUMMED = (
    "rows_in",
    "rows_out",
    "truncated",
    "tokens",
    "layer_tokens",
    "filler_tokens",
    "flops",
    "flops_full_depth",
    "input_bytes",
)
COUNTED = ("exits", "uncertainty_histogram", "length_histogram")
UNCERTAINTY_BINS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """One finished shard: all that the driver ever hears of it."""

    shard: str
    file: str
    size: int
    mark: str
    """Of the file as it was read: see `inputs.InputFile`."""
    start: int
    """First row, counted in the file."""
    last: bool
    """No shard of the file comes after it."""
    input_bytes: float
    """Bytes of the file that it stands for, for progress."""
    read_error: str | None = None
    """Why the file could not be read any further."""
    rows_in: int = 0
    rows_out: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    """Rejected rows by reason; an unreadable file is told by `read_error`, since nobody knows its rows."""
    truncated: int = 0
    """Rows of which only the first tokens were read."""
    tokens: int = 0
    exits: list[int] = field(default_factory=list)
    """Rows by exit layer, 1 first."""
    uncertainty_histogram: list[int] = field(default_factory=list)
    """Rows by uncertainty at their exit: UNCERTAINTY_BINS equal bins of [0, 1]."""
    length_histogram: list[int] = field(default_factory=list)
    """Rows by tokens: bin i holds 2^i to 2^(i + 1) - 1."""
    layer_tokens: int = 0
    """Tokens x layers computed for rows, and, below, for filler."""
    filler_tokens: int = 0
    flops: float = 0.0
    flops_full_depth: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock time by stage."""
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    """Time of all threads by stage, while they computed."""
    peak_mb: dict[str, float] = field(default_factory=dict)
    """Largest memory of the process that ran the stage, by `peak_memory_mb`."""
    sums: dict[str, float] = field(default_factory=dict)
    """What the audit counted, by name: see pipeline.audit."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))


def receipts_table(receipts: list[Receipt]) -> pa.Table:
    """Put receipts into a table by `schema.RECEIPTS`."""
    columns = {field.name: [getattr(receipt, field.name) for receipt in receipts] for field in RECEIPTS}
    for name in ("rejected", "seconds", "cpu_seconds", "peak_mb", "sums"):
        columns[name] = [list(values.items()) for values in columns[name]]
    return pa.table(columns, schema=RECEIPTS)


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


def uncertainty_histogram(uncertainty_B: npt.NDArray[np.float32]) -> list[int]:
    """Count rows in equal bins of [0, 1]."""
    return np.histogram(uncertainty_B, bins=UNCERTAINTY_BINS, range=(0, 1))[0].tolist()


def length_histogram(lengths_B: npt.NDArray[np.int64]) -> list[int]:
    """Count rows by powers of two: bin i holds lengths 2^i to 2^(i + 1) - 1."""
    return np.bincount(np.log2(np.maximum(lengths_B, 1)).astype(np.int64)).tolist()


def length_bounds(bins: int) -> list[tuple[int, int]]:
    """Return the shortest and longest length of every bin."""
    return [(2**place, 2 ** (place + 1) - 1) for place in range(bins)]


def _add_counts(sums: list[int], more: list[int]) -> None:
    """Add counts to counts in place; the longer list decides."""
    sums += [0] * (len(more) - len(sums))
    for place, count in enumerate(more):
        sums[place] += count


class Clock:
    """Counts from the moment it is made."""

    def __init__(self) -> None:
        self._started, self._cpu_started = time.perf_counter(), time.process_time()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    @property
    def cpu_seconds(self) -> float:
        """Of all threads of this process."""
        return time.process_time() - self._cpu_started


def peak_memory_mb() -> float:
    """Return the largest memory that this process has had of its own, MB.

    Pages of Ray's object store, which every process maps as it touches them, are left out: they are counted by Ray, bounded by
    its own setting, and shared.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = Path("/proc/self/status")
    if status.exists():
        shared = re.search(r"RssShmem:\s+(\d+) kB", status.read_text())
        peak -= int(shared[1]) if shared else 0
    return peak / 1024


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
    filler_tokens: int = 0
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
