"""Every column that offramp reads, sends or writes is named and typed here, and nowhere else."""

from collections.abc import Sequence

import pyarrow as pa

ID, FILE, ROW, REASON, DETAIL = "id", "file", "row", "reason", "detail"
TEXT, PAIR = "text", "pair"
TOKENS, SEGMENT, TRUNCATED = "tokens", "segment", "truncated"
LABEL, LABEL_ID, SCORE, VALUE = "label", "label_id", "score", "value"
PROBABILITIES, LOGITS = "probabilities", "logits"
EXIT_LAYER, UNCERTAINTY = "exit_layer", "uncertainty"

KEPT = "keep."
"""Kept columns travel under this prefix, so that a column of the input may have any name that the output leaves free."""

RESULTS = {
    ID: pa.string(),
    LABEL: pa.string(),
    LABEL_ID: pa.int32(),
    SCORE: pa.float32(),
    VALUE: pa.float32(),
    PROBABILITIES: pa.list_(pa.float32()),
    LOGITS: pa.list_(pa.float32()),
    EXIT_LAYER: pa.int16(),
    UNCERTAINTY: pa.float32(),
    TRUNCATED: pa.bool_(),
}
"""What can be said of a row. A part holds some of these columns, none of them ever null."""

REJECTS = pa.schema(
    [
        pa.field(ID, pa.string(), nullable=False),
        pa.field(FILE, pa.string(), nullable=False),
        pa.field(ROW, pa.int64()),  # null when a whole file could not be read
        pa.field(REASON, pa.string(), nullable=False),
        pa.field(DETAIL, pa.string()),
    ]
)

RECEIPTS = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),
        pa.field("last", pa.bool_(), nullable=False),
        pa.field("input_bytes", pa.float64(), nullable=False),
        pa.field("read_error", pa.string()),
        pa.field("rows_in", pa.int64(), nullable=False),
        pa.field("rows_out", pa.int64(), nullable=False),
        pa.field("rejected", pa.map_(pa.string(), pa.int64()), nullable=False),
        pa.field("truncated", pa.int64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        *(
            pa.field(name, pa.list_(pa.int64()), nullable=False)
            for name in ("exits", "uncertainty_histogram", "length_histogram")
        ),
        pa.field("layer_tokens", pa.int64(), nullable=False),
        pa.field("padding_tokens", pa.int64(), nullable=False),
        pa.field("flops", pa.float64(), nullable=False),
        pa.field("flops_full_depth", pa.float64(), nullable=False),
        *(
            pa.field(name, pa.map_(pa.string(), pa.float32()), nullable=False)
            for name in ("seconds", "cpu_seconds", "peak_mb")
        ),
        pa.field("sums", pa.map_(pa.string(), pa.float64()), nullable=False),
    ]
)
"""Finished shards, by `receipts.Receipt`."""

PART, REJECTS_PART = "part", "rejects_part"
SHARDS = pa.schema([pa.field(PART, pa.string(), nullable=False), pa.field(REJECTS_PART, pa.string()), *RECEIPTS])
"""Published shards: where their results are, and, where there are rejects, those; relative to the output folder."""


def kept_schema(keep: pa.Schema) -> pa.Schema:
    """Return the kept columns as they travel between stages, under their prefix."""
    return pa.schema([pa.field(KEPT + field.name, field.type) for field in keep])


def read_schema(keep: pa.Schema, *, pairs: bool) -> pa.Schema:
    """Return the columns of rows between reader and tokenizer: names and texts."""
    fields = [(ID, pa.string()), (ROW, pa.int64()), (TEXT, pa.string())]
    fields += [(PAIR, pa.string())] if pairs else []
    return pa.schema([*fields, *kept_schema(keep)])


def token_schema(keep: pa.Schema) -> pa.Schema:
    """Return the columns of rows between tokenizer and model: ragged token ids in place of texts."""
    fields = [(ID, pa.string()), (ROW, pa.int64()), (TOKENS, pa.list_(pa.int32())), (SEGMENT, pa.int32())]
    return pa.schema([*fields, (TRUNCATED, pa.bool_()), *kept_schema(keep)])


def output_schema(results: Sequence[str], keep: pa.Schema) -> pa.Schema:
    """Return the columns of a part file: some of RESULTS, then the kept columns under their own names."""
    return pa.schema([*(pa.field(name, RESULTS[name], nullable=False) for name in results), *keep])
