"""What is done to the runs of a round, and when: drawn from a seed.

Processes are killed with SIGKILL. A driver is a zombie that is stopped, as by a machine that hangs, and goes on when another
has done its work or begun it.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos.places import Place

VICTIMS = ("actor", "task", "workers", "raylet", "driver")
DRIVERS = ("rival", "zombie")
"""A second driver begins beside the first, or while the first is stopped."""
STEPS = ("rejects", "writing", "part", "receipt", "attempt", "last part")
"""Of a bundle's way into the result: its rejects are there but not its part; its part is being written; is there but not its
receipt; has its receipt; an actor has begun it; all parts are there but not the manifest."""


@dataclass(frozen=True)
class Kill:
    """One kill of a plan, or another thing that is done to a driver."""

    victim: str
    step: str | None
    """Wait for this to happen `count` times in the output folder; None: wait `seconds` after the first part."""
    count: int
    seconds: float

    def __str__(self) -> str:
        when = f"{self.seconds:.1f}s" if self.step is None else self.step + (f" {self.count}" if self.count > 1 else "")
        return f"{self.victim}@{when}"


def plan_of(seed: int, number: int, parts: int, *, drivers: bool = False) -> list[list[Kill]]:
    """Draw the kills of a round: for each of its disturbed runs, one to three, one after the other; and a second driver."""
    draw = random.Random(f"{seed}/{number}")
    runs = []
    for _ in range(draw.choice([1, 1, 2])):
        kills = [_kill(draw, parts) for _ in range(draw.choice([1, 2, 3]))]
        if drivers:  # first, so that the others are killed beside it
            kills.insert(0, _kill(draw, max(parts // 2, 1), draw.choice(DRIVERS)))
        # Nothing is left to be killed after the driver, nor after the last part.
        runs.append(sorted(kills, key=lambda kill: (kill.step == "last part", kill.victim == "driver")))
    return runs


def _kill(draw: random.Random, parts: int, driver: str | None = None) -> Kill:
    step = draw.choice([None, *STEPS])
    # At a step of the commit it is the writing process that matters, or the driver.
    victims = VICTIMS if step in (None, "attempt") else ("workers", "workers", "driver", "raylet")
    victim = "driver" if step == "last part" else draw.choice(victims)
    return Kill(driver or victim, step, draw.randint(1, max(parts // 2, 1)), draw.uniform(0, 4))


class Watch:
    """Watches an output folder from outside."""

    def __init__(self, output: Place, parts: int) -> None:
        self.output, self.parts = output, parts

    def wait(self, kill: Kill, over: Callable[[], bool]) -> bool:
        """Wait for the moment of a kill; False if the run is over before."""
        before_parts, before = len(self.seen("part")), self.seen(kill.step)
        since: float | None = None
        while not over():
            fresh = len(self.seen("part")) - before_parts
            if kill.step is None:
                since = since or (time.monotonic() if fresh else None)
                happened = since is not None and time.monotonic() - since >= kill.seconds
            elif kill.step == "last part":
                happened = before_parts + fresh >= self.parts
            elif kill.step in ("part", "rejects"):
                happened = len(self.seen(kill.step) - before) >= kill.count
            elif fresh < kill.count - 1:  # what comes and goes is waited for when enough parts are there
                before, happened = self.seen(kill.step), False
            else:
                happened = bool(self.seen(kill.step) - before)
            if happened:
                return True
            time.sleep(self.output.poll_seconds)
        return False

    def seen(self, step: str | None) -> set[str]:
        """Return what is there now that shows a step; receipts by their file's size, which grows."""
        patterns = {"rejects": "_rejects/part-*", "writing": ".part-*.tmp", "attempt": "_attempts/classify-*"}
        if step != "receipt":
            return {*self.output.find(patterns.get(step or "", "part-*"))}
        return {f"{name}:{size}" for name, size in self.output.find("_receipts/*/*.parquet").items()}
