"""Chunks: the unit in which training rows arrive, and the source of chunks for rows that are held in memory."""

from collections.abc import Collection, Generator
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np

from pipeline.rows import FloatArray, IntArray, TokenRows


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """B rows to learn from, usually some thousand."""

    rows: TokenRows
    labels: FloatArray
    """Class indices or values as [B], or label sets as [B, C] of 0 and 1; NaN where a row has no label, or no label set."""
    logits: FloatArray | None = None
    """The teacher's logits as [B, C]; None where it has not been run yet."""
    keys: tuple[str, ...] = ()
    """Names of what it covers, over all workers, within its epoch: the same on every run."""
    fraction: float = 1.0
    """Fraction of the epoch that this chunk makes up."""
    global_rows: int = 0
    """Rows of the chunk over all workers, those that cannot be used included."""
    most_rows: int = 0
    """Rows to learn from of the worker that has most of them."""

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: IntArray) -> Self:
        """Return these rows in this order."""
        return type(self)(
            rows=self.rows.take(rows),
            labels=self.labels[rows],
            logits=None if self.logits is None else self.logits[rows],
            keys=self.keys,
            fraction=self.fraction,
            global_rows=self.global_rows,
            most_rows=self.most_rows,
        )

    @property
    def labelled(self) -> IntArray:
        """Numbers of the rows that have a label, or a label set, be it empty."""
        return np.flatnonzero(~np.isnan(self.labels if self.labels.ndim == 1 else self.labels[:, 0]))

    def targets(self) -> FloatArray:
        """Return what every exit should predict: the label, else the teacher's class or value: [B], NaN without either.

        Label sets are [B, C], and the teacher's are those at a threshold of 0.5.
        """
        if self.logits is None:
            return self.labels
        if self.labels.ndim == 2:
            return np.where(np.isnan(self.labels), (self.logits > 0).astype(np.float32), self.labels)
        teacher = self.logits[:, 0] if self.logits.shape[1] == 1 else self.logits.argmax(1).astype(np.float32)
        return np.where(np.isnan(self.labels), teacher, self.labels)


class Source(Protocol):
    """Where chunks come from; every epoch has the same rows, in an order that the seed and the epoch decide."""

    def chunks(self, epoch: int, done: Collection[str]) -> Generator[Chunk, None, None]:
        """Yield this worker's rows of every chunk of an epoch, without the chunks whose keys are in `done`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySource:
    """Rows in memory, shuffled anew for every epoch; each of `world_size` workers takes its own rows of every chunk."""

    whole: Chunk
    seed: int
    rank: int = 0
    world_size: int = 1
    chunk_rows: int = 16_384

    def chunks(self, epoch: int, done: Collection[str]) -> Generator[Chunk, None, None]:
        """Yield this worker's rows of every chunk; its key is the index of its first row in the shuffled order."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.whole))
        for start in range(0, len(order), self.chunk_rows):
            if str(start) in done:
                continue
            members = order[start : start + self.chunk_rows]
            yield replace(
                self.whole.take(members[self.rank :: self.world_size]),
                keys=(str(start),),
                fraction=len(members) / len(order),
                global_rows=len(members),
                most_rows=len(members[:: self.world_size]),
            )
