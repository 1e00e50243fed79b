"""Progress of a run: a live line on a terminal, a log line every few seconds elsewhere; and the timeline of its shards.

    42%  1,310,720 rows  2,184 rows/s  13:51 left  mean exit 3.90  12 rejects

The fraction done is one of input bytes, the only size that is known before files are read.
"""

import sys
import time
from dataclasses import dataclass
from typing import Self, TextIO

from pipeline.output.receipts import Receipt
from pipeline.output.totals import Totals

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


class Progress:
    """Shows how far a run is, `before` being what earlier runs have done of the same folder."""

    def __init__(self, before: Totals, bytes_left: int, stream: TextIO | None = None) -> None:
        self.before, self.total_bytes = Sums.of(before), int(before.input_bytes) + bytes_left
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.started = self.shown = time.monotonic()

    def update(self, fresh: Totals) -> None:
        """Show the totals of this run, if it is time to."""
        now = time.monotonic()
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
        fraction = min(done.input_bytes / self.total_bytes, 1.0) if self.total_bytes else 1.0
        rest = self.total_bytes - done.input_bytes
        left = rest / fresh.input_bytes * seconds if fresh.input_bytes > 0 else float("nan")
        return (
            f"{fraction:4.0%}  {done.rows:,} rows  {fresh.rows_in / seconds:,.0f} rows/s  {duration(left)} left  "
            f"mean exit {done.exit_layers / max(done.rows_out, 1):.2f}  {done.rejects:,} rejects"
        )

    def _show(self, text: str) -> None:
        self.stream.write(f"\r\x1b[K{text}" if self.live else f"{text}\n")
        self.stream.flush()


@dataclass(frozen=True, slots=True)
class Moment:
    """A finished shard."""

    at: float
    """Seconds since the timeline was made."""
    rows: int
    seconds: dict[str, float]
    """Wall-clock time by stage."""


class Timeline:
    """The finished shards of one run, in the order in which their receipts came in."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self.moments: list[Moment] = []

    def add(self, receipt: Receipt) -> None:
        """Note a finished shard."""
        self.moments.append(Moment(time.monotonic() - self._started, receipt.rows_in, receipt.seconds))


def duration(seconds: float) -> str:
    """Write seconds as `h:mm:ss` or `m:ss`; as `?` where they are unknown."""
    if seconds != seconds or seconds == float("inf"):
        return "?"
    minutes, rest = divmod(int(max(seconds, 0) + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
