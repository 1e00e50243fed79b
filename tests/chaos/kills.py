"""What is killed in a round, and when: drawn from a seed, carried out with SIGKILL."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

VICTIMS = ("actor", "task", "workers", "raylet", "driver")
STEPS = ("rejects", "writing", "part", "receipt", "attempt", "last part")
"""Of a bundle's way into the result: its rejects are there but not its part; its part is being written; is there but not its
receipt; has its receipt; an actor has begun it; all parts are there but not the manifest."""
POLL_SECONDS = 0.002


@dataclass(frozen=True)
class Kill:
    """One kill of a plan."""

    victim: str
    step: str | None
    """Wait for this to happen `count` times in the output folder; None: wait `seconds` after the first part."""
    count: int
    seconds: float

    def __str__(self) -> str:
        when = f"{self.seconds:.1f}s" if self.step is None else self.step + (f" {self.count}" if self.count > 1 else "")
        return f"{self.victim}@{when}"


def plan_of(seed: int, number: int, parts: int) -> list[list[Kill]]:
    """Draw the kills of a round: for each of its disturbed runs, one to three, one after the other."""
    draw = random.Random(f"{seed}/{number}")
    runs = []
    for _ in range(draw.choice([1, 1, 2])):
        kills = [_kill(draw, parts) for _ in range(draw.choice([1, 2, 3]))]
        # Nothing is left to be killed after the driver, nor after the last part.
        runs.append(sorted(kills, key=lambda kill: (kill.step == "last part", kill.victim == "driver")))
    return runs


def _kill(draw: random.Random, parts: int) -> Kill:
    step = draw.choice([None, *STEPS])
    # At a step of the commit it is the writing process that matters, or the driver.
    victims = VICTIMS if step in (None, "attempt") else ("workers", "workers", "driver", "raylet")
    victim = "driver" if step == "last part" else draw.choice(victims)
    return Kill(victim, step, draw.randint(1, max(parts // 2, 1)), draw.uniform(0, 4))


class Watch:
    """Watches an output folder from outside."""

    def __init__(self, output: Path, parts: int) -> None:
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
            time.sleep(POLL_SECONDS)
        return False

    def seen(self, step: str | None) -> set[str]:
        """Return what is there now that shows a step; receipts by their file's size, which grows."""
        patterns = {"rejects": "_rejects/part-*", "writing": ".part-*.tmp", "attempt": "_attempts/classify-*"}
        if step != "receipt":
            return {path.name for path in self.output.glob(patterns.get(step or "", "part-*"))}
        files = list(self.output.glob("_receipts/*/*.parquet"))
        return {f"{path}:{_size(path)}" for path in files if not path.is_dir()}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
