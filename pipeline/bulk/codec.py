"""Convert between Arrow tables, which travel, and the arrays that tokenizer and engine work with.

    schema.read_schema     id, row, text, keep.*      ── with_tokens ──>        schema.token_schema
    schema.token_schema    id, row, tokens, keep.*    ── token_rows ──>         rows.TokenRows
                                                      ── text_rows ──>          engine.texts.rows.TextRows
                                                      ── with_predictions ──>   schema.output_schema

Tables hold the rows that can be used, and no rejects.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus.tokenize import Tokenized
from pipeline.engine.texts.rows import TextRows
from pipeline.histograms import (
    SCORE_BINS,
    VALUE_EDGES,
    bins_of,
    classes_per_bin,
    counts_by_group,
    score_bins,
)
from pipeline.rows import IntArray, Predictions, TokenRows, offsets_of
from pipeline.schema import (
    EXIT_LAYER,
    KEPT,
    LABEL,
    LABEL_ID,
    LABELS,
    LOGITS,
    PROBABILITIES,
    PROBABILITY,
    SCORE,
    SEGMENT,
    TOKENS,
    TRUNCATED,
    UNCERTAINTY,
    VALUE,
    WINDOWS,
    output_schema,
    token_schema,
)


def with_tokens(rows: pa.Table, pieces: Sequence[Tokenized], keep: pa.Schema) -> pa.Table:
    """Put tokens in place of the texts of B rows; the pieces hold the same B rows, in order."""
    tokens = TokenRows.join([piece.rows for piece in pieces])
    offsets, segments = tokens.offsets, tokens.segments
    made = {TRUNCATED: pa.array(np.concatenate([piece.truncated for piece in pieces]))}
    counts = [piece.windows for piece in pieces if piece.windows is not None]
    if counts:
        bounds = offsets_of(np.concatenate(counts))
        made[WINDOWS] = pa.ListArray.from_arrays(pa.array(bounds, pa.int32()), pa.array(segments))
        offsets = offsets[bounds]
        segments = np.diff(offsets).astype(np.int32)
    made[TOKENS] = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(tokens.token_ids))
    made[SEGMENT] = pa.array(segments)
    schema = token_schema(keep, windows=bool(counts))
    return pa.table([made[name] if name in made else rows[name] for name in schema.names], schema=schema)


def token_rows(rows: pa.Table) -> TokenRows:
    """Take the tokens out of rows by `schema.token_schema`, without a copy of them."""
    if len(rows) == 0:
        return TokenRows.from_lists([])
    column = rows[TOKENS].combine_chunks()
    offsets = column.offsets.to_numpy().astype(np.int64)
    return TokenRows(
        token_ids=column.values.to_numpy()[offsets[0] : offsets[-1]],
        offsets=offsets - offsets[0],
        segments=rows[SEGMENT].to_numpy(),
    )


def text_rows(rows: pa.Table) -> TextRows:
    """Take the windows of texts out of rows by `schema.token_schema`; each row is one where it has no WINDOWS."""
    tokens = token_rows(rows)
    if WINDOWS not in rows.column_names or len(rows) == 0:
        return TextRows.whole(tokens)
    column = rows[WINDOWS].combine_chunks()
    lengths, counts = column.flatten().to_numpy(), column.value_lengths().to_numpy().astype(np.int64)
    windows = TokenRows(token_ids=tokens.token_ids, offsets=offsets_of(lengths), segments=lengths)
    return TextRows(windows=windows, counts=counts)


def with_predictions(
    rows: pa.Table,
    predictions: Predictions,
    labels: Sequence[str],
    results: Sequence[str],
    keep: pa.Schema,
    windows: IntArray | None = None,
) -> pa.Table:
    """Put the predictions of B rows in place of their tokens: some results, and the kept columns under their own names.

    `windows` [B], where results have them, are those that were computed.
    """
    columns: dict[str, Callable[[], pa.Array]] = {
        LABEL: lambda: _names(predictions.label_ids, labels),
        LABEL_ID: lambda: pa.array(predictions.label_ids),
        LABELS: lambda: name_lists(predictions.label_sets, labels),
        SCORE: lambda: pa.array(predictions.scores),
        VALUE: lambda: pa.array(predictions.logits[:, 0]),
        PROBABILITIES: lambda: _lists(predictions.probabilities),
        PROBABILITY: lambda: pa.array(predictions.value_probabilities),
        LOGITS: lambda: _lists(predictions.logits),
        EXIT_LAYER: lambda: pa.array(predictions.exit_layers),
        UNCERTAINTY: lambda: pa.array(predictions.uncertainty),
        WINDOWS: lambda: pa.array(windows, pa.int32()),
    }
    made = [columns[name]() if name in columns else rows[name] for name in results]
    return pa.table([*made, *(rows[KEPT + name] for name in keep.names)], schema=output_schema(results, keep))


def label_counts(
    rows: pa.Table, labels: Sequence[str], results: Sequence[str], numbers_B: IntArray, shards: int
) -> list[list[int]]:
    """Count the rows of every shard by class, or once for each of their labels; empty where neither is among the results.

    `rows` are as they are written, and `numbers_B` has the shard of each. The bins are those of `predicted.PredictionBins`.
    """
    width = classes_per_bin(len(labels))
    bins = -(-len(labels) // width)
    if LABEL in results:
        return counts_by_group(numbers_B, _label_ids(rows[LABEL], labels) // width, shards, bins)
    if LABELS not in results:
        return [[] for _ in range(shards)]
    lists = rows[LABELS].combine_chunks()
    counts_B = lists.value_lengths().to_numpy()
    without = numbers_B[counts_B == 0]
    found = np.concatenate([_label_ids(lists.flatten(), labels) // width, np.full(len(without), bins)])
    return counts_by_group(np.concatenate([np.repeat(numbers_B, counts_B), without]), found, shards, bins + 1)


def score_histograms(rows: pa.Table, results: Sequence[str], numbers_B: IntArray, shards: int) -> list[list[int]]:
    """Count the rows of every shard by score, or by value, as they are written; empty where neither is among the results."""
    if SCORE in results:
        return counts_by_group(numbers_B, score_bins(rows[SCORE].to_numpy()), shards, SCORE_BINS)
    if VALUE in results:
        return counts_by_group(numbers_B, bins_of(rows[VALUE].to_numpy(), VALUE_EDGES), shards, len(VALUE_EDGES) + 1)
    return [[] for _ in range(shards)]


def _label_ids(names: pa.Array | pa.ChunkedArray, labels: Sequence[str]) -> IntArray:
    return pc.index_in(names, value_set=pa.array(labels, pa.string())).to_numpy().astype(np.int64)


def name_lists(sets_BC: npt.NDArray[np.bool_], labels: Sequence[str]) -> pa.Array:
    """Turn label sets into B lists of names, in the order of the labels: `[[True, False, True]]` of a, b and c is a and c."""
    names = _names(np.nonzero(sets_BC)[1].astype(np.int32), labels)
    return pa.ListArray.from_arrays(pa.array(offsets_of(sets_BC.sum(1)), pa.int32()), names)


def _names(label_ids: npt.NDArray[np.int32], labels: Sequence[str]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(label_ids, pa.array(labels, pa.string())).dictionary_decode()


def _lists(values_BC: npt.NDArray[np.float32]) -> pa.Array:
    """Turn [B, C] values into B lists of C."""
    count, width = values_BC.shape
    return pa.ListArray.from_arrays(np.arange(0, (count + 1) * width, width, dtype=np.int32), values_BC.ravel())
