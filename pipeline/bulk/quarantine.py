"""Isolate the rows that a stage cannot work on, so that a bad row costs itself and not its shard, nor the run.

A row that *raises* is found in place: the rows that raised together are halved until each bad one stands alone.

A row that *kills the process* (a crash in native code, the kernel's or Ray's out-of-memory killer) takes all that its process
knew with it, and Ray just runs the shard again. So a stage leaves a marker in the output folder while it works on a shard:
which rows are suspect and which of them it is at. Who finds a marker knows that an earlier try died there. It first tries the
same again, since a lost node is no fault of a row; then the suspect rows are halved at every death, suspects first, so that a
search costs about as much as twice the shard; a row that killed two processes alone is given up.

What fails is a row's fault only as long as other rows work: a stage that fails on everything ends the run (`BrokenStageError`).
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar, cast

import numpy as np

from pipeline.errors import one_line
from pipeline.output.parts import ATTEMPTS_FOLDER
from pipeline.output.receipts import Receipt
from pipeline.rejects import MAX_DETAIL_CHARACTERS, Reason, Reject
from pipeline.rows import IntArray
from pipeline.storage.locate import storage_of

T = TypeVar("T")

MAX_DEATHS = 64
"""Of the workers of one shard in one stage; a bad row among 16,384 costs 17, so this is enough for three of them."""
MAX_STARTS = 4
"""Deaths of an actor while it loads the model, before it has seen any row."""
DEATHS_ALONE = 2
"""Processes that a row must have killed by itself."""
PROBE_ROWS = 16
"""Rows that fail, none having worked, before other rows of the shard are asked whether anything works at all."""
FAILED = {"tokenize": Reason.TOKENIZE_FAILED, "classify": Reason.CLASSIFY_FAILED}
"""Reason of a row on which a stage raised, by the name of the stage."""


class BrokenStageError(Exception):
    """A stage fails whatever the row: its model, its tokenizer or its machine is at fault. Ends the run."""


@dataclass(frozen=True, kw_only=True)
class Stage(Generic[T]):
    """Work that can be done on any run of neighbouring rows of a shard."""

    name: str
    work: Callable[[range], T]
    probe: Callable[[], object]
    """Does the same work on a row of our own, which nothing can be wrong with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolated(Generic[T]):
    """What came of a shard of B rows."""

    pieces: list[T]
    """Results of the rows that are not lost, in order; one piece if there was no trouble."""
    lost: dict[int, Reject]

    def kept(self, count: int) -> IntArray:
        """Row numbers of `count` rows that the pieces stand for."""
        return np.setdiff1d(np.arange(count), np.fromiter(self.lost, np.int64, len(self.lost)))


def isolate(stage: Stage[T], count: int, attempts: "AttemptLog | None" = None) -> Isolated[T]:
    """Work on `count` rows, around those that raise; with a marker, also around those that kill the process.

    Raises BrokenStageError if nothing works, or if the workers die too often to go on.
    """
    search = _Search(stage)
    if attempts is None or count == 0:
        search.work(range(count))
    else:
        try:
            for rows in attempts.ranges(stage.name, count):
                search.work(rows)
            search.lost |= {row: attempts.verdict(stage.name) for row in attempts.lost}
        finally:
            attempts.remove()  # whatever happened, this process lived through it
    pieces = [search.pieces[start] for start in sorted(search.pieces)]
    if not pieces:  # too few rows to be told by: ask one that is known to be good
        search.check_probe()
        pieces = [stage.work(range(0))]
    return Isolated(pieces=pieces, lost=search.lost)


class _Search(Generic[T]):
    """Finds the rows that raise."""

    def __init__(self, stage: Stage[T]) -> None:
        self.stage = stage
        self.pieces: dict[int, T] = {}
        self.lost: dict[int, Reject] = {}

    def work(self, rows: range) -> None:
        waiting = [rows]
        while waiting:
            part = waiting.pop()
            result, error = _attempt(partial(self.stage.work, part))
            if error is None:
                self.pieces[part.start] = cast(T, result)
            elif len(part) > 1:
                waiting += reversed(halves(part))
            elif len(part) == 1:
                self.lost[part.start] = reject_of(self.stage.name, error)
                if len(self.lost) == PROBE_ROWS and not self.pieces:
                    self._check_others(rows, error)
            else:
                raise error

    def _check_others(self, rows: range, error: BaseException) -> None:
        """Raise BrokenStageError unless a row works, of some that are spread over all that are worked on."""
        for row in np.linspace(rows.start, rows.stop - 1, PROBE_ROWS, dtype=int).tolist():
            if row not in self.lost and _attempt(partial(self.stage.work, range(row, row + 1)))[1] is None:
                return
        raise BrokenStageError(f"{self.stage.name} fails on every row: {describe(error)}") from None

    def check_probe(self) -> None:
        _, error = _attempt(self.stage.probe)
        if error is not None:
            raise BrokenStageError(f"{self.stage.name} fails on every row: {describe(error)}") from None


