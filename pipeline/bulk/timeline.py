"""When shards came in."""

import time
from dataclasses import dataclass

from pipeline.output.receipts import Receipt


@dataclass(frozen=True, slots=True)
class Moment:
    """A shard came in."""

    at: float
    """Seconds since the timeline was made."""
    rows: int
    seconds: dict[str, float]
    """By stage."""


class Timeline:
    """When shards came in, of one run."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self.moments: list[Moment] = []

    def add(self, receipt: Receipt) -> None:
        """Note a finished shard."""
        self.moments.append(Moment(time.monotonic() - self._started, receipt.rows_in, receipt.seconds))
