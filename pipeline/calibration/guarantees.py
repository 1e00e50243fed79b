"""Exact binomial bounds, and what they guarantee about rows that nobody has looked at.

Every row of a sample either gets another prediction than at full depth, or does not. If the sample is drawn like the rows of
the corpus (exchangeable), the number that do is binomial, whatever the model and the text: no other assumption is made.

    upper_bound(5, 1000, 0.95)      # 0.0105: with 95 % confidence at most 1.05 % of all rows differ
    rows_needed(0.01, 0.95)         # 299: as many rows, none of which differs, guarantee at most 1 %
"""

import math

CONFIDENCE = 0.95
"""The confidence of guarantees and audits, unless another is asked for."""
MAX_ROWS = 1 << 30
"""`rows_needed` gives up above this many rows."""


def upper_bound(count: int, rows: int, confidence: float) -> float:
    """Return the upper confidence bound on a fraction of which `count` of `rows` were seen.

    Clopper and Pearson (1934), one-sided: the largest fraction p with P(Binomial(rows, p) <= count) >= 1 - confidence.
    """
    from scipy.special import betaincinv  # takes a third of a second to import; scipy.stats twice that

    return 1.0 if count >= rows else float(betaincinv(count + 1, rows - count, confidence))


def lower_bound(count: int, rows: int, confidence: float) -> float:
    """Return the lower confidence bound on a fraction of which `count` of `rows` were seen; see `upper_bound`."""
    from scipy.special import betaincinv

    return 0.0 if count <= 0 else float(betaincinv(count, rows - count + 1, 1 - confidence))


def p_value(count: int, rows: int, limit: float) -> float:
    """Return the probability of at most `count` of `rows` if the true fraction is `limit`; a small one speaks for less."""
    from scipy.special import bdtr

    return float(bdtr(count, rows, limit))


def most_allowed(rows: int, limit: float, confidence: float) -> int:
    """Return how many of `rows` may differ for the upper bound to be at most `limit`; -1 if even 0 are too many."""
    low, high = -1, rows + 1  # binary search: p-values grow with the count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if p_value(middle, rows, limit) <= 1 - confidence else (low, middle)
    return low


def rows_needed(limit: float, confidence: float, fraction: float = 0.0) -> int | None:
    """Return how many rows bring the upper bound down to `limit` if this fraction of them differs; None if none do.

    If no row differs that is log(1 - confidence) / log(1 - limit), the rule of three.
    """
    if fraction >= limit:
        return None
    low, high = 0, max(1, math.ceil(math.log(1 - confidence) / math.log1p(-limit)))
    while most_allowed(high, limit, confidence) < fraction * high:
        low, high = high, 2 * high
        if high > MAX_ROWS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if most_allowed(middle, limit, confidence) >= fraction * middle else (middle, high)
    return high


def loss_bound(lost: int, gained: int, rows: int, confidence: float) -> float:
    """Return an upper confidence bound on how far accuracy falls if `lost` of `rows` lose a right answer and `gained` gain one.

    With d the fraction of rows that do either, and q the part of them that lose, accuracy falls by d (2 q - 1). Of the rows
    that do either the number that lose is binomial, whatever d is (McNemar 1947). So two Clopper-Pearson bounds hold together,
    each with its part of 1 - confidence: that of d with a quarter of it, and that of q with the rest. This holds in samples of
    any size, and, unlike a bound of the lost rows alone, hardly grows where as many are gained. It is never below 0.

        loss_bound(0, 0, 437, 0.95)         # 0.00998
        loss_bound(30, 25, 3000, 0.95)      # 0.0083, where the lost rows alone are at most 1.35 %
    """
    wrong = (1 - confidence) / 4
    changed = lost + gained
    at_most = upper_bound(changed, rows, 1 - wrong) * (2 * upper_bound(lost, changed, 1 - 3 * wrong) - 1)
    return max(at_most, 0.0)


def rows_for_loss(limit: float, confidence: float, lost: float = 0.0, gained: float = 0.0) -> int | None:
    """Return how many labelled rows bring `loss_bound` down to `limit` at these fractions of all rows; None if none do."""
    if lost - gained >= limit:
        return None

    def enough(rows: int) -> bool:
        return loss_bound(math.ceil(lost * rows), math.floor(gained * rows), rows, confidence) <= limit

    low, high = 0, 1
    while not enough(high):
        low, high = high, 2 * high
        if high > MAX_ROWS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
