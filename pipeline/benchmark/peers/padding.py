"""Padded batches of token rows, as peers take them, made without a loop over rows."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from pipeline.benchmark.workload import Workload
from pipeline.rows import IntArray, TokenRows, spans

BATCH_ROWS = 32
"""The batch size of most scripts, and of the papers' training."""
Runner = Callable[[Workload], None]
"""Classifies all rows of a workload and returns when that is done."""
Ids = npt.NDArray[np.int64]


def padded_batches(rows: TokenRows, order: IntArray, batch_rows: int = BATCH_ROWS) -> Iterator[tuple[Ids, Ids]]:
    """Cut rows, in this order, into batches of `batch_rows`, each padded to its longest row: (ids, mask), each [B, L]."""
    lengths, starts = rows.lengths, rows.offsets[:-1]
    for first in range(0, len(order), batch_rows):
        batch = order[first : first + batch_rows]
        lengths_B = lengths[batch]
        filled_BL = np.arange(lengths_B.max()) < lengths_B[:, None]
        ids_BL = np.zeros(filled_BL.shape, np.int64)
        ids_BL[filled_BL] = rows.token_ids[spans(starts[batch], lengths_B)]
        yield ids_BL, filled_BL.astype(np.int64)


def sorted_batches(work: Workload, batch_rows: int = BATCH_ROWS) -> Iterator[tuple[Ids, Ids]]:
    """Return padded batches in order of length, as a careful user writes it."""
    return padded_batches(work.rows, np.argsort(work.rows.lengths, kind="stable"), batch_rows)
