"""The receipt log: a driver's receipts on their way to storage, in small files of its own, written about once a second.

A segment, `_receipts/g<generation>/<driver>-<number>.parquet`, is rewritten with more receipts until it is full. So there are
few files, nothing is appended to, which S3 could not do, and no driver writes a file of another one. The receipts of a part are
stored together: one that names a part vouches for the others in it. A driver that is killed loses the receipts of its last
second, and the next run does those shards again.
"""

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import RefusedError, StorageError
from pipeline.output.parts import PART_PATTERN, RECEIPTS_KEY, REJECTS_FOLDER, REJECTS_PATTERN, parquet_bytes
from pipeline.output.receipts import RECEIPTS, Receipt, receipts_table, unpack_receipts
from pipeline.storage.locate import storage_of

FLUSH_SECONDS = 1.0
SEGMENT_RECEIPTS = 4000
"""Receipts of a full segment: what is rewritten every second stays below some 350 KB, or 1.5 MB with 256 classes.

A million shards are 250 segments.
"""
BATCH_ROWS = 1 << 14
"""Receipts in memory at once when many are read: some 10 MB, and 35 MB more with 256 classes."""
READERS = 16
"""Segments read at once: a request to S3 is mostly waiting."""
LATER_LISTS = (
    "waits", "label_counts", "score_histogram", "exit_uncertainty", "audited_by_class", "missed_by_class",
)  # fmt: skip
"""Lists that older lists of shards lack, and that are empty for their rows."""
OLDER_LACK = ("span", "part_row", "rejects_row", "windows", *LATER_LISTS)
"""Columns that older lists lack: those of version 3, in which every shard had a part of its own, and the first of version 4."""
ShardIds = npt.NDArray[np.uint64]
"""[N]: ids of shards as numbers, a third of the size of their 16 hexadecimal digits and faster to sort."""
NO_SHARDS: ShardIds = np.array([], np.uint64)


