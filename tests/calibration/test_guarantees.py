"""Bounds against slow oracles, and what they guarantee against a simulation with known probabilities."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.calibration.guarantees import lower_bound, most_allowed, p_value, rows_needed, upper_bound
from pipeline.calibration.limits.conditions import Condition, passing

SPLITS = 400
"""The number of simulated calibrations in the statistical test."""


def at_most(count: int, rows: int, fraction: float) -> float:
    """Return P(Binomial(rows, fraction) <= count), summed term by term."""
    return math.fsum(math.comb(rows, k) * fraction**k * (1 - fraction) ** (rows - k) for k in range(count + 1))


@given(rows=st.integers(1, 200), part=st.floats(0, 1), confidence=st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_bounds_are_where_the_tail_has_the_wanted_probability(rows: int, part: float, confidence: float) -> None:
    count = int(part * rows)
    upper, lower = upper_bound(count, rows, confidence), lower_bound(count, rows, confidence)
    assert lower <= count / rows <= upper
    if count < rows:
        assert at_most(count, rows, upper) == pytest.approx(1 - confidence, rel=1e-6)
    else:
        assert upper == 1.0
    if count:
        assert 1 - at_most(count - 1, rows, lower) == pytest.approx(1 - confidence, rel=1e-6)
    else:
        assert lower == 0.0


@given(rows=st.integers(1, 300), limit=st.floats(0.001, 0.5), confidence=st.sampled_from([0.9, 0.95, 0.99]))
def test_most_allowed_is_the_last_count_whose_bound_is_within_the_limit(
    rows: int, limit: float, confidence: float
) -> None:
    allowed = most_allowed(rows, limit, confidence)
    by_hand = [count for count in range(rows + 1) if at_most(count, rows, limit) <= 1 - confidence]
    assert allowed == max(by_hand, default=-1)
    if 0 <= allowed < rows:
        assert (
            upper_bound(allowed, rows, confidence) <= limit + 1e-9 < upper_bound(allowed + 1, rows, confidence) + 1e-9
        )


def test_published_figures() -> None:
    assert rows_needed(0.01, 0.95) == 299  # the rule of three
    assert upper_bound(0, 299, 0.95) <= 0.01 < upper_bound(0, 298, 0.95)
    assert upper_bound(5, 1000, 0.95) == pytest.approx(0.0105, abs=5e-5)
    assert upper_bound(10, 2000, 0.95) == pytest.approx(0.0085, abs=5e-5)


@given(limit=st.floats(0.002, 0.2), part=st.floats(0, 0.8))
def test_rows_needed_are_enough(limit: float, part: float) -> None:
    rows = rows_needed(limit, 0.95, part * limit)
    assert rows is not None
    assert upper_bound(int(part * limit * rows), rows, 0.95) <= limit + 1e-9
    assert rows_needed(limit, 0.95, limit) is None


def passed(counts: list[int], rows: int, limit: float) -> int:
    return passing([Condition(limit=limit, rows=rows, tested=rows, worse=[0, *counts])], 0.95)


def test_a_sequence_ends_at_its_first_failure() -> None:
    assert passed([0, 2, 5, 40, 0], 2000, 0.01) == 3
    assert passed([0, 2], 200, 0.01) == 0
    assert passed([0, 2], 2000, 0.01) == 2
    assert passed([], 200, 0.01) == 0


def test_p_values_grow_with_the_count_and_fall_with_the_limit() -> None:
    assert all(a < b for a, b in pairwise(p_value(count, 500, 0.02) for count in range(20)))
    assert all(a > b for a, b in pairwise(p_value(3, 500, limit) for limit in (0.01, 0.02, 0.03, 0.05)))


def test_broken_guarantees_are_as_rare_as_stated() -> None:
    """True fractions are known; the limit lies between two of them, so a guarantee breaks when one step too many is taken.

    At 95 % confidence at most 5 % of 400 calibrations may break it; 33 or more would happen by chance once in 180.
    """
    fractions = np.linspace(0, 0.03, 61)
    limit, broken, reached = 0.0101, 0, []
    for seed in range(SPLITS):
        draws = np.sort(np.random.default_rng(seed).random(1500))
        counts = np.searchsorted(draws, fractions, side="right").tolist()  # nested, as along a path
        last = passed(counts, 1500, limit)
        reached.append(fractions[last - 1] if last else 0.0)
        broken += reached[-1] > limit
    assert broken <= 32
    assert broken > 2  # a rule that never breaks it would be needlessly slow
    assert np.mean(reached) > limit / 2
