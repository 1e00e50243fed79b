"""Every column that offramp reads, sends or writes is named and typed here, and nowhere else."""

import pyarrow as pa

ID, FILE, ROW, REASON, DETAIL = "id", "file", "row", "reason", "detail"
TEXT, PAIR = "text", "pair"
TOKENS, SEGMENT, TRUNCATED = "tokens", "segment", "truncated"
LABEL, LABEL_ID, SCORE, PROBABILITIES = "label", "label_id", "score", "probabilities"
EXIT_LAYER, UNCERTAINTY = "exit_layer", "uncertainty"

OUTPUT_COLUMNS = (ID, LABEL, LABEL_ID, SCORE, PROBABILITIES, EXIT_LAYER, UNCERTAINTY, TRUNCATED)
"""Names that a kept column of the input cannot have."""

REJECTS = pa.schema(
    [
        pa.field(ID, pa.string(), nullable=False),
        pa.field(FILE, pa.string(), nullable=False),
        pa.field(ROW, pa.int64()),  # null when a whole file could not be read
        pa.field(REASON, pa.string(), nullable=False),
        pa.field(DETAIL, pa.string()),
    ]
)


def read_schema(keep: pa.Schema, *, pairs: bool) -> pa.Schema:
    """Rows as they leave the reader; a row with a `reason` is a reject and has no text."""
    fields = [(ID, pa.string()), (ROW, pa.int64()), (TEXT, pa.string())]
    fields += [(PAIR, pa.string())] if pairs else []
    return pa.schema([*fields, (REASON, pa.string()), (DETAIL, pa.string()), *keep])


def token_schema(keep: pa.Schema) -> pa.Schema:
    """Rows as they leave the tokeniser: ragged ids in place of text."""
    fields = [(ID, pa.string()), (ROW, pa.int64()), (TOKENS, pa.list_(pa.int32())), (SEGMENT, pa.int32())]
    fields += [(TRUNCATED, pa.bool_()), (REASON, pa.string()), (DETAIL, pa.string())]
    return pa.schema([*fields, *keep])


def output_schema(keep: pa.Schema, *, probabilities: bool) -> pa.Schema:
    """The rows of a part file."""
    fields = [
        pa.field(ID, pa.string(), nullable=False),
        pa.field(LABEL, pa.string(), nullable=False),
        pa.field(LABEL_ID, pa.int32(), nullable=False),
        pa.field(SCORE, pa.float32(), nullable=False),
    ]
    fields += [pa.field(PROBABILITIES, pa.list_(pa.float32()), nullable=False)] if probabilities else []
    fields += [
        pa.field(EXIT_LAYER, pa.int16(), nullable=False),
        pa.field(UNCERTAINTY, pa.float32(), nullable=False),
        pa.field(TRUNCATED, pa.bool_(), nullable=False),
    ]
    return pa.schema([*fields, *keep])
