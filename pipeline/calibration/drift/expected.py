"""Drift in the unit that matters: how many of a run's answers differ from full depth, if rows are as risky as they look.

A calibration knows the risk of a cell (`drift.cells`), which is the fraction of its rows there whose answer differs from full
depth. With p the fractions of the calibration's rows by cell, q those of a run and r the risks,

    calibration = sum of p r, which is what differed there        expected = sum of q r

That assumes that a row of a cell is as risky as it was, and that only the cells' fractions have changed (covariate shift; as
*importance weighting*, Shimodaira 2000). Nothing in the rows tests this: the audit does.

The bounds of `expected` are for what the calibration did not know: counts of differing rows by cell, weighted, are a directly
standardized rate, whose bounds are gamma quantiles (Fay and Feuer 1997). With one cell they are those of a Poisson count.

By chance alone, when nothing has changed, `expected` is above `calibration` by more than

    chance = sqrt(2 v log(1 / a)) + log(1 / a) max(r) / (3 min(n, m)),      v = variance of r x (1/n + 1/m)

with probability at most a (Bernstein 1946, of n calibration rows and m rows of the run).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy.special import gammaincinv

from pipeline.calibration.drift.cells import BINS, describe_cells
from pipeline.calibration.drift.signals import BY_CHANCE, beyond_chance
from pipeline.rows import IntArray

Floats = npt.NDArray[np.float64]

LEAST_ROWS = 100
"""Calibration rows of a cell; cells of fewer are joined with their neighbors."""
WATCH_RATIO, ALARM_RATIO = 1.1, 1.25
"""Times the disagreement of the calibration, or its hard rows, from which more, beyond chance, is a watch, and is an alarm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Risks:
    """What a calibration saw at the thresholds in force, by `cells.count_cells`: E exits below the last, and full depth."""

    layers: tuple[int, ...]
    """Layers of these exits: [E]."""
    depth: int
    """Number of layers."""
    rows: tuple[float, ...]
    """Tested rows by cell: [E x BINS + 1]; interpolated, so not always whole."""
    differing: tuple[float, ...]
    """Those whose answer differs from full depth: [E x BINS + 1]; of the last cell only texts of several windows do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedDisagreement:
    """The fraction of a run's rows that differ from full depth, as far as the calibration's risks let one expect."""

    rows: int
    """Rows of the run."""
    expected: float
    at_least: float
    at_most: float
    """Bounds of it with `confidence`, by the calibration's sampling error."""
    confidence: float
    calibration: float
    """Fraction of the calibration's own rows that differ, at the same thresholds."""
    chance: float
    """By how much more may be expected by chance, once in 1 / BY_CHANCE runs of unchanged rows."""
    limit: float | None
    cells: str
    """Which rows add most to what is expected, with their fractions of the calibration's rows and of the run's."""

    @property
    def state(self) -> str:
        """'alarm', 'watch' or 'ok'."""
        if self.expected <= self.calibration + self.chance:
            return "ok"
        above = self.limit is not None and self.expected > self.limit
        if above or self.expected >= ALARM_RATIO * self.calibration:
            return "alarm"
        return "watch" if self.expected >= WATCH_RATIO * self.calibration else "ok"

    @property
    def moved(self) -> str:
        """What is expected, and why: "1.400% (calibration 0.700%, limit 1.000%): rows that exit at layer 5 ..."."""
        limit = "" if self.limit is None else f", limit {self.limit:.3%}"
        return f"{self.expected:.3%} (calibration {self.calibration:.3%}{limit}): {self.cells}"

    def describe(self) -> str:
        """Say what has moved: "expected disagreement 1.400% (calibration 0.700%): rows that ..."."""
        return f"expected disagreement {self.moved}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedCells:
    """Rows of a calibration and of a run by R runs of neighboring cells, each of enough calibration rows to know its risk."""

    names: tuple[str, ...]
    """Which rows those of each run are: [R]."""
    seen: Floats
    """Tested rows of the calibration: [R]."""
    differing: Floats
    """Those whose answer differs from full depth: [R]."""
    now: Floats
    """Rows of the run: [R]."""

    @classmethod
    def of(cls, counts: Sequence[int], risks: Risks) -> Self | None:
        """Compare a run's rows, by cell of all L layers [L x BINS], with a calibration; None without rows on a side."""
        if not sum(counts) or not sum(risks.rows):
            return None
        layers = np.array(risks.layers, np.int64)
        by_layer = np.reshape(np.array(counts, np.float64), (-1, BINS))
        cells = np.append(by_layer[layers - 1], by_layer[risks.depth - 1].sum())
        runs = joined_cells(np.reshape(risks.rows[:-1], (-1, BINS)))
        filled = np.array(risks.rows) + cells > 0
        there = [run[filled[run]] if filled[run].any() else run for run in runs]
        names = [f"rows that {describe_cells(layers[run // BINS], run % BINS)}" for run in there]
        runs.append(np.array([len(cells) - 1]))
        seen, differing, now = (
            np.array([np.array(each)[run].sum() for run in runs]) for each in (risks.rows, risks.differing, cells)
        )
        return cls(names=(*names, "rows that go to full depth"), seen=seen, differing=differing, now=now)

    @property
    def risk(self) -> Floats:
        """The fraction of the calibration's rows that differ: [R]."""
        return self.differing / np.maximum(self.seen, 1)


