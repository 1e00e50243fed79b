"""A corpus for chaos: every format, short texts, some bad rows in every file, one file cut short, and poison if wanted."""

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.benchmark.synthetic import reviews
from tests.support.poison.sitecustomize import UPSETTING_TOKENS

KINDS = ("parquet", "jsonl", "jsonl.gz", "csv", "txt")
BAD_EVERY = 97
"""One row in so many cannot be used."""
POISON = ("RAISE-TOKENIZE", "KILL-TOKENIZE", " ".join(["the"] * (UPSETTING_TOKENS - 2)))
"""Rows that raise or kill a worker, by tests/support/poison; the last one kills actors."""


def make_corpus(folder: Path, files: int, rows: int, *, poison: bool = False) -> None:
    """Write `files` files of `rows` rows, and a truncated one; poison rows, one each, are in the middle of the first files."""
    folder.mkdir(parents=True)
    texts = [review.text for review in reviews(files * rows, seed=5)]
    for number, text in enumerate(POISON if poison else ()):
        texts[number * rows + rows // 2] = text
    for number in range(files):
        kind, mine = KINDS[number % len(KINDS)], texts[number * rows : (number + 1) * rows]
        (folder / f"{number:03}.{kind}").write_bytes(encode(kind, mine))
    whole = encode("parquet", texts[:rows])
    (folder / "truncated.parquet").write_bytes(whole[: len(whole) // 2])


def encode(kind: str, texts: list[str]) -> bytes:
    """Make a file of these texts, every so many-th of them bad in a way of the format's own."""
    bad = {row for row in range(len(texts)) if row % BAD_EVERY == BAD_EVERY - 1}
    if kind == "parquet":
        sink = io.BytesIO()
        values = [None if row in bad else text for row, text in enumerate(texts)]
        pq.write_table(pa.table({"text": values}), sink, row_group_size=1000)
        return sink.getvalue()
    if kind == "csv":
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerows([["text", "stars"], *(["" if row in bad else text, row] for row, text in enumerate(texts))])
        return out.getvalue().encode()
    if kind == "txt":
        return b"".join(b"\xff\xfe\n" if row in bad else text.encode() + b"\n" for row, text in enumerate(texts))
    lines = "".join("{broken\n" if row in bad else json.dumps({"text": text}) + "\n" for row, text in enumerate(texts))
    return gzip.compress(lines.encode()) if kind == "jsonl.gz" else lines.encode()
