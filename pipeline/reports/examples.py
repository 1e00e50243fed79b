"""Example rows for the run report: some of every exit layer, with their texts, which only the input has.

Texts may be private, so this is done on request only. Rows are found by reading parts, and their texts by reading the shards
that the parts were made of once more.
"""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.corpus.columns import Columns
from pipeline.corpus.listing import InputFile
from pipeline.corpus.reader import read_shards
from pipeline.output.parts import Output
from pipeline.reports.page import Table
from pipeline.schema import EXIT_LAYER, ID, LABEL, PAIR, SCORE, TEXT, UNCERTAINTY, VALUE
from pipeline.storage.locate import storage_of

PER_LAYER = 10
SHARDS_READ = 20
"""At most: the report is no reason to read a corpus twice."""
CHARACTERS = 300
"""Of a text; enough to see what it is about."""


def examples(files: Sequence[InputFile], columns: Columns, output: Output) -> Table | None:
    """Return a table of rows by exit layer, out of the parts in `output`; None for runs that write no exit layers."""
    found: dict[int, list[list[str]]] = {}
    for _, (part, texts) in zip(range(SHARDS_READ), _parts_with_texts(files, columns, output), strict=False):
        if EXIT_LAYER not in part.column_names:
            return None
        layers = part[EXIT_LAYER].to_numpy()
        for layer in sorted({*layers.tolist()}):
            wanted = PER_LAYER - len(found.setdefault(layer, []))
            rows = pa.array((layers == layer).nonzero()[0][:wanted])
            chosen = zip(part.take(rows).to_pylist(), texts.take(rows).to_pylist(), strict=True)
            found[layer] += [_cells(layer, row, text) for row, text in chosen]
    rows = [row for layer in sorted(found) for row in found[layer]]
    note = (
        f"The first {PER_LAYER} of every exit layer, from the first shards; texts are cut at {CHARACTERS} characters."
    )
    return Table("Examples", ["exit", "answer", "score", "uncertainty", "id", "text"], rows, note)


def _parts_with_texts(
    files: Sequence[InputFile], columns: Columns, output: Output
) -> Iterator[tuple[pa.Table, pa.Array]]:
    """Yield parts with the texts of their rows."""
    storage = storage_of(output.folder)
    for file in files:
        for shard in read_shards(file, columns):
            found = storage.read(f"{output.folder}/{output.part(shard.id)}")
            rows = shard.rows
            if found is None or not len(rows):
                continue
            part = pq.read_table(pa.BufferReader(found[0]))
            if part[ID].to_pylist() != rows[ID].to_pylist():
                continue  # a stage gave up rows of this shard
            texts = rows[TEXT] if PAIR not in rows.column_names else _joined(rows)
            yield part, texts.combine_chunks()


def _joined(rows: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(rows[TEXT], rows[PAIR], " | ")


def _cells(layer: int, row: dict[str, object], text: str) -> list[str]:
    answer = row[LABEL] if LABEL in row else f"{row[VALUE]:.3f}"
    score = f"{row[SCORE]:.3f}" if SCORE in row else ""
    short = text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]} ..."
    return [str(layer), str(answer), score, f"{row[UNCERTAINTY]:.3f}", str(row[ID]), short]
