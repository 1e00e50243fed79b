"""A test that may be looked at every night: whether more rows differ from full depth than the limit allows, or fewer.

A bound for one look, such as Clopper and Pearson's, is wrong more often the more often it is looked at. Here evidence is a
likelihood ratio, mixed over the fractions on one side of the limit (Robbins 1970; as an e-process and a confidence sequence
Howard, Ramdas, McAuliffe and Sekhon 2021, section 3, and Waudby-Smith and Ramdas 2024): as long as the true fraction is on
the other side its mean is at most 1 whenever it is looked at, so the probability that it *ever* reaches 1 / a is at most a
(Ville 1939). It depends on counts alone, and all nights together are one sequence.

With m the limit, and q, the fraction, drawn from the part above m, or below it, of Beta(1, b), b = 1 / m - 1, whose mean is m:

    evidence = E[q^k (1 - q)^(n - k)] / (m^k (1 - m)^(n - k))      k of n rows differ
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
ROWS_SEARCHED = 1 << 40
"""`rows_until` gives up above this many rows."""
BISECTIONS = 60
"""Halvings of an interval in [0, 1], to the last digit of a double."""


def log_evidence_above(count: npt.ArrayLike, rows: npt.ArrayLike, limit: npt.ArrayLike) -> Floats:
    """Return the logarithm of the evidence that the true fraction is above `limit`, if `count` of `rows` differ: [...]."""
    from scipy.special import betaincc  # takes a third of a second to import

    limit = np.asarray(limit, np.float64)
    return _log_mixture(count, rows, limit, betaincc) - _shape(limit) * np.log1p(-limit)


def log_evidence_below(count: npt.ArrayLike, rows: npt.ArrayLike, limit: npt.ArrayLike) -> Floats:
    """Return the logarithm of the evidence that the true fraction is below `limit`, if `count` of `rows` differ: [...]."""
    from scipy.special import betainc

    limit = np.asarray(limit, np.float64)
    return _log_mixture(count, rows, limit, betainc) - np.log(-np.expm1(_shape(limit) * np.log1p(-limit)))


def _shape(limit: Floats) -> Floats:
    """Return the second parameter of the prior, a Beta whose first is 1; for large limits it is uniform."""
    return np.maximum(1 / limit - 1, 1.0)


def _log_mixture(count: npt.ArrayLike, rows: npt.ArrayLike, limit: Floats, side: Callable[..., Floats]) -> Floats:
    """Return log of the likelihood integrated over one side of the limit, with the prior's density, over that at the limit."""
    from scipy.special import betaln

    count = np.asarray(count, np.float64)
    shape, same = _shape(limit), np.asarray(rows, np.float64) - count
    with np.errstate(divide="ignore"):  # no evidence at all is the logarithm of 0
        mass: Floats = np.log(side(count + 1, same + shape, limit))
        at_limit = count * np.log(limit) + same * np.log1p(-limit)
        return mass + np.log(shape) + betaln(count + 1, same + shape) - at_limit


def upper_bound_ever(count: npt.ArrayLike, rows: npt.ArrayLike, confidence: float) -> Floats:
    """Return the upper end of a confidence sequence: with this probability it is above the truth at *every* look: [...]."""
    count, rows = np.asarray(count, np.float64), np.asarray(rows, np.float64)
    asked, seen = -np.log1p(-confidence), count / np.maximum(rows, 1)
    found = _bisect(seen, np.ones_like(seen), lambda limit: log_evidence_below(count, rows, limit) < asked)
    return np.where(count == rows, 1.0, found)


def lower_bound_ever(count: npt.ArrayLike, rows: npt.ArrayLike, confidence: float) -> Floats:
    """Return the lower end of a confidence sequence: with this probability it is below the truth at *every* look: [...]."""
    count, rows = np.asarray(count, np.float64), np.asarray(rows, np.float64)
    asked, seen = -np.log1p(-confidence), count / np.maximum(rows, 1)
    found = _bisect(np.zeros_like(seen), seen, lambda limit: log_evidence_above(count, rows, limit) >= asked)
    return np.where(count == 0, 0.0, found)


def _bisect(low: Floats, high: Floats, goes_up: Callable[[Floats], npt.NDArray[np.bool_]]) -> Floats:
    """Return where in (low, high) a condition that holds below a point ends to hold: [...]."""
    with np.errstate(all="ignore"):  # of empty intervals, which the callers have values for
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            up = goes_up(middle)
            low, high = np.where(up, middle, low), np.where(up, high, middle)
    return high


def log_evidence_of_change(
    nights: Sequence[tuple[int, int]], limit: float, numbers: Sequence[int] | None = None
) -> tuple[float, int]:
    """Return the logarithm of the evidence that the fraction is above `limit` since some night, and that night's index.

    `nights` has differing and audited rows of each night, the oldest first. What was good for a year is not to hide what became
    bad last week: so the evidence since night s, for every s, is mixed with weights 1 / ((s + 1)(s + 2)), whose sum is below 1,
    and the mixture is as rarely large as each of them (Shin, Ramdas and Rinaldo 2024, e-detectors). `numbers` are the s of the
    nights where some have been left out or added up: a weight that grew with time would let the mixture be large more often.
    """
    if not nights:
        return -np.inf, 0
    since = np.cumsum(np.asarray(nights, np.int64)[::-1], axis=0)[::-1]
    start = np.arange(len(nights)) if numbers is None else np.asarray(numbers, np.int64)
    terms = log_evidence_above(since[:, 0], since[:, 1], limit) - np.log((start + 1.0) * (start + 2.0))
    return float(np.logaddexp.reduce(terms)), int(terms.argmax())


def rows_until(limit: float, asked: float, fraction: float, *, above: bool) -> int | None:
    """Return how many rows bring evidence of `asked`, such as 20, if this fraction of them differs; None if none do."""
    if (fraction > limit) != above or fraction == limit:
        return None
    evidence = log_evidence_above if above else log_evidence_below
    low, high = 0, 1
    while evidence(round(fraction * high), high, limit) < np.log(asked):
        low, high = high, 2 * high
        if high > ROWS_SEARCHED:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        enough = evidence(round(fraction * middle), middle, limit) >= np.log(asked)
        low, high = (low, middle) if enough else (middle, high)
    return high
