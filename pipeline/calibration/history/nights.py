"""Which nights a calibration is made of: those since the audit's limit was broken, or all of them.

The nights of several folders are one history, in the order in which they were published. While the verdict is *broken*, by the
same test as a run's (`calibration.sequential`), what was before the night that it names is of other rows, and is left out.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from pipeline.calibration.sequential import log_evidence_of_change
from pipeline.calibration.verdict import FALSE_ALARMS
from pipeline.nights import Night


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The night since which a limit is broken."""

    since: str
    """When it was published, by UTC."""
    nights_before: int
    """Audited nights before it."""


def change_of(histories: Sequence[Sequence[Night]], limit: float | None) -> Change | None:
    """Return since when a limit is broken, by all audited nights of some folders; None if it is not, or there is none."""
    nights = sorted((night for night in chain(*histories) if night.audited), key=lambda night: night.published)
    if limit is None or not nights:
        return None
    evidence, first = log_evidence_of_change([(night.differing, night.audited) for night in nights], limit)
    if evidence < -math.log(FALSE_ALARMS):
        return None
    return Change(since=nights[first].published, nights_before=first)


def night_of(written: str, nights: Sequence[Night]) -> str:
    """Return when the night of what was written at a time was published, given the nights of its folder, the oldest first.

    What was written after the last of them, by a clock that is fast, is of that one.
    """
    published = [night.published for night in nights]
    return published[min(bisect_left(published, written), len(published) - 1)]
