"""Drift: whether the rows of a run look like those that the model was calibrated on. Counts by bin are compared, never texts.

The population stability index of two sets of counts is the sum over bins of (q - p) log(q / p), p and q being the fractions of
rows in a bin (Jeffreys' divergence; Lewis 1994 and credit scoring since). By convention 0.1 is worth a look and 0.25 is a
change. When nothing changed it is not 0 but (1/n + 1/m) x chi-squared with bins - 1 degrees of freedom (Yurdakul 2018), n and m
being the rows: a small run must be further off than that before it is worth a look.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import chdtri

from pipeline.histograms import bin_counts, length_histogram

WATCH, ALARM = 0.1, 0.25
BY_CHANCE = 1e-4
"""Probability with which chance alone may reach the threshold of a signal."""
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

    @property
    def state(self) -> str:
        """'alarm', 'watch' or 'ok'."""
        return "alarm" if self.psi > self.alarm else "watch" if self.psi > self.watch else "ok"


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
        either side is left out.
        """
        expected = {"exits": exits, "length": self.lengths, "truncation": self.truncation}
        expected["uncertainty"] = self.uncertainty
        pairs = {name: (expected[name], actual) for name, actual in counts.items()}
        return [compare(name, p, q) for name, (p, q) in pairs.items() if sum(p) and sum(q)]


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
    p, q = (np.asarray(counts, np.float64) + 0.5 for counts in (expected, actual))
    p, q = p / p.sum(), q / q.sum()
    return float(((q - p) * np.log(q / p)).sum())


def compare(name: str, expected: Sequence[float], actual: Sequence[float]) -> Signal:
    """Compare two sets of counts over the same bins; bins that are empty in both do not count."""
    both = [(p, q) for p, q in zip(expected, actual, strict=True) if p or q]
    before, after = zip(*both, strict=True)
    chi_squared = float(chdtri(max(len(both) - 1, 1), BY_CHANCE))
    chance = chi_squared * (1 / sum(before) + 1 / sum(after))
    return Signal(name=name, psi=stability_index(before, after), watch=max(WATCH, chance), alarm=max(ALARM, chance))
