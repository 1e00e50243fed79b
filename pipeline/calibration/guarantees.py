"""Exact binomial bounds, and what they let one promise about rows that nobody has looked at.

Every row of a sample either gets another answer than at full depth, or does not. If the sample is drawn as the rows of a corpus
are (exchangeable), the number that do is binomial, whatever the model and the text: no other assumption is made.
"""

import math
from collections.abc import Sequence

from scipy.special import bdtr, betaincinv

CONFIDENCE = 0.95
"""Of promises and audits, unless another is asked for."""
MOST_ROWS = 1 << 30
"""Where `rows_needed` gives up."""


def upper_bound(count: int, rows: int, confidence: float) -> float:
    """Return the share that the true one exceeds with probability at most 1 - confidence, `count` of `rows` having been seen.

    Clopper and Pearson (1934), one side: the largest share E with P(Binomial(rows, E) <= count) >= 1 - confidence.
    """
    return 1.0 if count >= rows else float(betaincinv(count + 1, rows - count, confidence))


def lower_bound(count: int, rows: int, confidence: float) -> float:
    """Return the share that the true one falls short of with probability at most 1 - confidence; the other side of it."""
    return 0.0 if count <= 0 else float(betaincinv(count, rows - count + 1, 1 - confidence))


def p_value(count: int, rows: int, limit: float) -> float:
    """Return the probability of at most `count` of `rows` if the true share is `limit`: evidence that it is less, if small."""
    return float(bdtr(count, rows, limit))


def fixed_sequence(counts: Sequence[int], rows: int, limit: float, confidence: float) -> int:
    """Return how many of the first candidates may be promised to have a true share of at most `limit`.

    Fixed-sequence testing in Learn then Test (Angelopoulos et al. 2021, section 3.1): candidates in an order that was fixed
    before these rows were looked at, each tested at the full level, up to the first that fails. The probability that any of
    those returned breaks the limit is at most 1 - confidence. With exact binomial p-values a candidate passes if its
    Clopper-Pearson bound is at most the limit, so this is also the rule of Fast yet Safe (Jazbec et al. 2024, section 4).
    """
    for place, count in enumerate(counts):
        if p_value(count, rows, limit) > 1 - confidence:
            return place
    return len(counts)


def most_allowed(rows: int, limit: float, confidence: float) -> int:
    """Return how many of `rows` may differ for the upper bound to be at most `limit`; -1 if not even none."""
    low, high = -1, rows + 1  # p-values grow with the count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if p_value(middle, rows, limit) <= 1 - confidence else (low, middle)
    return low


def rows_needed(limit: float, confidence: float, share: float = 0.0) -> int | None:
    """Return the rows with which the upper bound gets down to `limit` when a share of them differs; None if it never does.

    With none that differs: log(1 - confidence) / log(1 - limit), the rule of three.
    """
    if share >= limit:
        return None
    low, high = 0, max(1, math.ceil(math.log(1 - confidence) / math.log(1 - limit)))
    while most_allowed(high, limit, confidence) < share * high:
        low, high = high, 2 * high
        if high > MOST_ROWS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if most_allowed(middle, limit, confidence) >= share * middle else (middle, high)
    return high
