"""Hard rows: those that go deep, and those that exit where answers differ most. A night with twice as many is of another kind.

One bin that grows from 5 % to 10 % is a population stability index of 0.037, which is below any threshold however many rows
there are. So rows beyond every layer, and rows in the riskiest cells, however many of these, are compared with those of the
calibration: each is a fraction of all rows, and beyond chance with some thousand rows (docs/guarantees.md). What that means for
the answers is another question, which `drift.expected` asks.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from pipeline.calibration.drift.expected import ALARM_RATIO, WATCH_RATIO, ComparedCells
from pipeline.calibration.drift.signals import BY_CHANCE, beyond_chance

LEAST_MORE = 0.02
"""Fraction of all rows by which hard rows must have grown for either."""
STATES = ("ok", "watch", "alarm")


@dataclass(frozen=True, slots=True, kw_only=True)
class HardRows:
    """The fraction of rows that are hard in one sense, that in which most has changed."""

    rows: str
    """Which rows these are."""
    calibration: float
    """Their fraction of the calibration's rows, at these thresholds."""
    now: float
    """Their fraction of the run's rows."""
    chance: float
    """How much larger that may be in one sense or another by chance, once in 1 / BY_CHANCE runs of unchanged rows."""

    @property
    def state(self) -> str:
        """'alarm', 'watch' or 'ok'."""
        more = self.now - self.calibration
        if more <= self.chance or more < LEAST_MORE or self.now < WATCH_RATIO * self.calibration:
            return "ok"
        return "alarm" if self.now >= ALARM_RATIO * self.calibration else "watch"

    @property
    def moved(self) -> str:
        """Which rows have become more: "rows that go beyond layer 9 went from 5.0% to 10.1%"."""
        return f"{self.rows} went from {self.calibration:.1%} to {self.now:.1%}"

    def describe(self) -> str:
        """Say what has moved: "hard rows: rows that go beyond layer 9 went from 5.0% to 10.1%"."""
        return f"hard rows: {self.moved}"


Counted = tuple[str, float, float, float, float]
"""A kind of rows: its name, the calibration's rows of that kind and of all, and the same of the run."""


def hard_rows(
    expected: Sequence[float], actual: Sequence[float], cells: ComparedCells | None = None
) -> HardRows | None:
    """Compare hard rows, by exit layer, layer 1 first, and by cell where risks are known; None without rows on a side."""
    kinds = [*_deep(expected, actual), *(_risky(cells) if cells else ())]
    odds = math.log(max(len(kinds), 1) / BY_CHANCE)  # any of them may be the one
    found = [_compared(kind, odds) for kind in kinds if kind[2] and kind[4]]
    return max(
        found, key=lambda hard: (STATES.index(hard.state), (hard.now - hard.calibration) / hard.chance), default=None
    )


def _deep(expected: Sequence[float], actual: Sequence[float]) -> Iterator[Counted]:
    """Count the rows beyond every layer."""
    for layer in range(1, len(expected)):
        beyond = sum(expected[layer:]), sum(actual[layer:])
        yield f"rows that go beyond layer {layer}", beyond[0], sum(expected), beyond[1], sum(actual)


def _risky(cells: ComparedCells) -> Iterator[Counted]:
    """Count the rows of the riskiest cell, of the two riskiest, and so on, without those that nothing differs in."""
    order = np.argsort(-cells.risk, kind="stable")
    ranked = ([*each[order].tolist()] for each in (cells.risk, cells.seen, cells.now))
    risk, seen, now = ranked
    for least, before, after in zip(risk, accumulate(seen), accumulate(now), strict=True):
        if least and before < sum(seen):
            yield f"rows where {least:.1%} or more differ", before, sum(seen), after, sum(now)


def _compared(kind: Counted, odds: float) -> HardRows:
    """Compare two fractions; the chance is that of a pooled fraction."""
    rows, before, of, now, out_of = kind
    pooled = (before + now) / (of + out_of)
    chance = beyond_chance(pooled * (1 - pooled) * (1 / of + 1 / out_of), odds, min(of, out_of))
    return HardRows(rows=rows, calibration=before / of, now=now / out_of, chance=chance)
