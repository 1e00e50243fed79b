"""Which nights a calibration is made of: those by which the audit's limit was surely broken, or all of them.

The nights of several folders are one history, in the order in which they were published. While the verdict is *broken*, by the
same test as a run's (`calibration.sequential`), the nights before the change are of other rows, and are left out. The night
that a run names is the likeliest one; a fifth of the rows from there on may still be of before the change, and thresholds that
are tested on them break their limit too often (docs/results/guarantees/README.md). So the nights begin where it is unlikely
that the change is yet to come.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from pipeline.calibration.sequential import log_evidence_above, log_evidence_of_change
from pipeline.calibration.verdict import FALSE_ALARMS
from pipeline.nights import AuditedNights, Night

UNLIKELY = 0.05
"""Probability that the change is later than the first night that counts, all nights being as likely beforehand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The night by which a limit was surely broken."""

    since: str
    """When it was published, by UTC."""
    nights_before: int
    """Audited nights before it."""


def change_of(
    histories: Sequence[Sequence[Night]], limit: float | None, false_alarms: float = FALSE_ALARMS
) -> Change | None:
    """Return by when a limit was broken, by all audited nights of some folders; None if it is not, or there is none.

    A night that several of them have, since one is a copy of another, counts once.
    """
    each_once = {repr(night): night for night in chain(*histories)}
    nights = AuditedNights.of(sorted(each_once.values(), key=lambda night: night.published))
    if limit is None or not nights:
        return None
    if log_evidence_of_change(nights.counts, limit, nights.numbers)[0] < -math.log(false_alarms):
        return None
    first = latest_change(nights.counts, limit)
    return Change(
        since=nights.nights[first].published, nights_before=sum(night.nights for night in nights.nights[:first])
    )


def latest_change(nights: Sequence[tuple[int, int]], limit: float) -> int:
    """Return the night, by its index, after which the change to a broken limit is UNLIKELY to lie.

    `nights` has differing and audited rows of each, the oldest first. The evidence since each night, over its sum, is the
    probability that the change was then, if it was and any night was as likely.
    """
    since = np.cumsum(np.asarray(nights, np.int64)[::-1], axis=0)[::-1]
    log_evidence = log_evidence_above(since[:, 0], since[:, 1], limit)
    probability = np.exp(log_evidence - np.logaddexp.reduce(log_evidence))
    return int(np.searchsorted(np.cumsum(probability), 1 - UNLIKELY))


def night_of(written: str, nights: Sequence[Night]) -> str:
    """Return when the night of what was written at a time was published, given the nights of its folder, the oldest first.

    What was written after the last of them, by a clock that is fast, is of that one.
    """
    published = [night.published for night in nights]
    return published[min(bisect_left(published, written), len(published) - 1)]
