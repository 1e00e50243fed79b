"""Drift: whether the rows of a run look like those that the model was calibrated on. Counts by bin, never text.

The population stability index of two sets of counts is sum over bins of (q - p) log(q / p), p and q being the shares of a bin
(Jeffreys' divergence; Lewis 1994 and credit scoring since). By habit 0.1 is worth a look and 0.25 is a change. When nothing
changed it is not 0 but (1/n + 1/m) x chi-squared with bins - 1 degrees of freedom (Yurdakul 2018), n and m being the rows: a
small run must be further off than that before it is worth a look.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import chdtri

WATCH, ALARM = 0.1, 0.25
BY_CHANCE = 1e-4
"""How often chance alone may reach the threshold of a signal."""
LENGTH_EDGES = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Bins of length in tokens: at most 8, at most 16, ... and the rest."""
UNCERTAINTY_BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One thing that is looked at."""

    name: str
    psi: float
    watch: float
    """Thresholds for these numbers of rows."""
    alarm: float

    @property
    def state(self) -> str:
        """'alarm', 'watch' or 'ok'."""
        return "alarm" if self.psi > self.alarm else "watch" if self.psi > self.watch else "ok"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What the rows of a calibration looked like."""

    lengths: list[int]
    """Rows by bin of length."""
    truncation: list[int]
    """Rows that were read whole, and that were cut."""
    uncertainty_edges: list[float]
    uncertainty: list[int]
    """Rows by bin of the uncertainty at full depth."""

    def signals(self, exits: Sequence[float], seen: Mapping[str, Sequence[float]]) -> list[Signal]:
        """Compare with the counts of a run by name; `exits` are the rows by exit layer that its thresholds let one expect.

        What has no rows on one side says nothing and is left out.
        """
        expected = {"exits": exits, "length": self.lengths, "truncation": self.truncation}
        expected["uncertainty"] = self.uncertainty
        pairs = {name: (expected[name], counts) for name, counts in seen.items()}
        return [compare(name, p, q) for name, (p, q) in pairs.items() if sum(p) and sum(q)]


def reference_of(lengths: npt.ArrayLike, truncated: npt.ArrayLike, uncertainty: npt.ArrayLike) -> Reference:
    """Describe rows [B]: tokens, whether they were cut, uncertainty at full depth."""
    edges = uncertainty_edges(uncertainty)
    cut = int(np.sum(truncated))
    return Reference(
        lengths=length_counts(lengths),
        truncation=[np.size(truncated) - cut, cut],
        uncertainty_edges=edges,
        uncertainty=bin_counts(uncertainty, edges),
    )


def uncertainty_edges(uncertainty: npt.ArrayLike) -> list[float]:
    """Return edges between bins with about equally many of these rows."""
    edges = np.quantile(np.asarray(uncertainty), np.linspace(0, 1, UNCERTAINTY_BINS + 1)[1:-1])
    return [float(f"{edge:.6g}") for edge in np.unique(edges)]


def length_counts(lengths: npt.ArrayLike) -> list[int]:
    """Count rows by bin of LENGTH_EDGES."""
    return bin_counts(lengths, LENGTH_EDGES)


def bin_counts(values: npt.ArrayLike, edges: Sequence[float]) -> list[int]:
    """Count values by bin: up to the first edge, up to the second, ..., above the last."""
    where = np.searchsorted(np.asarray(edges, np.float64), np.asarray(values, np.float64), side="left")
    counts: list[int] = np.bincount(where, minlength=len(edges) + 1).tolist()
    return counts


def stability_index(expected: npt.ArrayLike, actual: npt.ArrayLike) -> float:
    """Return the population stability index of two sets of counts; half a row more in every bin keeps it finite."""
    p, q = (np.asarray(counts, np.float64) + 0.5 for counts in (expected, actual))
    p, q = p / p.sum(), q / q.sum()
    return float(((q - p) * np.log(q / p)).sum())


def compare(name: str, expected: Sequence[float], actual: Sequence[float]) -> Signal:
    """Compare two sets of counts over the same bins; bins that are empty in both do not count."""
    both = [(p, q) for p, q in zip(expected, actual, strict=True) if p or q]
    before, after = zip(*both, strict=True)
    chance = float(chdtri(max(len(both) - 1, 1), BY_CHANCE)) * (1 / sum(before) + 1 / sum(after))
    return Signal(name=name, psi=stability_index(before, after), watch=max(WATCH, chance), alarm=max(ALARM, chance))
