"""Hard rows: those that go deeper than most. A night with twice as many of them costs more, and is of another kind.

Rows that go beyond a layer are compared with those of the calibration, for every layer. One bin that grows from 5 % to 10 % is
a population stability index of 0.037, which is below any threshold however many rows there are; here it is beyond chance with
some thousand rows (docs/guarantees.md). Whether answers are worse for it is another question, which `drift.expected` asks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.calibration.drift.signals import BY_CHANCE, MOVED_BY

WATCH_RATIO, ALARM_RATIO = 1.2, 1.5
"""Times the calibration's fraction from which more hard rows, beyond chance, are worth a look, and are an alarm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HardRows:
    """The fraction of rows that go beyond a layer, that at which most has changed."""

    layer: int
    calibration: float
    """Fraction of the calibration's rows that go beyond the layer at these thresholds."""
    now: float
    """Fraction of the run's rows that do."""
    chance: float
    """How much more may be beyond one of the layers by chance, once in 1 / BY_CHANCE runs of unchanged rows."""

    @property
    def state(self) -> str:
        """'alarm', 'watch' or 'ok'."""
        more = self.now - self.calibration
        if more <= self.chance or more < MOVED_BY or self.now < WATCH_RATIO * self.calibration:
            return "ok"
        return "alarm" if self.now >= ALARM_RATIO * self.calibration else "watch"

    @property
    def moved(self) -> str:
        """Which rows have become more, with their fractions of the calibration's rows and of the run's."""
        return f"rows that go beyond layer {self.layer} went from {self.calibration:.1%} to {self.now:.1%}"

    def describe(self) -> str:
        """Say what has moved: "hard rows: rows that go beyond layer 9 went from 5.0% to 10.1%"."""
        return f"hard rows: {self.moved}"


def hard_rows(expected: Sequence[float], actual: Sequence[float]) -> HardRows | None:
    """Compare rows by exit layer, layer 1 first, with those to expect; None without rows on a side, or with one layer.

    The chance is Bernstein's (1946) for each layer, and their union.
    """
    if len(expected) < 2 or not sum(expected) or not sum(actual):
        return None
    tails = [_tail(expected, actual, layer) for layer in range(1, len(expected))]
    worst = ("ok", "watch", "alarm")
    return max(tails, key=lambda tail: (worst.index(tail.state), (tail.now - tail.calibration) / tail.chance))


def _tail(expected: Sequence[float], actual: Sequence[float], layer: int) -> HardRows:
    """Compare the rows that go beyond one layer."""
    rows = float(sum(expected)), float(sum(actual))
    beyond = float(sum(expected[layer:])), float(sum(actual[layer:]))
    pooled = sum(beyond) / sum(rows)
    odds = math.log((len(expected) - 1) / BY_CHANCE)
    variance = pooled * (1 - pooled) * (1 / rows[0] + 1 / rows[1])
    chance = math.sqrt(2 * variance * odds) + odds / (3 * min(rows))
    return HardRows(layer=layer, calibration=beyond[0] / rows[0], now=beyond[1] / rows[1], chance=chance)
