"""Attempt logs: what is left of a process that died at a bundle, so that the next one isolates the row that killed it.

A row that kills its process (a crash in native code, the kernel's or Ray's out-of-memory killer) takes all that the process
knew with it, and Ray runs the bundle again. So before a stage begins a range of rows, it writes into the output folder which
range that is and which others are suspect. A process that finds such a log knows that the attempt before it died there:

    deaths  at         what the next process does
    1       all rows   tries the same again, since a lost node is no fault of a row
    2, ...  a range    bisects that range and tries its halves first, and ranges that were cleared last
    ...     one row    tries the row once more, then gives it up as a poison row

A bisection costs about twice the bundle in all, and 17 deaths for a poison row among 16,384 rows.

A log stands for the one bundle that the process computes. So where several are at work in a process, each of them holds the
lock on the engine as long as its log is there: else the death of one would be counted against the others.

A log that is damaged, or does not account for each of the rows, counts as none: what it would have said is found out again.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from pipeline.output.parts import ATTEMPTS_FOLDER
from pipeline.output.receipts import Receipt
from pipeline.rejects import Reason, Reject
from pipeline.storage.locate import storage_of

LOG_NAME = re.compile(r"(read|start|tokenize|classify)-[0-9a-z-]+\.json")
"""Name of a log, by what is bounded or by stage; what others keep in the folder is left alone."""
TEMPORARY_NAME = re.compile(rf"\.{LOG_NAME.pattern}\.[0-9a-f]{{8}}\.tmp")
"""Name of a log that is being written, on a disk; a worker that is killed leaves it."""
MAX_DEATHS = 64
"""Deaths of workers at one bundle in one stage; a poison row among 16,384 costs 17, so this is enough for three of them."""
MAX_STARTS = 4
"""Deaths of an actor while it loads the model, before it has seen any row."""
DEATHS_ALONE = 2
"""Processes that a poison row must have killed by itself."""


class BrokenStageError(Exception):
    """Raise when a stage fails whatever the row: its model, its tokenizer or its machine is at fault. Ends the run."""


@dataclass(slots=True)
class AttemptLog:
    """What is known of a bundle at which processes die; its file exists while a process computes the bundle."""

    path: str
    bundle: str
    """The bundle in a user's words, such as `rows 0 to 9 of a.txt`."""
    rows: int = 0
    deaths: int = 0
    at: tuple[int, int] = (0, 0)
    """Range that was begun last."""
    suspects: list[tuple[int, int]] = field(default_factory=list)
    """Ranges that may hold a poison row, in the order in which they are tried."""
    cleared: list[tuple[int, int]] = field(default_factory=list)
    """Ranges that some process lived through."""
    alone: dict[int, int] = field(default_factory=dict)
    """Deaths by row, of processes that were at this row alone."""
    lost: list[int] = field(default_factory=list)
    """Poison rows."""

    def ranges(self, stage: str, rows: int) -> Iterator[range]:
        """Yield the ranges to work on, one after the other, each noted before it is begun.

        Raises BrokenStageError if more than MAX_DEATHS workers died at the bundle.
        """
        if self._recall(_read(self.path), rows):
            self._count_death(stage)
        else:
            self.rows, self.suspects = rows, [(0, rows)]
        for begun in [*self.suspects, *self.cleared]:
            self.at = begun
            _write(self.path, json.dumps(self._facts()))
            yield range(*begun)
            if begun in self.suspects:
                self.suspects.remove(begun)
                self.cleared.append(begun)

    def rejects(self, stage: str) -> dict[int, Reject]:
        """Return the poison rows as rejects."""
        detail = f"{stage}: {DEATHS_ALONE} workers died while they worked on this row alone"
        return {row: Reject(Reason.KILLED_WORKER, detail) for row in self.lost}

    def remove(self) -> None:
        """Remove the file, since this process lived through the bundle."""
        _remove(self.path)

    def _count_death(self, stage: str) -> None:
        """Draw the conclusion from one more death."""
        self.deaths += 1
        at, length = self.at, self.at[1] - self.at[0]
        if self.deaths > MAX_DEATHS:
            raise BrokenStageError(
                f"{stage}: {self.deaths} workers died at {self.bundle}, the last one at {length} of its rows; give workers "
                "more memory, or take these rows out"
            )
        if at in self.cleared:  # it worked before, so something else killed the process
            self.cleared.remove(at)
            self.suspects.insert(0, at)
        elif length == self.rows and self.deaths == 1:
            return
        elif length > 1:
            index = self.suspects.index(at)
            self.suspects[index : index + 1] = [(half.start, half.stop) for half in halves(range(*at))]
        else:
            self._count_death_alone(at)

    def _count_death_alone(self, at: tuple[int, int]) -> None:
        """Count a death at a single row, and give the row up after DEATHS_ALONE of them."""
        row = at[0]
        self.alone[row] = self.alone.get(row, 0) + 1
        if self.alone[row] >= DEATHS_ALONE:
            self.suspects.remove(at)
            self.lost.append(row)

    def _facts(self) -> dict[str, object]:
        facts = asdict(self)
        del facts["path"], facts["bundle"]
        return facts

    def _recall(self, facts: Any, rows: int) -> bool:
        """Take over what is known of these rows; return whether that accounts for each of them."""
        try:
            suspects, cleared = ([(int(a), int(b)) for a, b in facts[name]] for name in ("suspects", "cleared"))
            at, lost = (int(facts["at"][0]), int(facts["at"][1])), [int(row) for row in facts["lost"]]
            alone = {int(row): int(count) for row, count in facts["alone"].items()}
            deaths = int(facts["deaths"])
        except (KeyError, IndexError, ValueError, TypeError, AttributeError, OverflowError):
            return False
        ranges = sorted([*suspects, *cleared, *((row, row + 1) for row in lost)])
        ends = [0, *(stop for _, stop in ranges)]
        whole = [start for start, _ in ranges] == ends[:-1] and ends[-1] == rows and all(a < b for a, b in ranges)
        if not whole or at not in [*suspects, *cleared]:
            return False
        self.rows, self.deaths, self.at, self.lost = rows, deaths, at, lost
        self.suspects, self.cleared, self.alone = suspects, cleared, alone
        return True


