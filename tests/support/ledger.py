"""A small corpus on either file system, and shards of it finished without a model."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.bulk.bundle import BUNDLE_REJECTS, Bundle
from pipeline.corpus.listing import Corpus, list_inputs
from pipeline.output.ledger import Ledger
from pipeline.output.parts import prepare_folder
from pipeline.output.receipts import Receipt
from pipeline.output.results import open_rejects, open_results, published, shards
from pipeline.schema import REJECTS, SHARD
from pipeline.storage.locate import storage_of

FINGERPRINT = {"model": "m 1", "criterion": "entropy 0.1", "tokenizer": "t 1", "schema": "id, label"}
SCHEMA = pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("label", pa.string(), nullable=False)])

OTHER = FINGERPRINT | {"criterion": "entropy 0.2"}
ALL_IDS = sorted(f"{name}:{row}" for name in ("a.txt", "b.txt") for row in range(30))


def make_corpus(location: str, names: tuple[str, ...] = ("a.txt", "b.txt")) -> Corpus:
    """Write files of thirty rows."""
    storage = storage_of(location)
    storage.make_folder(f"{location}/in")
    for name in names:
        storage.write(f"{location}/in/{name}", b"x\n" * 30)
    return list_inputs(f"{location}/in")


def make_folder(location: str) -> str:
    return prepare_folder(f"{location}/out", f"{location}/in")


def receipt(corpus: Corpus, file: int, start: int, rows: int, *, last: bool) -> Receipt:
    """Make the receipt of a shard whose first row is a reject."""
    source = corpus.files[file]
    return Receipt(
        shard=source.shard_id(start),
        file=source.path,
        size=source.size,
        version=source.version,
        start=start,
        span=rows,
        last=last,
        input_bytes=10.0,
        rows_in=rows,
        rows_out=rows - 1,
        rejected={"null_text": 1},
        exits=[rows - 1, 0],
        flops=1.0,
        flops_full_depth=2.0,
        seconds={"read": 0.5},
        peak_mb={"read": 100.0 + file},
    )


def write(ledger: Ledger, *done: Receipt, label: str = "good", audits: pa.Table | None = None) -> list[Receipt]:
    """Write the part of some shards, their rejects and audits, as the last stage does; return the receipts that name it."""
    rows, rejects = SCHEMA.empty_table(), REJECTS.empty_table()
    for one in done:
        ids = [f"{Path(one.file).name}:{row}" for row in range(one.start, one.start + one.rows_in)]
        good = pa.table({"id": ids[1:], "label": [label] * (len(ids) - 1)}, schema=SCHEMA)
        reject = {"id": ids[0], "file": one.file, "row": one.start, "reason": "null_text", "detail": None}
        rows, rejects = (
            pa.concat_tables([rows, good]),
            pa.concat_tables([rejects, pa.Table.from_pylist([reject], REJECTS)]),
        )
    bundle = Bundle(receipts=[*done], rows=rows, rejects=with_shards(rejects), sent=0.0)
    bundle.audits = bundle.audits if audits is None else audits
    bundle.write(ledger.output)
    return bundle.receipts


def with_shards(rejects: pa.Table) -> pa.Table:
    """Say of rejects that each is of another shard, one after the other."""
    return rejects.append_column(SHARD, pa.array(range(len(rejects)), pa.int32())).cast(BUNDLE_REJECTS)


def finish(ledger: Ledger, *done: Receipt, label: str = "good", audits: pa.Table | None = None) -> list[Receipt]:
    """Write the part of some shards and record them."""
    receipts = write(ledger, *done, label=label, audits=audits)
    ledger.add(receipts)
    return receipts


def run_all(
    folder: str, corpus: Corpus, fingerprint: dict[str, str], label: str = "good", **options: Any
) -> str | None:
    """Do all that is left and publish, as a run does; return None if there was nothing to do."""
    with Ledger(folder, fingerprint, **options) as ledger:
        left = ledger.unfinished(corpus.files)
        if not left and ledger.published():
            ledger.finish()
            return None
        ledger.begin(SCHEMA)
        for number, file in enumerate(corpus.files):
            if file.path in left:
                for start, rows in ((0, 20), (20, 10)):
                    if start not in left[file.path]:
                        finish(ledger, receipt(corpus, number, start, rows, last=start == 20), label=label)
        return ledger.publish(1.5, {})


def files_in(folder: str) -> set[str]:
    return {entry.path.removeprefix(f"{folder}/") for entry in storage_of(folder).walk(folder)} - {"_lock"}


def read_all(folder: str) -> tuple[list[str], set[str]]:
    """Read all ids of results and rejects, and all labels."""
    rows, rejects = open_results(folder).to_table(), open_rejects(folder).to_table()
    return sorted(rows["id"].to_pylist() + rejects["id"].to_pylist()), set(rows["label"].to_pylist())


def check_positions(folder: str) -> None:
    """See that every shard's rows and rejects are where its receipt says, and nothing else is in a part."""
    counts: dict[str, int] = {}
    for shard in shards(published(folder)).to_pylist():
        name = shard["file"].rsplit("/", 1)[1]
        for part, row, count in (
            (shard["part"], shard["part_row"], shard["rows_out"]),
            (shard["rejects_part"], shard["rejects_row"], 1),
        ):
            data = storage_of(folder).read(f"{folder}/{part}")
            assert data
            ids = pq.read_table(pa.BufferReader(data[0]))["id"].to_pylist()
            counts[part] = counts.get(part, len(ids)) - count
            first = shard["start"] + (1 if part == shard["part"] else 0)  # the first row is the reject
            assert ids[row : row + count] == [f"{name}:{number}" for number in range(first, first + count)]
    assert set(counts.values()) == {0}
