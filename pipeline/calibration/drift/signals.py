"""Drift: whether the rows of a run look like those that the model was calibrated on. Counts by bin are compared, never texts.

The population stability index of two sets of counts is the sum over bins of (q - p) log(q / p), p and q being the fractions of
rows in a bin (Jeffreys' divergence; Lewis 1994 and credit scoring since). By convention 0.1 is worth a look and 0.25 is a
change. When nothing changed it is not 0 but (1/n + 1/m) x chi-squared with bins - 1 degrees of freedom (Yurdakul 2018), n and m
being the rows: a small run must be further off than that before it is worth a look.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.special import chdtri

from pipeline.histograms import bin_counts, length_bounds, length_histogram

WATCH, ALARM = 0.1, 0.25
BY_CHANCE = 1e-4
"""Probability with which chance alone may reach the threshold of a signal."""
MOVED_RATIO, MOVED_BY = 1.5, 0.025
"""A single bin is worth a look if its fraction of the rows is so many times the other one, and this much of all rows apart.

One bin that doubles from 5 % to 10 % is a PSI of 0.037 however many rows there are, below any threshold."""
UNCERTAINTY_QUANTILES = 10
"""Bins of the uncertainty at full depth, with about equally many rows of the calibration in each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One property of rows, compared with the calibration."""

    name: str
    psi: float
    """Population stability index."""
    watch: float
    """Index above which these numbers of rows are worth a look."""
    alarm: float
    """Index above which these numbers of rows show a change."""
    moved: str = ""
    """The bin that adds most to the index, with its fractions of the rows before and now."""
    one_moved: bool = False
    """Whether that bin alone, beyond chance, has MOVED_RATIO times the rows or as many times fewer, and MOVED_BY of all."""

    @property
    def state(self) -> str:
        """'alarm', 'watch' or 'ok'."""
        if self.psi > self.alarm:
            return "alarm"
        return "watch" if self.psi > self.watch or self.one_moved else "ok"

    def describe(self) -> str:
        """Say what has moved: "length PSI 0.310: rows of 33 to 48 tokens went from 5.0% to 31.2%"."""
        return f"{self.name} PSI {self.psi:.3f}: {self.moved}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The rows of a calibration, in counts."""

    lengths: list[int]
    """Rows by tokens, in the bins of `histograms.LENGTH_EDGES`."""
    truncation: list[int]
    """Rows that were read whole, and rows that were truncated."""
    uncertainty_edges: list[float]
    """Edges between the bins of uncertainty."""
    uncertainty: list[int]
    """Rows by uncertainty at full depth, in these bins."""

    def signals(self, exits: Sequence[float], counts: Mapping[str, Sequence[float]]) -> list[Signal]:
        """Compare with the counts of a run by name; `exits` are the rows by exit layer to expect at its thresholds.

        Example: `reference.signals((600, 400), {"exits": [300, 200], "length": [...]})`. A property that has no rows on
        either side is left out, and so is uncertainty that was counted in the bins of another calibration.
        """
        expected = {"exits": exits, "length": self.lengths, "truncation": self.truncation}
        expected["uncertainty"] = self.uncertainty
        edges = ["0", *(f"{edge:.3g}" for edge in self.uncertainty_edges), "1"]
        names = {
            "exits": [f"rows that exit at layer {layer}" for layer in range(1, len(exits) + 1)],
            "length": [f"rows of {low} {f'to {high}' if high else 'or more'} tokens" for low, high in length_bounds()],
            "truncation": ["rows that are whole", "truncated rows"],
            "uncertainty": [f"rows of uncertainty {low} to {high} at full depth" for low, high in pairwise(edges)],
        }
        pairs = {name: (expected[name], actual) for name, actual in counts.items()}
        return [
            compare(name, p, q, names[name]) for name, (p, q) in pairs.items() if sum(p) and sum(q) and len(p) == len(q)
        ]


def reference_of(lengths: npt.ArrayLike, truncated: npt.ArrayLike, uncertainty: npt.ArrayLike) -> Reference:
    """Describe rows by their tokens, whether they were truncated, and their uncertainty at full depth: [B] each."""
    edges = quantile_edges(uncertainty)
    cut = int(np.sum(truncated))
    return Reference(
        lengths=length_histogram(lengths),
        truncation=[np.size(truncated) - cut, cut],
        uncertainty_edges=edges,
        uncertainty=bin_counts(uncertainty, edges),
    )


def quantile_edges(uncertainty: npt.ArrayLike) -> list[float]:
    """Return edges between UNCERTAINTY_QUANTILES bins with about equally many of these rows; equal edges are merged."""
    edges = np.quantile(np.asarray(uncertainty), np.linspace(0, 1, UNCERTAINTY_QUANTILES + 1)[1:-1])
    return [float(f"{edge:.6g}") for edge in np.unique(edges)]


def stability_index(expected: npt.ArrayLike, actual: npt.ArrayLike) -> float:
    """Return the population stability index of two sets of counts; half a row more in every bin keeps it finite."""
    return float(_index_by_bin(expected, actual).sum())


def _index_by_bin(expected: npt.ArrayLike, actual: npt.ArrayLike) -> npt.NDArray[np.float64]:
    p, q = (np.asarray(counts, np.float64) + 0.5 for counts in (expected, actual))
    p, q = p / p.sum(), q / q.sum()
    terms: npt.NDArray[np.float64] = (q - p) * np.log(q / p)
    return terms


def compare(
    name: str, expected: Sequence[float], actual: Sequence[float], names: Sequence[str] | None = None
) -> Signal:
    """Compare two sets of counts over the same bins, which may have names; bins that are empty in both do not count."""
    named = names or [f"bin {number}" for number in range(1, len(expected) + 1)]
    both = [(p, q, bin_) for p, q, bin_ in zip(expected, actual, named, strict=True) if p or q]
    before, after = np.array([p for p, _, _ in both]), np.array([q for _, q, _ in both])
    rows, scale = (before.sum(), after.sum()), 1 / before.sum() + 1 / after.sum()
    chance = float(chdtri(max(len(both) - 1, 1), BY_CHANCE)) * scale
    by_bin = _index_by_bin(before, after)
    most = int(np.argmax(by_bin))
    fractions = before[most] / rows[0], after[most] / rows[1]
    pooled = (before[most] + after[most]) / sum(rows)
    return Signal(
        name=name,
        psi=float(by_bin.sum()),
        watch=max(WATCH, chance),
        alarm=max(ALARM, chance),
        moved=f"{both[most][2]} went from {fractions[0]:.1%} to {fractions[1]:.1%}",
        one_moved=_has_moved(*fractions, pooled * (1 - pooled) * scale, min(rows), len(both)),
    )


def beyond_chance(variance: float, odds: float, rows: float, most: float = 1.0) -> float:
    """Return how far the difference of two means is from 0 with probability exp(-odds) at most (Bernstein 1946).

    The variance is that of the difference; the rows are the fewer ones of both sides; no single row is further than `most` from
    the mean.
    """
    return math.sqrt(2 * variance * odds) + odds * most / (3 * rows)


def _has_moved(before: float, after: float, variance: float, rows: float, bins: int) -> bool:
    """Return whether a fraction has changed by more than chance, and by so much that it is worth a look.

    Variance and rows are those of `beyond_chance`; any of all bins may be the one, in either direction (a union of them all).
    """
    odds = math.log(2 * bins / BY_CHANCE)
    low, high = sorted((before, after))
    return high - low > beyond_chance(variance, odds, rows) and high - low >= MOVED_BY and high >= MOVED_RATIO * low
