"""Which rows share a batch: integer bookkeeping, no tensors, so it can be tested without a model.

The engine keeps its rows sorted by length in one token buffer, so a micro-batch is a slice of rows *and* a slice of tokens,
and rows of equal length are already neighbours. After an exit the survivors keep their order, hence stay sorted: cutting
the micro-batches anew is all that re-packing takes. A micro-batch holds at most `token_budget` tokens (or one long row) and
its matrices are padded to a multiple of some tokens, because CPU libraries build a kernel for every new matrix shape.

Example: rows of 2, 2, 3 and 9 tokens with a budget of 8 make two micro-batches: rows 0 to 2, which are tokens 0 to 6, in two
groups (2 rows of 2 tokens, 1 row of 3); and row 3 alone, tokens 7 to 15, since it is longer than the budget.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from models.length_group import LengthGroup

MULTIPLES_PER_BUDGET = 8
"""Number of matrix shapes in use at most. More waste less padding in the last micro-batch, fewer need fewer kernels."""
MAX_MULTIPLE = 512
"""Largest multiple that matrices are padded to: that of the largest default budget on CPUs. On GPUs shapes cost nothing."""

Lengths = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows `[row_start, row_stop)` of the sorted order, which are tokens `[token_start, token_stop)` of the buffer."""

    row_start: int
    row_stop: int
    token_start: int
    token_stop: int
    groups: tuple[LengthGroup, ...]
    padding: int
    """Tokens that follow those of the rows, to be computed along and thrown away."""

    @property
    def rows(self) -> slice:
        return slice(self.row_start, self.row_stop)

    @property
    def tokens(self) -> slice:
        return slice(self.token_start, self.token_stop)

    @property
    def tokens_and_padding(self) -> slice:
        return slice(self.token_start, self.token_stop + self.padding)

    @property
    def num_tokens(self) -> int:
        return self.token_stop - self.token_start


def pad_multiple(token_budget: int) -> int:
    """Return the number of tokens of which matrices have a multiple."""
    return min(max(1, token_budget // MULTIPLES_PER_BUDGET), MAX_MULTIPLE)


def sort_by_length(lengths_B: Lengths) -> npt.NDArray[np.int64]:
    """Return the order that sorts rows by length; rows of equal length keep theirs, so it is the same on every run."""
    return np.argsort(lengths_B, kind="stable")


def cut_by_tokens(lengths_B: Lengths, limit: int) -> list[slice]:
    """Cut rows into neighbouring slices of at most `limit` tokens; a longer row gets a slice of its own."""
    ends = np.cumsum(lengths_B)
    slices, start, done = [], 0, 0
    while start < len(lengths_B):
        stop = max(int(np.searchsorted(ends, done + limit, side="right")), start + 1)
        slices.append(slice(start, stop))
        start, done = stop, int(ends[stop - 1])
    return slices


def length_groups_of(lengths_B: Lengths) -> tuple[LengthGroup, ...]:
    """Group neighbours of equal length: [2, 2, 3] -> (LengthGroup(2, 2), LengthGroup(1, 3))."""
    if len(lengths_B) == 0:
        return ()
    edges = [0, *(np.flatnonzero(np.diff(lengths_B)) + 1).tolist(), len(lengths_B)]
    return tuple(LengthGroup(stop - start, int(lengths_B[start])) for start, stop in pairwise(edges))


def micro_batches(sorted_lengths_B: Lengths, token_budget: int) -> Iterator[MicroBatch]:
    """Cut rows that lie one after the other in a token buffer into micro-batches, in order."""
    multiple, token = pad_multiple(token_budget), 0
    for rows in cut_by_tokens(sorted_lengths_B, token_budget):
        lengths = sorted_lengths_B[rows]
        tokens = int(lengths.sum())
        yield MicroBatch(rows.start, rows.stop, token, token + tokens, length_groups_of(lengths), -tokens % multiple)
        token += tokens


def training_batches(lengths_B: Lengths, rows: int, window: int, seed: int) -> list[npt.NDArray[np.int64]]:
    """Shuffle rows into batches of similar length: random windows of `window` batches, sorted inside, then shuffled."""
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(lengths_B))
    batches = []
    for start in range(0, len(shuffled), rows * window):
        chunk = shuffled[start : start + rows * window]
        chunk = chunk[sort_by_length(lengths_B[chunk])]
        batches += [chunk[i : i + rows] for i in range(0, len(chunk), rows)]
    return [batches[i] for i in random.permutation(len(batches))]
