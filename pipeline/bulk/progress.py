"""Progress of a run: a live line on a terminal, a log line every few seconds elsewhere; and the timeline of its bundles.

    42%  1,310,720 rows  2,184 rows/s  13:51 left  mean exit 3.90  12 rejects  waiting for the model

The fraction done is one of input bytes, the only size that is known before files are read. A reader takes them in pieces of
PIECE_BYTES, and a piece of a file that is packed a thousandfold holds a thousand bundles: so the last piece of a file that goes
on is not done yet, and while most of what was read is such pieces, nobody knows how much time is left. The last words name the
stage that holds the others up.
"""

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Self, TextIO

import numpy as np

from pipeline.output.receipts import Receipt
from pipeline.output.totals import Totals

STAGES = {"read": "reading", "tokenize": "the tokenizer", "classify": "the model", "write": "writing"}
"""Stages in the order of the chain, as the progress line calls them."""
RECENT = 0.8
"""Weight that the waits of earlier bundles keep when another one is finished."""
QUEUE = 1.0
"""Bundles that wait for a stage, on the mean, above which it has a queue; a few tenths are how long a task takes to start."""
PIECE_BYTES = 1 << 16
"""Bytes of a file that are read at once, by Arrow's decompressors and by ours."""
MAX_UNCERTAIN = 0.25
"""Fraction of the bytes that were read which may be of such pieces where the time that is left is shown."""
BIN_SECONDS, MAX_BINS = 0.25, 256
"""Seconds in a bin of the timeline at first, and the most bins: a minute fills them, and those of a day have 512 s each."""
ROWS = "rows"
"""Name of the sum of rows in a timeline, beside the names of stages."""
LOG_SECONDS = 10.0
"""Time between two log lines: a nightly log of eight hours stays under 3,000 lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """What a line is made of, as sums that add up over runs."""

    input_bytes: float
    rows: int
    rows_out: int
    exit_layers: float
    """Sum of the exit layers of all rows."""
    rejects: int

    @classmethod
    def of(cls, totals: Totals) -> Self:
        """Take the sums out of totals."""
        return cls(
            input_bytes=totals.input_bytes,
            rows=totals.rows_in,
            rows_out=totals.rows_out,
            exit_layers=totals.mean_exit_layer * totals.rows_out,
            rejects=totals.rows_rejected,
        )

    def plus(self, more: Self) -> Self:
        """Add up."""
        return type(self)(
            input_bytes=self.input_bytes + more.input_bytes,
            rows=self.rows + more.rows,
            rows_out=self.rows_out + more.rows_out,
            exit_layers=self.exit_layers + more.exit_layers,
            rejects=self.rejects + more.rejects,
        )


@dataclass(frozen=True, slots=True)
class _BegunFile:
    """What this run has done of a file."""

    input_bytes: float = 0.0
    rows: int = 0
    end: int | None = None
    """Number of its rows, once its last shard is done, be that before others or not."""

    def plus(self, receipt: Receipt) -> "_BegunFile":
        end = receipt.start + receipt.span if receipt.last else self.end
        return _BegunFile(self.input_bytes + receipt.input_bytes, self.rows + receipt.span, end)


class Progress:
    """Shows how far a run is, `before` being what earlier runs have done of the same folder."""

    def __init__(self, before: Totals, bytes_left: int, stream: TextIO | None = None) -> None:
        self.before, self.total_bytes = Sums.of(before), int(before.input_bytes) + bytes_left
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.started = self.shown = time.monotonic()
        self._waits, self._elapsed, self._last = dict.fromkeys(STAGES, 0.0), 0.0, self.started
        self._begun: dict[str, _BegunFile] = {}
        """Files of which some shards are done and others are not."""

    def update(self, fresh: Totals, bundle: Totals, receipts: Sequence[Receipt] = ()) -> None:
        """Take note of a finished bundle, and show the totals of this run, if it is time to."""
        now = time.monotonic()
        for receipt in receipts:
            begun = self._begun.pop(receipt.file, _BegunFile()).plus(receipt)
            if begun.rows != begun.end:
                self._begun[receipt.file] = begun
        self._elapsed, self._last = RECENT * self._elapsed + now - self._last, now
        for stage in STAGES:
            self._waits[stage] = RECENT * self._waits[stage] + bundle.waits.get(stage, 0.0)
        if self.live or now - self.shown >= LOG_SECONDS:
            self.shown = now
            self._show(self.line(fresh))

    def close(self, fresh: Totals) -> None:
        """End the live line, if there is one."""
        if self.live and fresh.shards:
            self.stream.write("\n")
            self.stream.flush()

    def line(self, fresh: Totals) -> str:
        """Write rows, rate, time left, mean exit layer and rejects on one line."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        done = self.before.plus(Sums.of(fresh))
        uncertain = sum(min(begun.input_bytes, PIECE_BYTES) for begun in self._begun.values() if begun.end is None)
        read = done.input_bytes - uncertain
        fraction = min(read / self.total_bytes, 1.0) if self.total_bytes else 1.0
        known = fresh.input_bytes > 0 and uncertain <= MAX_UNCERTAIN * fresh.input_bytes
        left = (self.total_bytes - read) / (fresh.input_bytes - uncertain) * seconds if known else float("nan")
        return (
            f"{fraction:4.0%}  {done.rows:,} rows  {fresh.rows_in / seconds:,.0f} rows/s  {duration(left)} left  "
            f"mean exit {done.exit_layers / max(done.rows_out, 1):.2f}  {done.rejects:,} rejects  "
            f"waiting for {STAGES[slowest_stage(self._waits, self._elapsed)]}"
        )

    def _show(self, text: str) -> None:
        self.stream.write(f"\r\x1b[K{text}" if self.live else f"{text}\n")
        self.stream.flush()


