"""Names and types of the columns that stages exchange, and of those in the output."""

from collections.abc import Sequence

import pyarrow as pa

ID, FILE, ROW, REASON, DETAIL = "id", "file", "row", "reason", "detail"
TEXT, PAIR = "text", "pair"
TOKENS, SEGMENT, TRUNCATED = "tokens", "segment", "truncated"
LABEL, LABEL_ID, SCORE, VALUE = "label", "label_id", "score", "value"
PROBABILITIES, LOGITS = "probabilities", "logits"
EXIT_LAYER, UNCERTAINTY = "exit_layer", "uncertainty"

KEPT = "keep."
"""Prefix of kept columns between stages, so that no name of an input column can clash with a column of ours."""

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
"""Columns of results and their types; a part file holds some of them, without nulls."""

REJECTS = pa.schema(
    [
        pa.field(ID, pa.string(), nullable=False),
        pa.field(FILE, pa.string(), nullable=False),
        pa.field(ROW, pa.int64()),  # null where the rest of a file could not be read
        pa.field(REASON, pa.string(), nullable=False),
        pa.field(DETAIL, pa.string()),
    ]
)
"""Schema of files in the folder of rejects."""

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


def travelling(keep: pa.Schema) -> pa.Schema:
    """Kept columns as they travel between stages."""
    return pa.schema([pa.field(KEPT + field.name, field.type) for field in keep])


def read_schema(keep: pa.Schema, *, pairs: bool) -> pa.Schema:
    """Rows as they leave the reader; a row with a `reason` is a reject and has no text."""
    fields = [(ID, pa.string()), (ROW, pa.int64()), (TEXT, pa.string())]
    fields += [(PAIR, pa.string())] if pairs else []
    return pa.schema([*fields, (REASON, pa.string()), (DETAIL, pa.string()), *travelling(keep)])


def token_schema(keep: pa.Schema) -> pa.Schema:
    """Rows as they leave the tokenizer: ragged ids in place of text."""
    fields = [(ID, pa.string()), (ROW, pa.int64()), (TOKENS, pa.list_(pa.int32())), (SEGMENT, pa.int32())]
    fields += [(TRUNCATED, pa.bool_()), (REASON, pa.string()), (DETAIL, pa.string())]
    return pa.schema([*fields, *travelling(keep)])


def output_schema(results: Sequence[str], keep: pa.Schema) -> pa.Schema:
    """The rows of a part file: some of RESULTS, then the kept columns."""
    return pa.schema([*(pa.field(name, RESULTS[name], nullable=False) for name in results), *keep])
