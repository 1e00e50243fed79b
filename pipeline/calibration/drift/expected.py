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

import numpy as np
import numpy.typing as npt
from scipy.special import gammaincinv

from pipeline.calibration.drift.cells import BINS, describe_cells
from pipeline.calibration.drift.signals import BY_CHANCE
from pipeline.rows import IntArray

Floats = npt.NDArray[np.float64]

LEAST_ROWS = 100
"""Calibration rows of a cell; cells of fewer are joined with their neighbors."""
WATCH_RATIO, ALARM_RATIO = 1.2, 1.5
"""Times the calibration's disagreement from which more of it, beyond chance, is worth a look, and is an alarm."""


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
    moved: str
    """The cells that add most to what is expected, with their fractions of the calibration's rows and of the run's."""

    @property
    def state(self) -> str:
        """'alarm', 'watch' or 'ok'."""
        if self.expected <= self.calibration + self.chance:
            return "ok"
        above = self.limit is not None and self.expected > self.limit
        if above or self.expected >= ALARM_RATIO * self.calibration:
            return "alarm"
        return "watch" if self.expected >= WATCH_RATIO * self.calibration else "ok"

    def describe(self) -> str:
        """Say what is expected, and why: "expected disagreement 1.400% (calibration 0.700%, limit 1.000%): rows that ..."."""
        limit = "" if self.limit is None else f", limit {self.limit:.3%}"
        return f"expected disagreement {self.expected:.3%} (calibration {self.calibration:.3%}{limit}): {self.moved}"


def expected_disagreement(
    counts: Sequence[int], risks: Risks, *, limit: float | None = None, confidence: float = 0.95
) -> ExpectedDisagreement | None:
    """Expect the disagreement of a run's rows, by cell of all L layers: [L x BINS]; None if no row was counted on a side."""
    rows, tested = float(sum(counts)), float(sum(risks.rows))
    if not rows or not tested:
        return None
    by_layer = np.reshape(np.array(counts, np.float64), (-1, BINS))
    cells = np.append(by_layer[np.array(risks.layers, np.int64) - 1], by_layer[risks.depth - 1].sum())
    runs = [*joined_cells(np.reshape(risks.rows[:-1], (-1, BINS))), np.array([len(cells) - 1])]
    seen, differ, now = (
        np.array([np.array(c)[run].sum() for run in runs]) for c in (risks.rows, risks.differing, cells)
    )
    risk, before, after = differ / np.maximum(seen, 1), seen / tested, now / rows
    expected, calibration = float(after @ risk), float(differ.sum() / tested)
    low, high = standardized_bounds(differ, after / np.maximum(seen, 1), confidence)
    most = int(np.argmax((after - before) * risk))
    moved = f"{_describe(runs[most], risks)} went from {before[most]:.1%} to {after[most]:.1%}"
    return ExpectedDisagreement(
        rows=int(rows),
        expected=expected,
        at_least=low,
        at_most=high,
        confidence=confidence,
        calibration=calibration,
        chance=_chance(risk, (seen + now) / (tested + rows), tested, rows),
        limit=limit,
        moved=moved,
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


def _describe(run: IntArray, risks: Risks) -> str:
    """Name the rows of a run of cells."""
    if run[-1] == len(risks.rows) - 1:
        return "rows that go to full depth"
    return f"rows that {describe_cells(np.array(risks.layers)[run // BINS], run % BINS)}"


def _chance(risk: Floats, fractions: Floats, tested: float, rows: float) -> float:
    """Return by how much unchanged rows of these fractions by cell may be expected to differ more."""
    variance = max(float(fractions @ risk**2 - (fractions @ risk) ** 2), 0.0) * (1 / tested + 1 / rows)
    odds = -math.log(BY_CHANCE)
    return math.sqrt(2 * variance * odds) + odds * float(risk.max(initial=0.0)) / (3 * min(tested, rows))
