"""Chunk: the unit in which training rows arrive; and the source of chunks that are held in memory."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from pipeline.rows import FloatArray, IntArray, TokenRows


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Rows to learn from, B of them, some thousand at once."""

    rows: TokenRows
    labels: FloatArray
    """[B]: class index or value; NaN where a row has none."""
    logits: FloatArray | None = None
    """[B, C]: the teacher's, where it has been asked already."""
    key: str = ""
    """Names the chunk within its epoch, the same on every run."""
    share: float = 1.0
    """Share of the epoch that this chunk is."""
    global_rows: int = 0
    """Rows of the chunk over all workers."""

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: IntArray) -> Self:
        """Return these rows in this order."""
        return type(self)(
            rows=self.rows.take(rows),
            labels=self.labels[rows],
            logits=None if self.logits is None else self.logits[rows],
            key=self.key,
            share=self.share,
            global_rows=self.global_rows,
        )

    def targets(self) -> FloatArray:
        """What an exit should say: the label, else the teacher's class or value: [B], NaN where nobody knows."""
        if self.logits is None:
            return self.labels
        teacher = self.logits[:, 0] if self.logits.shape[1] == 1 else self.logits.argmax(1).astype(np.float32)
        return np.where(np.isnan(self.labels), teacher, self.labels)


class Source(Protocol):
    """Where chunks come from. Every epoch has the same rows, in an order that its seed decides."""

    def chunks(self, epoch: int, done: Collection[str]) -> Iterator[Chunk]:
        """Yield this worker's part of the chunks of an epoch, without those whose keys are in `done`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySource:
    """Rows in memory, shuffled anew for every epoch. Each of `workers` takes its own rows of every chunk."""

    whole: Chunk
    seed: int
    rank: int = 0
    workers: int = 1
    chunk_rows: int = 16_384

    def chunks(self, epoch: int, done: Collection[str]) -> Iterator[Chunk]:
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.whole))
        for start in range(0, len(order), self.chunk_rows):
            members = order[start : start + self.chunk_rows]
            if str(start) in done:
                continue
            mine = self.whole.take(members[self.rank :: self.workers])
            yield Chunk(
                rows=mine.rows,
                labels=mine.labels,
                logits=mine.logits,
                key=str(start),
                share=len(members) / len(order),
                global_rows=len(members),
            )
