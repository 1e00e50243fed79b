"""The nights of an output folder: what each manifest added to the one before, which the newest manifest keeps.

They are what tests and pages over all nights need, and no more: a year of them takes some 100 kB.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import accumulate
from types import MappingProxyType
from typing import Any, Self

from pipeline.errors import printable

MOST_NIGHTS = 1000
"""Nights that a manifest keeps; beyond these, the two oldest are added up to one."""
MOST_ROWS = 1 << 50
"""Rows of a night, at most: sums of all nights still fit into 64 bits."""
EXPECTED = ("expected", "at_least", "at_most", "calibration")
"""What a night keeps of the disagreement that is expected of its rows: with its bounds, and that of the calibration's rows."""
LATER = {"expected", "alarms", "nights"}
"""Fields that nights of the first manifests that had some do not have."""
MOST_ALARMS, ALARM_CHARACTERS = 8, 200
"""Drift alarms that a night keeps, and characters of each."""
MOST_CLASSES = 12
"""Classes of which a night keeps the rows: the most frequent ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """What one manifest added."""

    published: str = ""
    """When it was published, by UTC."""
    rows: int = 0
    """Rows with predictions."""
    audited: int = 0
    """Rows that went to full depth as well."""
    differing: int = 0
    """Audited rows whose prediction at full depth is another one."""
    flops: float = 0.0
    flops_full_depth: float = 0.0
    """FLOPs of the plain full-depth model, on the same rows."""
    drift: dict[str, float] = field(default_factory=dict)
    """Population stability index of each property, against the calibration."""
    classes: dict[str, int] = field(default_factory=dict)
    """Rows by predicted class."""
    expected: dict[str, float] = field(default_factory=dict)
    """The disagreement that the calibration lets one expect of these rows, by the names of EXPECTED; empty if it is unknown."""
    nights: int = 1
    """Nights that it is the sum of."""
    alarms: list[str] = field(default_factory=list)
    """What had drifted so far that it was an alarm: "length: rows of 33 to 48 tokens went from 5.0% to 31.2%"."""

    @classmethod
    def of(
        cls,
        totals: Mapping[str, Any],
        *,
        published: str,
        drift: Mapping[str, float],
        classes: Mapping[str, int],
        expected: Mapping[str, Any] = MappingProxyType({}),
        alarms: Sequence[str] = (),
    ) -> Self:
        """Make a night of the totals of its shards, as a manifest has them."""
        names = {"rows": "rows_out"} | {n: n for n in ("audited", "differing", "flops", "flops_full_depth")}
        often = sorted(classes.items(), key=lambda item: -item[1])[:MOST_CLASSES]
        return cls(
            published=published,
            drift=dict(drift),
            classes={name: rows for name, rows in often if rows},
            alarms=[printable(alarm, ALARM_CHARACTERS) for alarm in alarms[:MOST_ALARMS]],
            expected={name: expected[name] for name in EXPECTED if name in expected},
            **{name: totals.get(key, 0) for name, key in names.items()},
        )

    def plus(self, later: "Night") -> Self:
        """Add up two nights; what cannot be added is that of the later one."""
        names = ("rows", "audited", "differing", "flops", "flops_full_depth", "nights")
        return type(self)(**(asdict(later) | {name: getattr(self, name) + getattr(later, name) for name in names}))

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """Parse a night of a manifest; raise ValueError for anything else."""
        if not isinstance(values, dict) or not {field.name for field in fields(cls)} - LATER <= values.keys():
            raise ValueError("no night")
        night = cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})
        night.check()
        return night

    def check(self) -> None:
        """Raise ValueError for counts that are none: whoever may write to the folder may have written any of them."""
        counts = [self.rows, self.audited, self.differing, self.nights, *self.classes.values()]
        amounts = [self.flops, self.flops_full_depth, *self.drift.values(), *self.expected.values()]
        counted = all(type(count) is int and 0 <= count < MOST_ROWS for count in counts)
        measured = all(type(amount) in (int, float) and 0 <= amount < math.inf for amount in amounts)
        named = isinstance(self.alarms, list) and all(
            isinstance(alarm, str) and len(alarm) <= 2 * ALARM_CHARACTERS for alarm in self.alarms[: MOST_ALARMS + 1]
        )
        dated = isinstance(self.published, str) and len(self.published) <= len("2026-11-27T02:13:20Z")
        if (
            not (counted and measured and dated and named)
            or len(self.alarms) > MOST_ALARMS
            or self.differing > self.audited
            or not self.nights
        ):
            raise ValueError("no night")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedNights:
    """The nights that had an audit, as tests take them: N nights, the oldest first."""

    nights: list[Night]
    """The nights themselves, as [N]."""
    counts: list[tuple[int, int]]
    """Differing and audited rows of each, as [N]."""
    numbers: list[int]
    """How many nights there were before each, with or without an audit, as [N]: also where old ones have been added up."""

    @classmethod
    def of(cls, nights: Sequence[Night]) -> Self:
        """Take those of some nights, the oldest first."""
        before = accumulate((night.nights for night in nights), initial=0)
        audited = [(number, night) for number, night in zip(before, nights, strict=False) if night.audited]
        return cls(
            nights=[night for _, night in audited],
            counts=[(night.differing, night.audited) for _, night in audited],
            numbers=[number for number, _ in audited],
        )

    def __len__(self) -> int:
        return len(self.nights)


def with_tonight(nights: Sequence[Night], tonight: Night) -> list[Night]:
    """Return the nights with one more, MOST_NIGHTS at most."""
    first, *others = (*nights, tonight)
    while len(others) >= MOST_NIGHTS:
        first, *others = (first.plus(others[0]), *others[1:])
    return [first, *others]
