"""Token ids of many texts in two flat arrays, and what assembling rows needs of them, for all rows of a batch at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from pipeline.rows import IntArray, spans


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ragged:
    """Token ids of B texts, one text after the other.

    The ids of "a fine day" and "fine" are `Ragged(ids=[1037, 2986, 2154, 2986], lengths=[3, 1])`.
    """

    ids: npt.NDArray[np.int32]
    """[T]: all texts one after the other."""
    lengths: IntArray
    """[B]: number of tokens of each text, which may be 0."""

    def __len__(self) -> int:
        return len(self.lengths)

    def __eq__(self, other: object) -> bool:
        """Return whether both have the same ids, text by text."""
        if not isinstance(other, Ragged):
            return NotImplemented
        return np.array_equal(self.lengths, other.lengths) and np.array_equal(self.ids, other.ids)

    def take(self, rows: IntArray) -> Self:
        """Return these texts in this order."""
        lengths = self.lengths[rows]
        starts = np.cumsum(self.lengths) - self.lengths
        return type(self)(ids=self.ids[spans(starts[rows], lengths)], lengths=lengths)

    def cut(self, keep: IntArray, *, left: bool) -> Self:
        """Keep the first `keep` [B] tokens of each text, or the last ones if the left is cut; no text may have fewer."""
        if (keep == self.lengths).all():
            return self
        starts = np.cumsum(self.lengths) - (keep if left else self.lengths)
        return type(self)(ids=self.ids[spans(starts, keep)], lengths=keep)

    def pieces(self, texts: IntArray, starts: IntArray, lengths: IntArray) -> Self:
        """Return pieces of texts: of each text named in `texts` the `lengths` tokens from `starts` on, [W] each."""
        firsts = np.cumsum(self.lengths) - self.lengths
        return type(self)(ids=self.ids[spans(firsts[texts] + starts, lengths)], lengths=lengths)

    def replace(self, rows: IntArray, others: Self) -> Self:
        """Put other texts in the place of these rows, one for each."""
        order = np.arange(len(self))
        order[rows] = len(self) + np.arange(len(rows))
        ids, lengths = np.concatenate([self.ids, others.ids]), np.concatenate([self.lengths, others.lengths])
        return type(self)(ids=ids, lengths=lengths).take(order)


def repeated(ids: Sequence[int], rows: int) -> Ragged:
    """Return the same ids for every row."""
    ids_BT = np.broadcast_to(np.array(ids, np.int32), (rows, len(ids)))
    return Ragged(ids=ids_BT.ravel(), lengths=np.full(rows, len(ids), np.int64))


def side_by_side(pieces: Sequence[Ragged]) -> Ragged:
    """Join pieces row by row: row 0 of each piece, then row 1 of each, and so on.

    Pieces of ids [1, 1], [7, 8, 9] and lengths [1, 1], [2, 1] make ids [1, 7, 8, 1, 9] and lengths [3, 2].
    """
    lengths_PB = np.stack([piece.lengths for piece in pieces])
    lengths = lengths_PB.sum(0)
    starts_PB = np.cumsum(lengths) - lengths + np.cumsum(lengths_PB, 0) - lengths_PB
    ids = np.empty(lengths.sum(), np.int32)
    for piece, starts in zip(pieces, starts_PB, strict=True):
        ids[spans(starts, piece.lengths)] = piece.ids
    return Ragged(ids=ids, lengths=lengths)