def expected_disagreement(
    cells: ComparedCells, *, limit: float | None = None, confidence: float = 0.95
) -> ExpectedDisagreement:
    """Expect the disagreement of a run's rows."""
    rows, tested, risk = float(cells.now.sum()), float(cells.seen.sum()), cells.risk
    before, after = cells.seen / tested, cells.now / rows
    low, high = standardized_bounds(cells.differing, after / np.maximum(cells.seen, 1), confidence)
    most = int(np.argmax((after - before) * risk))
    return ExpectedDisagreement(
        rows=int(rows),
        expected=float(after @ risk),
        at_least=low,
        at_most=high,
        confidence=confidence,
        calibration=float(cells.differing.sum() / tested),
        chance=_chance(risk, (cells.seen + cells.now) / (tested + rows), tested, rows),
        limit=limit,
        cells=f"{cells.names[most]} went from {before[most]:.1%} to {after[most]:.1%}",
    )


def joined_cells(rows_EB: npt.NDArray[np.float64], least: float = LEAST_ROWS) -> list[IntArray]:
    """Join neighboring cells to runs of at least so many rows; return the cells of each, exits x BINS numbered in order.

    Cells are joined within their exit, from its most uncertain one down, since risk lies there; exits that have fewer rows in
    all are joined with the next one.
    """
    runs: list[list[int]] = []
    open_: list[int] = []
    for index, exit_rows in enumerate(rows_EB):
        closed = len(runs)
        for bin_ in reversed(range(len(exit_rows))):
            open_.append(index * len(exit_rows) + bin_)
            if rows_EB.ravel()[open_].sum() >= least:
                runs, open_ = [*runs, open_], []
        if len(runs) > closed and open_:
            runs[-1], open_ = runs[-1] + open_, []
    if open_:
        runs = [*runs[:-1], runs[-1] + open_] if runs else [open_]
    return [np.array(sorted(run)) for run in runs]


def standardized_bounds(counts: Floats, weights: Floats, confidence: float) -> tuple[float, float]:
    """Return the lower and the upper bound, each with this confidence, of a weighted sum of the means of Poisson counts.

    Fay and Feuer (1997), Statistics in Medicine 16: the lower bound is a quantile of a gamma with the mean, sum w k, and the
    variance, sum w^2 k; the upper one is of a gamma with one count more, of the largest weight.
    """
    total, variance, most = float(weights @ counts), float(weights**2 @ counts), float(weights.max(initial=0.0))
    low = total and gammaincinv(total**2 / variance, 1 - confidence) * variance / total
    mean, spread = total + most, variance + most**2
    high = mean and gammaincinv(mean**2 / spread, confidence) * spread / mean
    return float(low), min(float(high), 1.0)


def _chance(risk: Floats, fractions: Floats, tested: float, rows: float) -> float:
    """Return by how much unchanged rows of these fractions by cell may be expected to differ more."""
    variance = max(float(fractions @ risk**2 - (fractions @ risk) ** 2), 0.0) * (1 / tested + 1 / rows)
    return beyond_chance(variance, -math.log(BY_CHANCE), min(tested, rows), float(risk.max(initial=0.0)))
