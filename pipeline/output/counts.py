"""The counters of a shard, each declared once, with the rule by which its values are merged. All else follows from the fields.

To add a counter, declare it here and set it where it is counted:

    empty: int = field(default=0, metadata=SUM)      # in `Counts`
    replace(receipt, empty=3)                        # in the stage that counts

Then receipts carry it, their Arrow tables and the published list of shards have a column of it, `Totals` add it up, and the
manifest and the audit see it.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from itertools import zip_longest
from typing import Any, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MERGE = "merge"
"""Key of a counter's rule in the metadata of its field."""
MEASURED = "measured"
"""Key, in the metadata of its field, of a counter that is measured: the same work done twice gives another value."""
ARROW_TYPES = {
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    str | None: pa.string(),
    list[int]: pa.list_(pa.int64()),
    dict[str, int]: pa.map_(pa.string(), pa.int64()),
    dict[str, float]: pa.map_(pa.string(), pa.float32()),
}
"""Column type by annotation. Seconds and MB by stage are most of a receipt, and float32 has digits enough for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeRule:
    """How the values of one counter are merged."""

    merge: Callable[[Any, Any], Any]
    """Merges two values into a new one."""
    aggregate: Callable[[pa.ChunkedArray], Any]
    """Merges all values of a column."""


def _sum(column: pa.ChunkedArray) -> Any:
    """Add up a column of numbers: [1, 2] -> 3."""
    return pc.sum(column).as_py() or 0


def _add_by_position(one: list[int], other: list[int]) -> list[int]:
    """Add lists position by position; the shorter one counts as zero beyond its end: [1, 2], [3] -> [4, 2]."""
    return [a + b for a, b in zip_longest(one, other, fillvalue=0)]


def _sum_by_position(column: pa.ChunkedArray) -> list[int]:
    """Add up a column of lists position by position: [[1, 2], [3]] -> [4, 2]."""
    lists = column.combine_chunks()
    lengths = lists.value_lengths().to_numpy()
    if len(lengths) and (lengths == lengths[0]).all():  # as good as always, and it takes no memory
        return lists.flatten().to_numpy().reshape(-1, max(lengths[0], 1)).sum(0).tolist()[: lengths[0]]
    position = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.bincount(position, lists.flatten().to_numpy()).astype(np.int64).tolist()


def _add_by_key(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Add the values of each key: {"a": 1}, {"a": 2, "b": 3} -> {"a": 3, "b": 3}."""
    return {key: one.get(key, 0) + other.get(key, 0) for key in one | other}