def slowest_stage(waits: Mapping[str, float], elapsed: float) -> str:
    """Return the stage that holds up a chain, by the seconds for which bundles waited for each stage in `elapsed` seconds.

    Their quotient is the mean number of bundles that wait (Little's law). The slowest stage is the last one with a queue: the
    stages before it are held back and have queues as well, and those behind it wait for it. Where none has a queue, reading is
    too slow for all others.
    """
    queued = [stage for stage in STAGES if waits.get(stage, 0.0) > QUEUE * elapsed]
    return queued[-1] if queued else next(iter(STAGES))


class Timeline:
    """What the bundles of one run were, over time: a few hundred sums, however long the run and however many its bundles.

    When time goes beyond the last bin, bins are joined in pairs and are twice as wide from then on.
    """

    def __init__(self) -> None:
        self.bundles = 0
        self.first = self.last = 0.0
        """When the first and the latest bundle were done, in seconds since the run began."""
        self._width = BIN_SECONDS
        self._bins: list[Counter[str]] = []
        """Sums by name over spans of `_width` seconds, the first of which begins when the first bundle is done."""

    def add(self, bundle: Totals, at: float) -> None:
        """Note a bundle that is done `at` so many seconds after the run began; only times from the first one on count."""
        self.bundles += 1
        if self.bundles == 1:
            self.first = self.last = at
            return
        self.last = max(at, self.last)
        number = int((self.last - self.first) / self._width)
        while number >= MAX_BINS:
            pairs = zip_longest(self._bins[::2], self._bins[1::2], fillvalue=Counter[str]())
            self._bins, self._width, number = [one + other for one, other in pairs], 2 * self._width, number // 2
        self._bins += [Counter[str]() for _ in range(number + 1 - len(self._bins))]
        self._bins[number].update({ROWS: bundle.rows_in, **bundle.seconds})

    @property
    def names(self) -> list[str]:
        """What there are sums of: ROWS, and the wall-clock time in seconds by stage."""
        return list(dict.fromkeys(name for sums in self._bins for name in sums))

    def rates(self, name: str, steps: int) -> list[float]:
        """Return a sum per second in each of some equal steps from the first bundle to the last: [steps].

        What lies in a bin is spread evenly over it.
        """
        starts = np.arange(len(self._bins)) * self._width
        edges = np.append(starts, self.last - self.first)
        sums = np.cumsum([0.0, *(each[name] for each in self._bins)])
        at_steps = np.interp(np.linspace(0.0, edges[-1], steps + 1), edges, sums)
        rates: list[float] = (np.diff(at_steps) * steps / edges[-1]).tolist()
        return rates


def duration(seconds: float) -> str:
    """Write seconds as `h:mm:ss` or `m:ss`; as `?` where they are unknown."""
    if seconds != seconds or seconds == float("inf"):
        return "?"
    minutes, rest = divmod(int(max(seconds, 0) + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
