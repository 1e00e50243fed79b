"""What travels between stages, a shard at a time, and the receipt that is left of it in the end.

A shard is one Arrow row: a JSON cell that says what it is and what was done, and a list cell that holds its rows. Ray Data cuts
and joins blocks of many rows as it likes, but it cannot cut a row; so one shard in is one shard out of every stage.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.schema import RECEIPTS

UNCERTAINTY_BINS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """One finished shard: all that the driver ever hears of it."""

    shard: str
    file: str
    size: int
    version: str
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
    """Tokens x layers computed for rows, and, below, for padding."""
    padding_tokens: int = 0
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


def uncertainty_histogram(uncertainty_B: npt.NDArray[np.float32]) -> list[int]:
    """Count rows in equal bins of [0, 1]."""
    return np.histogram(uncertainty_B, bins=UNCERTAINTY_BINS, range=(0, 1))[0].tolist()


def length_histogram(lengths_B: npt.NDArray[np.int64]) -> list[int]:
    """Count rows by powers of two: bin i holds lengths 2^i to 2^(i + 1) - 1."""
    return np.bincount(np.log2(np.maximum(lengths_B, 1)).astype(np.int64)).tolist()


def length_bounds(bins: int) -> list[tuple[int, int]]:
    """Return the shortest and longest length of every bin."""
    return [(2**place, 2 ** (place + 1) - 1) for place in range(bins)]
