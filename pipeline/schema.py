"""Names and types of the columns of rows: as stages exchange them, and in the output.

Receipts have columns of their own, derived from `output.receipts.Receipt`.
"""

from collections.abc import Sequence

import pyarrow as pa

from models.exits.task import Task

ID, FILE, ROW, REASON, DETAIL = "id", "file", "row", "reason", "detail"
TEXT, PAIR = "text", "pair"
TOKENS, SEGMENT, TRUNCATED = "tokens", "segment", "truncated"
WINDOWS = "windows"
LABEL, LABEL_ID, LABELS, SCORE, VALUE = "label", "label_id", "labels", "score", "value"
PROBABILITIES, PROBABILITY, LOGITS = "probabilities", "probability", "logits"
EXIT_LAYER, UNCERTAINTY = "exit_layer", "uncertainty"

KEPT = "keep."
"""Prefix of kept columns between stages, so that no name of an input column can clash with a column of ours."""

RESULTS = {
    ID: pa.string(),
    LABEL: pa.string(),
    LABEL_ID: pa.int32(),
    LABELS: pa.list_(pa.string()),
    SCORE: pa.float32(),
    VALUE: pa.float32(),
    PROBABILITIES: pa.list_(pa.float32()),
    PROBABILITY: pa.float32(),
    LOGITS: pa.list_(pa.float32()),
    EXIT_LAYER: pa.int16(),
    UNCERTAINTY: pa.float32(),
    TRUNCATED: pa.bool_(),
    WINDOWS: pa.int32(),
}
"""Columns of results and their types; a part file holds some of them, without nulls."""

PREDICTED = {Task.CLASSES: (LABEL, LABEL_ID, SCORE), Task.VALUE: (VALUE,), Task.LABELS: (LABELS, SCORE)}
"""Columns of results that hold the prediction itself, by the model's task."""
ON_REQUEST = {Task.CLASSES: PROBABILITIES, Task.VALUE: PROBABILITY, Task.LABELS: PROBABILITIES}
"""Column of probabilities, which is written on request, by the model's task: a value is then taken for a logit."""

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

SHARD, LENGTHS, LTE = "shard", "lengths", "lte"
AUDITS = pa.schema(
    [
        pa.field(SHARD, pa.string(), nullable=False),
        pa.field(ROW, pa.int64(), nullable=False),
        pa.field(TRUNCATED, pa.bool_(), nullable=False),
        pa.field(LENGTHS, pa.list_(pa.int32()), nullable=False),  # tokens of every window, one without windows
        pa.field(
            LOGITS, pa.list_(pa.float32()), nullable=False
        ),  # [W, E, C]: of every window, at every exit of the model
        pa.field(LTE, pa.list_(pa.float32()), nullable=False),  # [W, E]: empty unless the model has learned exits
    ]
)
"""Schema of files in the folder of audits: what every exit says of a row that was audited."""


def kept_schema(keep: pa.Schema) -> pa.Schema:
    """Return the kept columns as they travel between stages, under their prefix."""
    return pa.schema([pa.field(KEPT + field.name, field.type) for field in keep])


def read_schema(keep: pa.Schema, *, pairs: bool) -> pa.Schema:
    """Return the columns of rows between reader and tokenizer: names and texts."""
    fields = [(ID, pa.string()), (ROW, pa.int64()), (TEXT, pa.string())]
    fields += [(PAIR, pa.string())] if pairs else []
    return pa.schema([*fields, *kept_schema(keep)])


def token_schema(keep: pa.Schema, *, windows: bool = False) -> pa.Schema:
    """Return the columns of rows between tokenizer and model: ragged token ids in place of texts.

    Where texts may have several windows, the ids of all of them are one after the other, and WINDOWS has their lengths.
    """
    fields = [(ID, pa.string()), (ROW, pa.int64()), (TOKENS, pa.list_(pa.int32())), (SEGMENT, pa.int32())]
    fields += [(WINDOWS, pa.list_(pa.int32()))] if windows else []
    return pa.schema([*fields, (TRUNCATED, pa.bool_()), *kept_schema(keep)])


def output_schema(results: Sequence[str], keep: pa.Schema) -> pa.Schema:
    """Return the columns of a part file: some of RESULTS, then the kept columns under their own names."""
    return pa.schema([*(pa.field(name, RESULTS[name], nullable=False) for name in results), *keep])