def _attempt(work: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    """Return what the work gives, or the fault that it raises; a panic in Rust is one, a request to stop is not."""
    try:
        return work(), None
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise
        return None, error


def halves(rows: range) -> tuple[range, range]:
    """Cut a run of rows in two."""
    middle = rows.start + len(rows) // 2
    return range(rows.start, middle), range(middle, rows.stop)


def reject_of(stage: str, error: BaseException) -> Reject:
    """Say why a row is rejected that a stage raised on."""
    reason = Reason.OUT_OF_MEMORY if isinstance(error, MemoryError) else FAILED[stage]
    return Reject(reason, describe(error))


def describe(error: BaseException) -> str:
    """Write an exception's class and message as the detail of a reject: one line of bounded length."""
    return one_line(error, with_type=True, limit=MAX_DETAIL_CHARACTERS)


@dataclass(slots=True)
class AttemptLog:
    """What is known of a shard at which processes die. Its file is there while a process works on the shard."""

    path: str
    shard: str
    """For messages: what the shard is, in a user's words."""
    rows: int = 0
    deaths: int = 0
    at: tuple[int, int] = (0, 0)
    suspects: list[tuple[int, int]] = field(default_factory=list)
    cleared: list[tuple[int, int]] = field(default_factory=list)
    """Runs of rows that some process lived through."""
    alone: dict[int, int] = field(default_factory=dict)
    """Processes that died of a row by itself."""
    lost: list[int] = field(default_factory=list)

    def ranges(self, stage: str, rows: int) -> Iterator[range]:
        """Yield the runs of rows to work on one after the other, having noted each before it is begun."""
        left = json.loads(_read(self.path) or "{}")
        if left.get("rows") == rows:
            self._recall(left)
            self._learn(stage)
        else:
            self.rows, self.suspects = rows, [(0, rows)]
        for begun in [*self.suspects, *self.cleared]:
            self.at = begun
            _write(self.path, json.dumps(self._facts()))
            yield range(*begun)
            if begun in self.suspects:
                self.suspects.remove(begun)
                self.cleared.append(begun)

    def verdict(self, stage: str) -> Reject:
        return Reject(Reason.KILLED_WORKER, f"{stage}: {DEATHS_ALONE} workers died while they worked on this row alone")

    def remove(self) -> None:
        _remove(self.path)

    def _learn(self, stage: str) -> None:
        """Draw the conclusion from one more death."""
        self.deaths += 1
        at, length = self.at, self.at[1] - self.at[0]
        if self.deaths > MAX_DEATHS:
            raise BrokenStageError(
                f"{stage}: {self.deaths} workers died at {self.shard}, the last one at {length} of its rows; give workers more "
                "memory, or take these rows out"
            )
        if at in self.cleared:  # it worked before, so this was something else
            self.cleared.remove(at)
            self.suspects.insert(0, at)
        elif length == self.rows and self.deaths == 1:
            return
        elif length > 1:
            place = self.suspects.index(at)
            self.suspects[place : place + 1] = [(half.start, half.stop) for half in halves(range(*at))]
        else:
            self.alone[at[0]] = self.alone.get(at[0], 0) + 1
            if self.alone[at[0]] >= DEATHS_ALONE:
                self.suspects.remove(at)
                self.lost.append(at[0])

    def _facts(self) -> dict[str, object]:
        facts = asdict(self)
        del facts["path"], facts["shard"]
        return facts

    def _recall(self, facts: dict[str, Any]) -> None:
        self.rows, self.deaths, self.at, self.lost = facts["rows"], facts["deaths"], tuple(facts["at"]), facts["lost"]
        self.suspects = [tuple(pair) for pair in facts["suspects"]]
        self.cleared = [tuple(pair) for pair in facts["cleared"]]
        self.alone = {int(row): count for row, count in facts["alone"].items()}


def attempts_of(output: str | None, stage: str, receipt: Receipt) -> AttemptLog | None:
    """Return the marker of a shard in a stage; None where there is no folder to keep it."""
    if output is None:
        return None
    shard = f"rows {receipt.start:,} to {receipt.start + receipt.rows_in - 1:,} of {receipt.file}"
    return AttemptLog(f"{output}/{ATTEMPTS_FOLDER}/{stage}-{receipt.shard}.json", shard)


@contextmanager
def bounded(output: str | None, key: str, most: int, what: str) -> Iterator[None]:
    """Bound the deaths of processes at work that has no rows to halve, and that Ray would try again for ever.

    Raises BrokenStageError, which says `what` they died of, once that many have died under this key.
    """
    if output is None:
        yield
        return
    path = f"{output}/{ATTEMPTS_FOLDER}/{key}.json"
    deaths = int(_read(path) or 0)
    try:
        if deaths >= most:
            raise BrokenStageError(f"{deaths} workers died {what}")
        _write(path, str(deaths + 1))
        yield
    finally:
        _remove(path)


def clear_attempts(output: str) -> None:
    """Forget what died, since all shards are done or nobody is at work any more."""
    storage, folder = storage_of(output), f"{output}/{ATTEMPTS_FOLDER}"
    storage.delete([f"{folder}/{name}" for name in storage.names(folder)])


def _read(path: str) -> str | None:
    found = storage_of(path).read(path)
    return found[0].decode() if found else None


def _write(path: str, text: str) -> None:
    storage_of(path).write(path, text.encode())


def _remove(path: str) -> None:
    storage_of(path).delete([path])