def _max_by_key(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    """Keep the larger value of each key: {"a": 1}, {"a": 2, "b": 3} -> {"a": 2, "b": 3}."""
    return {key: max(one.get(key, 0.0), other.get(key, 0.0)) for key in one | other}


def _aggregate_maps(column: pa.ChunkedArray, how: str) -> dict[str, Any]:
    """Merge a column of maps by key, by the name of an Arrow aggregation: "sum" or "max"."""
    maps = column.combine_chunks()
    merged = pa.table({"key": maps.keys, "value": maps.items}).group_by("key").aggregate([("value", how)])
    return dict(zip(merged["key"].to_pylist(), merged[f"value_{how}"].to_pylist(), strict=True))


SUM = {MERGE: MergeRule(merge=operator.add, aggregate=_sum)}
"""Numbers that are added up."""
SUM_BY_POSITION = {MERGE: MergeRule(merge=_add_by_position, aggregate=_sum_by_position)}
"""Lists of counts that are added up position by position: histograms, rows by layer."""
SUM_BY_KEY = {MERGE: MergeRule(merge=_add_by_key, aggregate=lambda column: _aggregate_maps(column, "sum"))}
"""Numbers by name that are added up."""
MAX_BY_KEY = {MERGE: MergeRule(merge=_max_by_key, aggregate=lambda column: _aggregate_maps(column, "max"))}
"""Numbers by name, of which the largest is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Everything that is counted of a shard, or of many shards."""

    input_bytes: float = field(default=0.0, metadata=SUM)
    """Bytes of the input file that the shard stands for: the measure of progress."""
    rows_in: int = field(default=0, metadata=SUM)
    rows_out: int = field(default=0, metadata=SUM)
    rejected: dict[str, int] = field(default_factory=dict, metadata=SUM_BY_KEY)
    """Rejected rows by reason. What could not be read of a file counts as no row: see `Receipt.read_error`."""
    truncated: int = field(default=0, metadata=SUM)
    """Rows of which the model read only the first tokens."""
    tokens: int = field(default=0, metadata=SUM)
    """Tokens of rows; where long texts have windows, of those that were computed."""
    windows: int = field(default=0, metadata=SUM)
    """Windows that were computed: as many as rows, unless long texts have several."""
    exits: list[int] = field(default_factory=list, metadata=SUM_BY_POSITION)
    """Rows by exit layer, layer 1 first."""
    uncertainty_histogram: list[int] = field(default_factory=list, metadata=SUM_BY_POSITION)
    """Rows by uncertainty at their exit, in `histograms.UNCERTAINTY_BINS` equal bins of [0, 1]."""
    exit_uncertainty: list[int] = field(default_factory=list, metadata=SUM_BY_POSITION)
    """Rows by exit layer, layer 1 first, and by uncertainty there, in the bins of `calibration.drift.cells`: [L x BINS]."""
    label_counts: list[int] = field(default_factory=list, metadata=SUM_BY_POSITION)
    """Rows by predicted class, or by label, in the bins of `predicted.PredictionBins`."""
    score_histogram: list[int] = field(default_factory=list, metadata=SUM_BY_POSITION)
    """Rows by score, or by predicted value, in the bins of `predicted.PredictionBins`."""
    length_histogram: list[int] = field(default_factory=list, metadata=SUM_BY_POSITION)
    """Rows by tokens, in the bins of `histograms.LENGTH_EDGES`."""
    layer_tokens: int = field(default=0, metadata=SUM)
    """Tokens x layers computed for rows."""
    padding_tokens: int = field(default=0, metadata=SUM)
    """Tokens x layers computed for padding."""
    flops: float = field(default=0.0, metadata=SUM)
    flops_full_depth: float = field(default=0.0, metadata=SUM)
    """FLOPs of the plain full-depth model on the same rows."""
    audited: int = field(default=0, metadata=SUM)
    """Rows that the audit sent to full depth as well."""
    differing: int = field(default=0, metadata=SUM)
    """Audited rows whose prediction at full depth is another one."""
    audited_by_class: list[int] = field(default_factory=list, metadata=SUM_BY_POSITION)
    """Audited rows by class at full depth, or by label; empty where no class has a limit of its own."""
    missed_by_class: list[int] = field(default_factory=list, metadata=SUM_BY_POSITION)
    """Those of them that have another class, or lose the label, as they exit."""
    early_seconds: float = field(default=0.0, metadata=SUM | {MEASURED: True})
    """Wall-clock time of the audited rows with early exits."""
    full_seconds: float = field(default=0.0, metadata=SUM | {MEASURED: True})
    """Wall-clock time of the audited rows at full depth."""
    audit_flops: float = field(default=0.0, metadata=SUM)
    audit_uncertainty: list[int] = field(default_factory=list, metadata=SUM_BY_POSITION)
    """Audited rows by uncertainty at full depth, in the bins of the model's calibration."""
    seconds: dict[str, float] = field(default_factory=dict, metadata=SUM_BY_KEY | {MEASURED: True})
    """Wall-clock time by stage."""
    cpu_seconds: dict[str, float] = field(default_factory=dict, metadata=SUM_BY_KEY | {MEASURED: True})
    """CPU time of all threads by stage."""
    waits: dict[str, float] = field(default_factory=dict, metadata=SUM_BY_KEY | {MEASURED: True})
    """Wall-clock time for which shards that were ready waited for a stage, by stage: where work piles up."""
    peak_mb: dict[str, float] = field(default_factory=dict, metadata=MAX_BY_KEY | {MEASURED: True})
    """Largest memory of the process that ran the stage, by `clock.peak_memory_mb`."""


def merge_rules(counts: Counts | type[Counts]) -> dict[str, MergeRule]:
    """Return the rule of every counter by name; fields without one, such as a receipt's identity, are left out."""
    return {f.name: f.metadata[MERGE] for f in fields(counts) if MERGE in f.metadata}


def arrow_schema(counts: type[Counts]) -> pa.Schema:
    """Derive columns from the fields of a class: first those that are no counters, then the counters."""
    annotations = get_type_hints(counts)
    ordered = sorted(fields(counts), key=lambda f: MERGE in f.metadata)
    return pa.schema(
        [
            pa.field(f.name, ARROW_TYPES[annotations[f.name]], nullable=annotations[f.name] == str | None)
            for f in ordered
        ]
    )
