"""What a calibration on audited rows changes: what the thresholds of each limit do on these rows, so far and from now on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from pipeline.calibration.curve import Calibration, Choice, Curve
from pipeline.calibration.texts import TextSample
from pipeline.calibration.thresholds import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class SoFar:
    """What the thresholds of an earlier calibration do to some rows."""

    speedup: float
    """FLOPs of full depth over FLOPs spent."""
    disagreement: float
    """Fraction of the rows whose prediction is not that of full depth."""

    @classmethod
    def of(cls, choice: Choice, sample: Sample | TextSample) -> Self:
        """Count on a sample, whose exits have the uncertainties of the choice's criterion."""
        outcome = sample.outcome(np.array([choice.criterion.speed_at(layer) for layer in sample.layers]))
        return cls(speedup=1 / outcome.flops_fraction, disagreement=outcome.differing / len(sample))


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What becomes of one limit."""

    limit: float
    before: SoFar | None
    """None without an earlier calibration."""
    after: Choice


def changes(
    before: Calibration | None,
    sample: Sample | TextSample,
    after: Curve,
    *,
    limits: Sequence[float],
    confidence: float,
) -> list[Change]:
    """Compare thresholds by limit; `sample` has the rows as the earlier calibration's criterion sees them."""
    return [
        Change(
            limit=limit,
            before=None if before is None else SoFar.of(before.curve.within(limit, confidence), sample),
            after=after.within(limit, confidence),
        )
        for limit in limits
    ]
