"""What the audited rows of all nights prove of the limits of single classes.

It is the test of `calibration.sequential`, which may be looked at every night, on the rows of each class together. If J
classes have limits, evidence against one has to be J times as large, so that *any* of them is as rarely called broken as one.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pipeline.calibration.guarantees import CONFIDENCE
from pipeline.calibration.limits.limits import Limits, percent
from pipeline.calibration.sequential import log_evidence_above, upper_bound_ever

NAMED = 3
"""Classes that a line names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassAudit:
    """What the audited rows of a class say of its limit."""

    name: str
    limit: float
    rows: int
    """Audited rows of all nights that full depth gives the class."""
    missed: int
    """Those of them that got another answer."""
    at_most: float
    """Upper bound of the true fraction, which holds on every night."""
    verdict: str
    """'kept' or 'broken' as far as the rows prove it, else 'open'."""

    def describe(self) -> str:
        """Return what is proved in a clause: "'spam' kept (0 of 1,200 missed, limit 2%)"."""
        return f"'{self.name}' {self.verdict} ({self.missed:,} of {self.rows:,} missed, limit {percent(self.limit)})"

    def to_json(self) -> dict[str, object]:
        """Lay it out as a manifest has it."""
        return asdict(self)


def audit_classes(
    names: Sequence[str], audited: Sequence[int], missed: Sequence[int], limits: Limits, false_alarms: float
) -> list[ClassAudit]:
    """Judge every class that has a limit, by counts of all nights, [C], the nearest to broken first.

    `false_alarms` is the probability of ever calling one of them broken if all are kept.
    """
    limited = [
        (name, limit, of, lost)
        for name, of, lost in zip(names, audited, missed, strict=False)
        if (limit := limits.missed_of(name)) is not None
    ]
    asked = math.log(len(limited) / false_alarms) if limited else 0.0
    found = [(float(log_evidence_above(lost, of, limit)), name, limit, of, lost) for name, limit, of, lost in limited]
    return [
        _judged(name, limit, of, lost, limits.confidence, broken=evidence >= asked)
        for evidence, name, limit, of, lost in sorted(found, key=lambda each: -each[0])
    ]


def _judged(
    name: str, limit: float, rows: int, missed: int, confidence: float = CONFIDENCE, *, broken: bool
) -> ClassAudit:
    at_most = float(upper_bound_ever(missed, rows, confidence)) if rows else 1.0
    verdict = "broken" if broken else "kept" if at_most <= limit else "open"
    return ClassAudit(name=name, limit=limit, rows=rows, missed=missed, at_most=at_most, verdict=verdict)


def over_classes(classes: Sequence[ClassAudit]) -> str:
    """Return how many classes are broken, open and kept, and those that are nearest to broken, by name."""
    verdicts = [each.verdict for each in classes]
    counted = ", ".join(f"{verdicts.count(name):,} {name}" for name in ("broken", "open", "kept") if name in verdicts)
    return f"{counted}: {', '.join(each.describe() for each in classes[:NAMED])}"