def halves(rows: range) -> tuple[range, range]:
    """Bisect a range of rows."""
    middle = rows.start + len(rows) // 2
    return range(rows.start, middle), range(middle, rows.stop)


def attempts_of(output: str | None, stage: str, receipts: Sequence[Receipt]) -> AttemptLog | None:
    """Return the attempt log of a bundle in a stage; None without an output folder to keep it in."""
    if output is None:
        return None
    first, others = receipts[0], len(receipts) - 1
    bundle = f"rows {first.start:,} to {first.start + max(first.rows_in, 1) - 1:,} of {first.file}"
    bundle += f" and {others:,} more shards" if others else ""
    key = hashlib.blake2b("".join(receipt.shard for receipt in receipts).encode(), digest_size=8).hexdigest()
    return AttemptLog(f"{output}/{ATTEMPTS_FOLDER}/{stage}-{key}.json", bundle)


@dataclass(slots=True)
class ReadLog:
    """What is known of a reading task at which processes die; its file exists while a process reads.

    The first process notes nothing but that it has begun. Those after a death note each shard before they read it, and what two
    of them have died of is given up: it is unreadable from there on.
    """

    path: str | None
    """Where the log is; None without an output folder to keep it in."""
    files: str
    """What is read, in a user's words, such as `a.txt, or one of the 3 files after it`."""
    deaths: int = 0
    at: tuple[int, int] | None = None
    """Number of the piece in the task, and of the row in its file, that was begun last."""
    alone: dict[tuple[int, int], int] = field(default_factory=dict)
    """Deaths of processes that were at this piece and row."""

    @classmethod
    @contextmanager
    def of(cls, output: str | None, key: str, files: str) -> Iterator[Self]:
        """Begin to read; raise BrokenStageError if more than MAX_DEATHS processes died at the task."""
        log = cls(None if output is None else f"{output}/{ATTEMPTS_FOLDER}/{key}.json", files)
        log._recall()
        try:
            log._note()
            yield log
        finally:
            if log.path is not None:
                _remove(log.path)  # whatever happened, this process lived through it

    @property
    def lost(self) -> dict[int, dict[int, str]]:
        """Return by piece the rows from which on it is given up, and the cause."""
        lost: dict[int, dict[int, str]] = {}
        for (piece, row), deaths in self.alone.items():
            if deaths >= DEATHS_ALONE:
                lost.setdefault(piece, {})[row] = f"{deaths} workers died while they read it"
        return lost

    def begin(self, piece: int, row: int) -> None:
        """Note that the shard is read next which begins with this row of this piece."""
        if self.deaths:
            self.at = (piece, row)
            self._note()

    def _recall(self) -> None:
        """Take over what a process left that has died, and count it."""
        left = None if self.path is None else _read(self.path)
        if left is None:
            return
        self.deaths = 1
        with suppress(KeyError, ValueError, TypeError):  # a damaged log tells of one death
            self.alone = {(int(piece), int(row)): int(deaths) for piece, row, deaths in left["alone"]}
            self.deaths += int(left["deaths"])
            for piece, row in [left["at"]] if left["at"] else []:
                self.alone[piece, row] = self.alone.get((piece, row), 0) + 1
        if self.deaths > MAX_DEATHS:
            raise BrokenStageError(f"{self.deaths} workers died while they read {self.files}; take it out of the input")

    def _note(self) -> None:
        if self.path is not None:
            alone = [[*at, deaths] for at, deaths in self.alone.items()]
            _write(self.path, json.dumps({"deaths": self.deaths, "at": self.at, "alone": alone}))


@contextmanager
def bounded(output: str | None, key: str, most: int, when: str) -> Iterator[None]:
    """Bound the deaths of processes at work that has no rows to bisect, which Ray would try again for ever.

    `when` completes the message of the BrokenStageError that is raised once `most` processes have died under this key, as in
    "4 workers died while they loaded the model".
    """
    if output is None:
        yield
        return
    path = f"{output}/{ATTEMPTS_FOLDER}/{key}.json"
    noted = _read(path)
    deaths = noted if isinstance(noted, int) else 0
    try:
        if deaths >= most:
            raise BrokenStageError(f"{deaths} workers died {when}")
        _write(path, str(deaths + 1))
        yield
    finally:
        _remove(path)


def clear_attempts(output: str) -> None:
    """Remove all attempt logs of an output folder, when all shards are done or no worker is left."""
    storage, folder = storage_of(output), f"{output}/{ATTEMPTS_FOLDER}"
    ours = (LOG_NAME.fullmatch(name) or TEMPORARY_NAME.fullmatch(name) for name in storage.names(folder))
    storage.delete([f"{folder}/{match[0]}" for match in ours if match])


def _read(path: str) -> Any:
    """Read a log; None if there is none, or a damaged one."""
    found = storage_of(path).read(path)
    with suppress(ValueError, RecursionError):
        return json.loads(found[0]) if found else None
    return None


def _write(path: str, text: str) -> None:
    storage_of(path).write(path, text.encode())


def _remove(path: str) -> None:
    storage_of(path).delete([path])
