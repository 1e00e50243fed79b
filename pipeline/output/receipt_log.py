"""Receipts on their way to the storage: small files of their own for every driver, written about once a second.

A segment, `_receipts/g<generation>/<driver>-<number>.parquet`, is replaced by one with more receipts until it is full. So there
are few of them, nobody appends to anything, which S3 could not do, and no driver ever writes what another one does. A driver
that is killed loses the receipts of its last second, and those shards are simply done again.
"""

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StorageError
from pipeline.output.parts import parquet_bytes
from pipeline.output.receipts import RECEIPTS, Receipt, receipts_table
from pipeline.storage.locate import storage_of

FLUSH_SECONDS = 1.0
SEGMENT_RECEIPTS = 4000
"""What is written again every second stays below some 200 KB, and a million shards fit into 250 segments."""
BATCH_ROWS = 1 << 14
"""Receipts in memory at once when many are read: some 10 MB."""
READERS = 16
"""Segments read at once: S3 takes its time for each."""
ShardNames = npt.NDArray[np.uint64]
"""[N]: what the 16 hexadecimal digits of each say."""
NO_SHARDS: ShardNames = np.array([], np.uint64)


class Journal:
    """Writes the segments of one driver, from a thread of its own."""

    def __init__(self, folder: str, kept: Callable[[Receipt], None]) -> None:
        """`kept` hears of every receipt once it is stored."""
        self.folder, self.driver = folder, uuid.uuid4().hex[:12]
        self.segments: list[str] = []
        """Locations of the segments written so far."""
        self._kept = kept
        self._waiting: list[Receipt] = []
        self._open = RECEIPTS.empty_table()
        """What the last segment holds, while it is not full."""
        self._failure: StorageError | None = None
        self._mutex, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._flush_often, name="journal", daemon=True)

    def add(self, receipt: Receipt) -> None:
        """Take a receipt; raise StorageError if earlier ones could not be stored."""
        if self._failure is not None:
            raise self._failure
        with self._mutex:
            self._waiting.append(receipt)
        if self._thread.ident is None:
            self._thread.start()

    def flush(self) -> None:
        """Store all receipts now."""
        with self._mutex:
            while self._waiting:
                batch = self._waiting[: SEGMENT_RECEIPTS - len(self._open)]
                segment = pa.concat_tables([self._open, receipts_table(batch)])
                fresh = f"{self.folder}/{self.driver}-{len(self.segments):06}.parquet"
                storage_of(self.folder).write(self.segments[-1] if len(self._open) else fresh, parquet_bytes(segment))
                self.segments += [] if len(self._open) else [fresh]
                self._open = segment if len(segment) < SEGMENT_RECEIPTS else RECEIPTS.empty_table()
                self._waiting = self._waiting[len(batch) :]
                for receipt in batch:
                    self._kept(receipt)

    def close(self) -> None:
        """Store what is left and end the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self.flush()

    def _flush_often(self) -> None:
        while not self._stop.wait(FLUSH_SECONDS):
            try:
                self.flush()
            except StorageError as error:
                self._failure = error
                return


def read_segments(paths: Iterable[str]) -> list[bytes]:
    """Read segments; those that are gone, or damaged, are left out: their shards are done again."""
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda path: storage_of(path).read(path), paths)
        return [data[0] for data in found if data and _is_whole(data[0])]


def _is_whole(data: bytes) -> bool:
    with contextlib.suppress(pa.ArrowException, OSError), pq.ParquetFile(BytesIO(data)) as file:
        return bool(file.schema_arrow.equals(RECEIPTS))
    return False


def batches(sources: Iterable[bytes], columns: list[str]) -> Iterator[pa.Table]:
    """Read receipts, of segments or of a list of published shards, BATCH_ROWS or a few more at a time."""
    pending: list[pa.RecordBatch] = []
    for data in sources:
        with pq.ParquetFile(BytesIO(data)) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=columns):
                pending.append(batch.select(columns))
                if sum(map(len, pending)) >= BATCH_ROWS:
                    yield pa.Table.from_batches(pending).combine_chunks()
                    pending = []
    if pending:
        yield pa.Table.from_batches(pending).combine_chunks()


def shard_names(receipts: pa.Table) -> ShardNames:
    """Take the names of shards: [N]."""
    return as_numbers(receipts["shard"].combine_chunks())


def as_numbers(names: pa.Array) -> ShardNames:
    """Turn names of 16 hexadecimal digits, [N] strings, into numbers, which are smaller and faster to sort: [N]."""
    fixed = names.cast(pa.binary()).cast(pa.binary(16))
    letters = np.frombuffer(fixed.buffers()[1], np.uint8, len(fixed) * 16, fixed.offset * 16).reshape(-1, 16)
    digits = (letters & 15) + 9 * (letters >> 6)
    return (digits[:, ::2] * 16 + digits[:, 1::2]).view(">u8")[:, 0].astype(np.uint64)


def are_among(names: ShardNames, ordered: ShardNames) -> npt.NDArray[np.bool_]:
    """Say which names occur in an ordered array: [N]. Unlike numpy's isin, it does not sort that again for every batch."""
    if len(ordered) == 0:
        return np.zeros(len(names), bool)
    return ordered[np.minimum(np.searchsorted(ordered, names), len(ordered) - 1)] == names


def distinct(sources: list[bytes], without: ShardNames = NO_SHARDS) -> Iterator[pa.Table]:
    """Read receipts, each shard once, as its first source tells of it; shards named in `without` are left out."""
    names = [shard_names(table) for table in batches(sources, ["shard"])]
    everything = np.concatenate([NO_SHARDS, *names])
    wanted = np.zeros(len(everything), bool)
    wanted[np.unique(everything, return_index=True)[1]] = True
    wanted &= ~are_among(everything, np.sort(without))
    done = 0
    for table in batches(sources, RECEIPTS.names):
        mask = wanted[done : done + len(table)]
        yield table if mask.all() else table.filter(pa.array(mask))
        done += len(table)
