"""Ledgers with audited rows, and the history that is read of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.calibration.curve import TRUNCATED
from pipeline.calibration.history.pool import History, read_history
from pipeline.corpus.listing import Corpus
from pipeline.output.ledger import Ledger
from pipeline.output.receipts import Receipt
from pipeline.schema import AUDITS
from tests.support.ledger import FINGERPRINT, finish, receipt
from tests.support.models import new_model

MODEL = new_model()
NOW = {"weights": "1a", "max-tokens": "64", "long-texts": TRUNCATED, "dtype": "auto"}
MADE = FINGERPRINT | {"weights": "1a", "max-tokens": "64", "dtype": "fp32"}
FILES = tuple(f"{name}.txt" for name in "abcd")
EXITS, CLASSES = len(MODEL.exit_layers), MODEL.shape.classes
LTE = [0.0] * (EXITS if MODEL.lte is not None else 0)


def audits_of(receipts: Sequence[Receipt], draw: int) -> pa.Table:
    """Record of each shard a third of its rows, another third for each draw, with values that tell row and draw."""
    lines = []
    for done in receipts:
        for row in range(done.start + 1, done.start + done.rows_in):
            if (row + draw) % 3 == 0:
                values = [float(row), float(draw), *np.zeros(EXITS * CLASSES - 2)]
                line = {"shard": done.shard, "row": row, "truncated": row % 2 == 0, "lengths": [row + 1]}
                lines.append(line | {"logits": values, "lte": LTE})
    return pa.Table.from_pylist(lines, AUDITS)


def do(ledger: Ledger, draw: int, *receipts: Receipt) -> set[tuple[int, int]]:
    """Finish shards with the audits of a draw in one part; return their rows, each with its draw."""
    audits = audits_of(receipts, draw)
    counted = [
        replace(done, audited=sum(shard == done.shard for shard in audits["shard"].to_pylist())) for done in receipts
    ]
    finish(ledger, *counted, label=f"draw {draw}", audits=audits)
    return {(row + 1000 * number_of(done), draw) for done in receipts for row in rows_of(audits, done)}


def number_of(done: Receipt) -> int:
    return FILES.index(Path(done.file).name)


def rows_of(audits: pa.Table, done: Receipt) -> list[int]:
    return [line["row"] for line in audits.to_pylist() if line["shard"] == done.shard]


def read(*folders: str, rows: int = 10_000, seed: int = 0) -> History:
    return read_history(folders, NOW, MODEL, rows=rows, seed=seed)


def rows_in(history: History) -> list[tuple[float, float]]:
    """Return the row and the draw that each record is of; they do not tell its file."""
    logits = history.recorded.logits
    assert logits.shape == (EXITS, len(history.texts), CLASSES)
    assert history.texts.lengths.tolist() == (logits[0, :, 0] + 1).tolist()
    assert history.truncated.to_pylist() == (logits[0, :, 0] % 2 == 0).tolist()
    return sorted(zip(logits[0, :, 0].tolist(), logits[0, :, 1].tolist(), strict=True))


def shards_of(corpus: Corpus, file: int) -> tuple[Receipt, Receipt]:
    return receipt(corpus, file, 0, 20, last=False), receipt(corpus, file, 20, 10, last=True)
