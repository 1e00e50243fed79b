"""Finished shards over the time of a run, from which the report draws its curves."""

import time
from dataclasses import dataclass

from pipeline.output.receipts import Receipt


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
