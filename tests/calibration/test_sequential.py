"""Evidence that may be looked at every night: by numerical integration, in simulated years, and bounds that belong to it."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from pipeline.calibration.guarantees import lower_bound, upper_bound
from pipeline.calibration.sequential import (
    log_evidence_above,
    log_evidence_below,
    log_evidence_of_change,
    lower_bound_ever,
    rows_until,
    upper_bound_ever,
)
from pipeline.nights import AuditedNights, Night

COUNTS = st.integers(0, 400).flatmap(lambda rows: st.tuples(st.integers(0, rows), st.just(rows)))
LIMITS = st.floats(0.002, 0.9)


def by_integration(count: int, rows: int, limit: float, low: float, high: float) -> float:
    """Average the likelihood ratio over the prior on (low, high) numerically."""
    shape = max(1 / limit - 1, 1.0)

    def prior(q: float) -> float:
        return shape * (1 - q) ** (shape - 1)

    def ratio(q: float) -> float:
        return (q / limit) ** count * ((1 - q) / (1 - limit)) ** (rows - count)

    middle = min(max(count / rows, low), high)
    cuts = sorted({low, high, middle, *(min(max(middle + step / rows, low), high) for step in (-9, -3, 3, 9))})
    parts = [quad(lambda q: prior(q) * ratio(q), a, b)[0] for a, b in pairwise(cuts)]
    mass = [quad(prior, a, b)[0] for a, b in pairwise(cuts)]
    return math.fsum(parts) / math.fsum(mass)


@pytest.mark.parametrize(
    ("count", "rows", "limit"),
    [(0, 100, 0.01), (5, 200, 0.01), (30, 90, 0.3), (1, 1, 0.5), (40, 40, 0.8), (2, 900, 0.005)],
)
def test_evidence_is_the_average_likelihood_ratio(count: int, rows: int, limit: float) -> None:
    above, below = log_evidence_above(count, rows, limit), log_evidence_below(count, rows, limit)
    assert math.exp(above) == pytest.approx(by_integration(count, rows, limit, limit, 1.0), rel=1e-5)
    assert math.exp(below) == pytest.approx(by_integration(count, rows, limit, 0.0, limit), rel=1e-5)


@given(count_and_rows=COUNTS, limit=LIMITS)
def test_another_row_leaves_the_mean_of_the_evidence_as_it_is(count_and_rows: tuple[int, int], limit: float) -> None:
    """At the limit itself evidence is a martingale, which is what bounds it over all nights."""
    count, rows = count_and_rows
    for evidence in (log_evidence_above, log_evidence_below):
        now = evidence(count, rows, limit)
        if now > -600:  # below that it underflows
            after = np.logaddexp(
                math.log(limit) + evidence(count + 1, rows + 1, limit),
                math.log1p(-limit) + evidence(count, rows + 1, limit),
            )
            assert after == pytest.approx(now, abs=1e-6)


@given(count_and_rows=COUNTS, confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_bounds_are_where_the_evidence_is_enough_and_wider_than_for_one_look(
    count_and_rows: tuple[int, int], confidence: float
) -> None:
    count, rows = count_and_rows
    low, high = lower_bound_ever(count, rows, confidence), upper_bound_ever(count, rows, confidence)
    asked = math.log(1 / (1 - confidence))
    if rows:
        assert low <= count / rows <= high
        assert low <= lower_bound(count, rows, confidence) + 1e-9
        assert high >= upper_bound(count, rows, confidence) - 1e-9
    for limit in (low * 0.99, low * 1.01):
        if 1e-6 < limit < 1:
            assert (log_evidence_above(count, rows, limit) >= asked) == (limit < low)
    for limit in (high * 0.999, high * 1.001):
        if limit < 1:
            assert (log_evidence_below(count, rows, limit) >= asked) == (limit > high)


def test_a_year_at_the_limit_is_rarely_called_broken_and_twice_the_limit_soon_is() -> None:
    rng, limit, nights = np.random.default_rng(0), 0.01, 365
    for fraction, at_least, at_most in ((limit, 0, 4), (2 * limit, 100, 100)):
        counts = rng.binomial(100, fraction, (100, nights)).cumsum(axis=1)
        looks = range(0, nights, 5)
        broken = [
            any(log_evidence_above(int(year[night]), 100 * (night + 1), limit) > math.log(100) for night in looks)
            for year in counts
        ]
        assert at_least <= sum(broken) <= at_most


def test_a_change_after_good_nights_is_found_and_dated() -> None:
    rng = np.random.default_rng(1)
    good, bad = rng.binomial(100, 0.003, 200), rng.binomial(100, 0.04, 12)
    nights = [(int(count), 100) for count in (*good, *bad)]
    pooled = np.sum(nights, axis=0)
    assert log_evidence_above(int(pooled[0]), int(pooled[1]), 0.01) < 0  # all nights together say nothing of it
    evidence, since = log_evidence_of_change(nights, 0.01)
    assert evidence > math.log(100)
    assert abs(since - 200) <= 3
    assert log_evidence_of_change(nights[:200], 0.01)[0] < 0
    assert log_evidence_of_change([], 0.01)[0] == -math.inf


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=30))
def test_nights_that_are_added_up_make_no_evidence(counts: list[tuple[int, int]]) -> None:
    """The weights of the nights after them are what they were, so that a test of years is as rarely wrong as one of months."""
    nights = [Night(audited=max(pair), differing=min(pair)) for pair in counts]
    every, few = AuditedNights.of(nights), nights[:1]
    for tonight in nights[1:]:
        few = [few[0].plus(few[1]), *few[2:]] if len(few) == 5 else few
        few = [*few, tonight]
    some = AuditedNights.of(few)
    assert sum(night.nights for night in few) == len(nights)
    assert np.sum(some.counts, axis=0).tolist() == np.sum(every.counts, axis=0).tolist()
    assert set(some.numbers) <= set(every.numbers) | {0}
    whole, later = (log_evidence_of_change(each.counts, 0.05, each.numbers)[0] for each in (every, some))
    assert later <= whole + 1e-9 or not every.numbers or some.numbers[0] < every.numbers[0]


def test_rows_that_tell_are_the_fewest_that_do() -> None:
    for fraction, above, evidence in ((0.0, False, log_evidence_below), (0.02, True, log_evidence_above)):
        rows = rows_until(0.01, 100, fraction, above=above)
        assert rows is not None
        assert evidence(round(fraction * rows), rows, 0.01) >= math.log(100)
        if not fraction:
            assert evidence(0, rows - 1, 0.01) < math.log(100)
    assert rows_until(0.01, 100, 0.02, above=False) is None
    assert rows_until(0.01, 100, 0.01, above=True) is None
