"""Tell how far a run is: a live line on a terminal, a log line every few seconds otherwise."""

import sys
import time
from typing import TextIO

from pipeline.output.receipts import Receipt
from pipeline.output.totals import Totals

LOG_SECONDS = 10.0
"""Between two log lines: a nightly log of eight hours stays under 3,000 lines."""


class Progress:
    """Fed with receipts; the share done is that of input bytes, the only size known before reading."""

    def __init__(self, total_bytes: int, already: Totals, stream: TextIO | None = None) -> None:
        self.total_bytes, self.totals = total_bytes, already
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.rows_before, self.bytes_before = already.rows_in, already.input_bytes
        self.started = self.shown = time.monotonic()

    def add(self, receipt: Receipt) -> None:
        """Count a finished shard and say so when it is time."""
        self.totals = self.totals.plus(receipt)
        now = time.monotonic()
        if self.live or now - self.shown >= LOG_SECONDS:
            self.shown = now
            self._show(self.line())

    def close(self) -> None:
        """End the live line."""
        if self.live and self.totals.shards:
            self.stream.write("\n")
            self.stream.flush()

    def line(self) -> str:
        """One line: rows, rate, time left, mean exit layer, rejects."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        totals = self.totals
        rate = (totals.rows_in - self.rows_before) / seconds
        share = min(totals.input_bytes / self.total_bytes, 1.0) if self.total_bytes else 1.0
        fresh = totals.input_bytes - self.bytes_before
        left = (self.total_bytes - totals.input_bytes) / fresh * seconds if fresh > 0 else float("nan")
        return (
            f"{share:4.0%}  {totals.rows_in:,} rows  {rate:,.0f} rows/s  {duration(left)} left  "
            f"mean exit {totals.mean_exit_layer:.2f}  {totals.rows_rejected:,} rejects"
        )

    def _show(self, text: str) -> None:
        self.stream.write(f"\r\x1b[K{text}" if self.live else f"{text}\n")
        self.stream.flush()


def duration(seconds: float) -> str:
    """Write seconds as h:mm:ss or m:ss."""
    if seconds != seconds or seconds == float("inf"):
        return "?"
    minutes, rest = divmod(int(max(seconds, 0) + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
