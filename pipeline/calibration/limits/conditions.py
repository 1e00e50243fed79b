"""Conditions that limits put on a point of a calibrated path, and the test of them.

A point is taken only if it passes every condition, each tested at the full confidence. This needs no correction for their
number: a point that breaks some condition passes all of them only if it passes that one, which has probability 1 - confidence
at most (intersection-union test, Berger 1982; Learn then Test, Angelopoulos et al. 2021, takes the largest of the p-values). So
with the confidence all of them hold together.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.calibration.guarantees import (
    loss_bound,
    p_value,
    rows_for_loss,
    rows_needed,
    upper_bound,
)
from pipeline.calibration.limits.counts import ClassCounts, QualityCounts
from pipeline.calibration.limits.limits import Limits, percent

NAMED = 3
"""A line names at most this many conditions."""
SampleOf = Callable[[int], int]
"""Returns how many rows to calibrate on for so many rows that are tested."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One limit, and what was counted of it along a path of P points, full depth first."""

    name: str | None = None
    """The class that it is about; None is all rows."""
    limit: float
    """The largest fraction that keeps it."""
    rows: int
    """Test rows that it is about: all, those of the class, or those with a label."""
    tested: int
    """All test rows."""
    worse: Sequence[int]
    """Rows that count against it, as [P]: those that differ, are missed, or lose a right answer."""
    better: Sequence[int] | None = None
    """Rows that gain a right answer, as [P]; only quality has them."""

    def passes(self, point: int, confidence: float) -> bool:
        """Return whether the limit is shown to be kept at a point."""
        if self.better is None:
            return p_value(self.worse[point], self.rows, self.limit) <= 1 - confidence
        return loss_bound(self.worse[point], self.better[point], self.rows, confidence) <= self.limit

    def rows_needed(self, point: int, confidence: float) -> int | None:
        """Return how many rows, of those that it is about, would show it if they were like these; None if none would."""
        rows = max(self.rows, 1)
        if self.better is None:
            return rows_needed(self.limit, confidence, self.worse[point] / rows)
        return rows_for_loss(self.limit, confidence, self.worse[point] / rows, self.better[point] / rows)

    def sample_rows(self, point: int, confidence: float, sample_of: SampleOf) -> int | None:
        """Return how many rows to calibrate on if they are like those at a point; None if no number is known to do."""
        needed = self.rows_needed(point, confidence)
        return None if needed is None or not self.rows else sample_of(math.ceil(needed * self.tested / self.rows))

    def counted(self, point: int) -> str:
        """Return what was counted at a point: "3 of 812 rows that full depth gives 'spam' get another answer"."""
        worse, rows = f"{self.worse[point]:,}", f"{self.rows:,}"
        if self.better is not None:
            return f"{worse} of {rows} labelled rows lose a right answer and {self.better[point]:,} gain one"
        of = "" if self.name is None else f" that full depth gives '{self.name}'"
        return f"{worse} of {rows} rows{of} {'differ' if self.name is None else 'get another answer'}"

    def shown(self, point: int, confidence: float) -> str:
        """Return what was counted at a point that passes, and what follows from it."""
        if self.better is not None:
            fall = loss_bound(self.worse[point], self.better[point], self.rows, confidence)
            return f"{self.counted(point)}, so accuracy falls by at most {fall:.3%} ({percent(confidence)})"
        bound = upper_bound(self.worse[point], self.rows, confidence)
        return f"{self.counted(point).replace(' rows', ' calibration rows', 1)}, so at most {bound:.3%} ({percent(confidence)})"


def conditions(
    limits: Limits, differing: Sequence[int], tested: int, classes: ClassCounts | None, quality: QualityCounts | None
) -> list[Condition]:
    """Return what has to hold of a point of a path, each with its counts; what is limited must have been counted."""
    found = []
    if limits.max_disagreement is not None:
        found.append(Condition(limit=limits.max_disagreement, rows=tested, tested=tested, worse=differing))
    if limits.max_missed:
        assert classes is not None
        for index, (name, rows) in enumerate(zip(classes.names, classes.rows, strict=True)):
            if (limit := limits.missed_of(name)) is not None:
                missed = classes.missed(index, len(differing))
                found.append(Condition(name=name, limit=limit, rows=rows, tested=tested, worse=missed))
    if limits.max_quality_loss is not None:
        assert quality is not None
        limit, rows = limits.max_quality_loss, quality.labelled
        found.append(Condition(limit=limit, rows=rows, tested=tested, worse=quality.lost, better=quality.gained))
    return found


def passing(conditions: Sequence[Condition], confidence: float) -> int:
    """Return the last of the points before the first that does not pass every condition; 0 is full depth, which needs no test.

    Fixed-sequence testing in Learn then Test (Angelopoulos et al. 2021, section 3.1): points stand in an order that was fixed
    before these rows were seen, and each is tested at the full level, up to the first that fails. The probability that any of
    those before it breaks a limit is at most 1 - confidence. With exact binomial p-values a point passes if its Clopper-Pearson
    bound is at most the limit, so this is also the rule of Fast yet Safe (Jazbec et al. 2024, section 4).

    With 2,000 rows, a limit of 1 % and [0, 0, 2, 5, 40, 0] differing it is 3: 40 are too many, and the last is not tested.
    """
    points = range(1, len(conditions[0].worse)) if conditions else range(0)
    fails = (point for point in points if not all(each.passes(point, confidence) for each in conditions))
    return next(fails, len(points) + 1) - 1


def shortage(unmet: Sequence[Condition], point: int, confidence: float, sample_of: SampleOf) -> str:
    """Explain why conditions do not hold at a point, and how many rows would be enough, if any would.

    Of several, those that take the largest samples are named.
    """
    sizes = {id(each): each.sample_rows(point, confidence, sample_of) or math.inf for each in unmet}
    worst = sorted(unmet, key=lambda each: sizes[id(each)], reverse=True)
    named = [_short_of(each, point, confidence, sample_of) for each in worst[:NAMED]]
    more = len(unmet) - NAMED
    return "; ".join([*named, *([f"and so with {more:,} other{'s' * (more > 1)}"] if more > 0 else [])])


def _short_of(condition: Condition, point: int, confidence: float, sample_of: SampleOf) -> str:
    where = "the safest thresholds" if point == 1 else "the safest thresholds that save anything"
    seen, needed = f"{condition.counted(point)} at {where}", condition.rows_needed(point, confidence)
    if needed is None:
        return f"{seen}, more than {percent(condition.limit)}: no number of rows would do"
    sample = condition.sample_rows(point, confidence, sample_of)
    if sample is None:
        return f"full depth gives none of {condition.tested:,} rows '{condition.name}', and {needed:,} such rows are needed"
    enough = f"calibrate on about {sample:,} rows or more"
    if condition.rows == condition.tested:
        return f"{seen}: {enough}"
    return f"{seen}: {needed:,} such rows are needed, {max(needed - condition.rows, 1):,} more, so {enough}"
