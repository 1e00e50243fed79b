"""Isolate the rows that a stage cannot work on, so that a bad row costs itself and not its bundle, nor the run.

A row that *raises* is found in place: the rows that raised together are bisected until each bad one stands alone. A poison row,
which *kills* the process, is found over several processes by the bundle's attempt log (see `pipeline.bulk.attempts`).

    isolated = isolate(TokenizeBundle(tokenizer=tokenizer, texts=["a", "<raises>", "c"], pairs=None), 3)
    isolated.pieces      # what `run(range(0, 1))` and `run(range(2, 3))` returned
    isolated.lost        # {1: Reject(Reason.TOKENIZE_FAILED, "ValueError: ...")}

A failure is a row's fault only as long as other rows work: a stage that fails on every row ends the run (`BrokenStageError`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, cast

import numpy as np

from pipeline.bulk.attempts import AttemptLog, BrokenStageError, halves
from pipeline.errors import is_failure, one_line
from pipeline.rejects import MAX_DETAIL_CHARACTERS, Reason, Reject
from pipeline.rows import IntArray

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

PROBE_ROWS = 16
"""Consecutive failures with no success after which we probe other rows, to tell a broken stage from bad rows."""


class BundleWork(Protocol[T_co]):
    """What a stage does with one bundle, on any range of its rows."""

    @property
    def name(self) -> str:
        """Name of the stage, for messages."""
        ...

    @property
    def failure(self) -> Reason:
        """Reason of a row on which `run` raises."""
        ...

    def run(self, rows: range) -> T_co:
        """Work on neighbouring rows of the bundle; the range may be empty."""
        ...

    def probe(self) -> object:
        """Do the same work on a row of our own, which cannot be at fault."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolated(Generic[T]):
    """What came of a bundle of B rows."""

    pieces: list[T]
    """Results of the rows that are not lost, in order; a single piece if nothing failed."""
    lost: dict[int, Reject]
    """Rows that the stage cannot work on, by their index in the bundle."""

    def kept(self, count: int) -> IntArray:
        """Return the indices of those of `count` rows that the pieces hold."""
        return np.setdiff1d(np.arange(count), np.fromiter(self.lost, np.int64, len(self.lost)))


def isolate(work: BundleWork[T], count: int, attempts: AttemptLog | None = None) -> Isolated[T]:
    """Work on `count` rows and isolate those that raise; with an attempt log, also those that kill the process.

    Raises BrokenStageError if no row works, or if too many workers died at the bundle.
    """
    bisection = _Bisection(work)
    if attempts is None or count == 0:
        bisection.run(range(count))
    else:
        try:
            for rows in attempts.ranges(work.name, count):
                bisection.run(rows)
            bisection.lost |= attempts.rejects(work.name)
        finally:
            attempts.remove()  # whatever happened, this process lived through it
    pieces = [bisection.pieces[start] for start in sorted(bisection.pieces)]
    if not pieces:  # too few rows to judge the stage by, so that a row which is known to be good decides
        bisection.check_probe()
        pieces = [work.run(range(0))]
    return Isolated(pieces=pieces, lost=bisection.lost)


class _Bisection(Generic[T]):
    """Finds the rows that raise."""

    def __init__(self, work: BundleWork[T]) -> None:
        self.work = work
        self.pieces: dict[int, T] = {}
        self.lost: dict[int, Reject] = {}

    def run(self, rows: range) -> None:
        """Work on a range of rows, and on the halves of what raises."""
        waiting = [rows]
        while waiting:
            part = waiting.pop()
            result, error = _attempt(self.work.run, part)
            if error is None:
                self.pieces[part.start] = cast(T, result)
            elif len(part) > 1:
                waiting += reversed(halves(part))
            elif len(part) == 1:
                self.lost[part.start] = self._reject(error)
                if len(self.lost) == PROBE_ROWS and not self.pieces:
                    self._check_others(rows, error)
            else:
                raise error

    def check_probe(self) -> None:
        """Raise BrokenStageError unless the stage works on its probe."""
        _, error = _attempt(self.work.probe)
        if error is not None:
            raise self._broken(error) from None

    def _check_others(self, rows: range, error: BaseException) -> None:
        """Raise BrokenStageError unless a row works, of PROBE_ROWS that are spread over the range."""
        for row in np.linspace(rows.start, rows.stop - 1, PROBE_ROWS, dtype=int).tolist():
            if row not in self.lost and _attempt(self.work.run, range(row, row + 1))[1] is None:
                return
        raise self._broken(error) from None

    def _broken(self, error: BaseException) -> BrokenStageError:
        return BrokenStageError(f"{self.work.name} fails on every row: {describe(error)}")

    def _reject(self, error: BaseException) -> Reject:
        return Reject(Reason.OUT_OF_MEMORY if isinstance(error, MemoryError) else self.work.failure, describe(error))


def _attempt(work: Callable[..., T], *arguments: object) -> tuple[T | None, BaseException | None]:
    """Return what the work returns, or what it raises: exceptions and panics in Rust, but no request to stop."""
    try:
        return work(*arguments), None
    except BaseException as error:
        if not is_failure(error):
            raise
        return None, error


def describe(error: BaseException) -> str:
    """Write an exception's class and message as the detail of a reject: one line of bounded length."""
    return one_line(error, with_type=True, limit=MAX_DETAIL_CHARACTERS)
