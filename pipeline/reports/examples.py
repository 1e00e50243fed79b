"""Example rows for the report of a run: some rows of every exit layer, with their texts.

Texts may be private and stand in no output, so examples are made on request only. Rows are found by reading output parts; their
texts, by reading once more the input shards that the parts were made from.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.corpus.columns import Columns
from pipeline.corpus.listing import InputFile
from pipeline.corpus.reader import read_shards
from pipeline.output.parts import Output
from pipeline.output.results import finished_shards
from pipeline.reports.page import Table
from pipeline.schema import EXIT_LAYER, ID, LABEL, LABELS, PAIR, SCORE, TEXT, UNCERTAINTY, VALUE
from pipeline.storage.locate import storage_of

ROWS_PER_LAYER = 10
MAX_SHARDS = 20
"""At most this many shards are read: a report is no reason to read a corpus twice."""
MAX_CHARACTERS = 300
"""Texts are cut after this many characters, enough to see what they are about."""


def examples(files: Sequence[InputFile], columns: Columns, output: Output) -> Table | None:
    """Return a table of rows by exit layer, from the parts in `output`; None for a run that writes no exit layers."""
    cells: dict[int, list[list[str]]] = {}
    for _, (part, texts) in zip(range(MAX_SHARDS), _parts_with_texts(files, columns, output), strict=False):
        if EXIT_LAYER not in part.column_names:
            return None
        layers = part[EXIT_LAYER].to_numpy()
        for layer in sorted({*layers.tolist()}):
            wanted = ROWS_PER_LAYER - len(cells.setdefault(layer, []))
            indices = pa.array((layers == layer).nonzero()[0][:wanted])
            chosen = zip(part.take(indices).to_pylist(), texts.take(indices).to_pylist(), strict=True)
            cells[layer] += [_cells(layer, row, text) for row, text in chosen]
    rows = [row for layer in sorted(cells) for row in cells[layer]]
    note = (
        f"The first {ROWS_PER_LAYER} rows of every exit layer, from the first shards; "
        f"texts are cut after {MAX_CHARACTERS} characters."
    )
    return Table("Examples", ["exit", "prediction", "score", "uncertainty", "id", "text"], rows, note)


def _parts_with_texts(
    files: Sequence[InputFile], columns: Columns, output: Output
) -> Iterator[tuple[pa.Table, pa.Array]]:
    """Yield the results of shards, each with the texts of its rows; shards that are missing or lack some rows are skipped."""
    storage = storage_of(output.folder)
    receipts = finished_shards(output).select(["shard", "part", "part_row", "rows_out"])
    done = {receipt["shard"]: receipt for receipt in receipts.to_pylist()}
    for file in files:
        for shard in read_shards(file, columns):
            receipt, rows = done.get(shard.id), shard.rows
            if receipt is None or not len(rows):
                continue
            stored = storage.read(f"{output.folder}/{receipt['part']}")
            if stored is None:
                continue
            part = pq.read_table(pa.BufferReader(stored[0])).slice(receipt["part_row"], receipt["rows_out"])
            if part[ID].to_pylist() != rows[ID].to_pylist():
                continue  # a later stage rejected rows of this shard
            part = part.drop_columns([name for name in columns.keep.names if name in part.column_names])
            texts = rows[TEXT] if PAIR not in rows.column_names else _join_pairs(rows)
            yield part, texts.combine_chunks()


def _join_pairs(rows: pa.Table) -> pa.ChunkedArray:
    """Return both texts of every row as one: 'first | second'."""
    return pc.binary_join_element_wise(rows[TEXT], rows[PAIR], " | ")


def _cells(layer: int, row: dict[str, Any], text: str) -> list[str]:
    """Return one row of the table."""
    names = row[LABELS] if LABELS in row else [row[LABEL] if LABEL in row else f"{row[VALUE]:.3f}"]
    prediction = ", ".join(names) or "none"
    score = f"{row[SCORE]:.3f}" if SCORE in row else ""
    short = text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]} ..."
    short = "".join(" " if character.isspace() else character for character in short)
    return [str(layer), str(prediction), score, f"{row[UNCERTAINTY]:.3f}", str(row[ID]), short]