class ReceiptLog:
    """Writes the segments of one driver, from a thread of its own."""

    def __init__(self, folder: str, on_stored: Callable[[Receipt], None]) -> None:
        """Call `on_stored`, from the thread that flushes, with every receipt once it is stored."""
        self.folder, self.driver = folder, uuid.uuid4().hex[:12]
        self.segments: list[str] = []
        """Paths of the segments written so far."""
        self._on_stored = on_stored
        self._waiting: list[Sequence[Receipt]] = []
        """Receipts that are not stored yet, by part."""
        self._open = RECEIPTS.empty_table()
        """Content of the last segment while it is not full."""
        self._failure: StorageError | None = None
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._flush_often, name="receipt-log", daemon=True)

    def add(self, receipts: Sequence[Receipt]) -> None:
        """Take the receipts of one part; raise StorageError if earlier ones could not be stored."""
        if self._failure is not None:
            raise self._failure
        with self._lock:
            self._waiting.append(receipts)
        if self._thread.ident is None:
            self._thread.start()

    def flush(self) -> None:
        """Store all receipts now."""
        with self._lock:
            while self._waiting:
                parts = self._next_parts()
                batch = [receipt for part in parts for receipt in part]
                segment = pa.concat_tables([self._open, receipts_table(batch)])
                fresh = f"{self.folder}/{self.driver}-{len(self.segments):06}.parquet"
                storage_of(self.folder).write(self.segments[-1] if len(self._open) else fresh, parquet_bytes(segment))
                self.segments += [] if len(self._open) else [fresh]
                self._open = segment
                self._waiting = self._waiting[len(parts) :]
                for receipt in batch:
                    self._on_stored(receipt)

    def _next_parts(self) -> list[Sequence[Receipt]]:
        """Return the waiting parts that the open segment has room for; without room for one, begin a new segment."""
        if len(self._open) + len(self._waiting[0]) > SEGMENT_RECEIPTS:
            self._open = RECEIPTS.empty_table()
        ends = len(self._open) + np.cumsum([len(part) for part in self._waiting])
        return self._waiting[: max(1, int((ends <= SEGMENT_RECEIPTS).sum()))]

    def close(self) -> None:
        """Store the remaining receipts and end the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self.flush()

    def _flush_often(self) -> None:
        """Flush every FLUSH_SECONDS until the log is closed, or until a write fails."""
        while not self._stop.wait(FLUSH_SECONDS):
            try:
                self.flush()
            except StorageError as error:
                self._failure = error
                return


@dataclass(frozen=True, slots=True)
class Segments:
    """What was read of some segments; those that are gone are in neither list."""

    whole: list[bytes]
    damaged: list[str]
    """Paths of those that are torn, or not ours; what their receipts tell of is done again, or told by the parts."""


def read_segments(paths: Iterable[str]) -> Segments:
    """Read segments, and tell those that are whole from those that are not."""
    paths = list(paths)
    with ThreadPoolExecutor(READERS) as pool:
        contents = list(pool.map(lambda path: storage_of(path).read(path), paths))
    found = [(path, content[0]) for path, content in zip(paths, contents, strict=True) if content]
    damaged = [path for path, data in found if not _is_whole(data)]
    return Segments([data for path, data in found if path not in damaged], damaged)


def _is_whole(data: bytes) -> bool:
    """Return whether these are the bytes of a whole segment, and not of a torn one."""
    with contextlib.suppress(pa.ArrowException, OSError, ValueError):
        check_receipts(data)
        return bool(pq.read_table(BytesIO(data)).schema.equals(RECEIPTS))
    return False


def check_receipts(data: bytes) -> None:
    """Raise ValueError, or one of Arrow's errors, unless a Parquet file has our columns, and names shards and parts as we do.

    What a receipt names is read, and swept: a path that led out of the folder would be somebody else's file.
    """
    types = {column.name: column.type for column in pq.read_schema(BytesIO(data))}
    for column in RECEIPTS:
        if types.get(column.name, column.type if column.name in OLDER_LACK else None) != column.type:
            raise ValueError(f"no column {column.name} of {column.type}")
    forms = {"shard": "[0-9a-f]{16}", "part": PART_PATTERN, "rejects_part": REJECTS_PATTERN}
    for table in batches([data], [*forms]):
        for name, form in forms.items():
            named = table[name].drop_null()
            if not pc.all(pc.match_substring_regex(named, rf"\A(?:{form})\z"), min_count=0).as_py():
                raise ValueError(f"a {name} has no name of ours")


def receipts_in_parts(folder: str, names: Iterable[str]) -> list[bytes]:
    """Read the receipts that some parts, or files of rejects, carry, as a segment; those that carry none are left out."""
    paths = [f"{folder}/{name}" for name in names]
    with ThreadPoolExecutor(READERS) as pool:
        found = [receipts for receipts in pool.map(_receipts_in_part, paths) if receipts]
    return [parquet_bytes(receipts_table([receipt for receipts in found for receipt in receipts]))] if found else []


def _receipts_in_part(path: str) -> list[Receipt]:
    """Read the receipts that a part carries; empty if it is damaged, or of an earlier version."""
    with contextlib.suppress(pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError, RefusedError):
        with storage_of(path).open(path) as file:
            metadata = pq.read_metadata(file).metadata
        name = path.rsplit("/", 1)[1]
        receipts = [replace(receipt, part=name) for receipt in unpack_receipts(metadata[RECEIPTS_KEY.encode()])]
        check_receipts(parquet_bytes(receipts_table(receipts)))
        return receipts
    return []


def batches(sources: Iterable[bytes], columns: list[str]) -> Iterator[pa.Table]:
    """Read these columns of segments, or of a published list of shards, BATCH_ROWS rows or a few more at a time."""
    pending: list[pa.RecordBatch] = []
    for data in sources:
        with pq.ParquetFile(BytesIO(data)) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=columns):
                pending.append(_completed(batch, columns))
                if sum(map(len, pending)) >= BATCH_ROWS:
                    yield pa.Table.from_batches(pending).combine_chunks()
                    pending = []
    if pending:
        yield pa.Table.from_batches(pending).combine_chunks()


def _completed(batch: pa.RecordBatch, columns: list[str]) -> pa.RecordBatch:
    """Add the columns that older lists lack."""
    zeros = np.zeros(len(batch), np.int64)
    lacking = {
        "span": lambda: batch["rows_in"],
        "part_row": lambda: pa.array(zeros),
        "rejects_row": lambda: pa.array(zeros),
        "windows": lambda: batch["rows_out"],
    }
    empty = {name: RECEIPTS.field(name).type for name in LATER_LISTS}
    lacking |= {name: partial(pa.array, [[]] * len(batch), kind) for name, kind in empty.items()}
    there = batch.schema.names
    arrays = [batch[name] if name in there else lacking[name]() for name in columns]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema([RECEIPTS.field(name) for name in columns]))


def parse_ids(names: pa.Array | pa.ChunkedArray) -> ShardIds:
    """Parse ids of 16 hexadecimal digits: ["00000000000000ff"] -> [255]."""
    return np.frombuffer(bytes.fromhex("".join(names.to_pylist())), ">u8").astype(np.uint64)


def shard_ids(receipts: pa.Table) -> ShardIds:
    """Return the ids of the shards in a table of receipts: [N]."""
    return parse_ids(receipts["shard"])


def not_among(receipts: pa.Table, known: ShardIds) -> pa.Table:
    """Return the receipts of other shards than these, whose ids ascend."""
    return receipts.filter(pa.array(~are_among(shard_ids(receipts), known)))


def part_ids(receipts: pa.Table) -> ShardIds:
    """Return the ids of the parts in a table of receipts, the digests in their names: [N]."""
    return _digests(receipts["part"], len("part-"))


def rejects_ids(receipts: pa.Table) -> ShardIds:
    """Return the ids of the files of rejects in a table of receipts, of those that have any: [<= N]."""
    return _digests(receipts["rejects_part"].drop_null(), len(f"{REJECTS_FOLDER}/part-"))


def _digests(names: pa.ChunkedArray, start: int) -> ShardIds:
    """Return the digests that begin at a character of names, as numbers."""
    return parse_ids(pc.utf8_slice_codeunits(names, start, start + 16))


def are_among(ids: ShardIds, ascending: ShardIds) -> npt.NDArray[np.bool_]:
    """Return which ids occur in an ascending array: [N]. np.isin would sort that array again for every batch."""
    if len(ascending) == 0:
        return np.zeros(len(ids), bool)
    return ascending[np.minimum(np.searchsorted(ascending, ids), len(ascending) - 1)] == ids


Hold = Callable[[pa.Table], npt.NDArray[np.bool_]]
"""Returns which receipts, by their columns "shard", "part" and "rejects_part", name files that are there: [N]."""


def distinct(sources: list[bytes], hold: Hold | None = None) -> Iterator[pa.Table]:
    """Read receipts, each shard once, from the first source that has it, and whose files are there."""
    wanted = first_ones(*ids_of(sources, hold))
    done = 0
    for table in batches(sources, RECEIPTS.names):
        mask = wanted[done : done + len(table)]
        yield table if mask.all() else table.filter(pa.array(mask))
        done += len(table)


def ids_of(sources: list[bytes], hold: Hold | None = None) -> tuple[ShardIds, npt.NDArray[np.bool_]]:
    """Return the shards of receipts, and whether their files are there, all of them where nothing is lost: [N], [N]."""
    tables = list(batches(sources, ["shard", "part", "rejects_part"]))
    ids = np.concatenate([NO_SHARDS, *(shard_ids(table) for table in tables)])
    there = [np.ones(len(table), bool) if hold is None else hold(table) for table in tables]
    return ids, np.concatenate([np.zeros(0, bool), *there])


def first_ones(ids: ShardIds, there: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return which ids occur for the first time among those that are there: [N]."""
    first = np.zeros(len(ids), bool)
    first[np.flatnonzero(there)[np.unique(ids[there], return_index=True)[1]]] = True
    return first


def count_shards(sources: list[bytes]) -> int:
    """Count the shards that receipts tell of, each once."""
    return len(np.unique(np.concatenate([NO_SHARDS, *(shard_ids(table) for table in batches(sources, ["shard"]))])))
