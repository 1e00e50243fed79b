"""What users ask a run to keep, in numbers and in words."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.calibration.guarantees import CONFIDENCE

ByClass = Sequence[tuple[str | None, float]]
"""Limits by class; that of None is for every class that is not named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a run is held to; every one of these holds together with the others, with the confidence.

    Limits(max_disagreement=0.01, max_missed=(("spam", 0.02),))     of all rows, and of those that full depth calls spam
    """

    max_disagreement: float | None = None
    """Largest fraction of predictions that may differ from those at full depth."""
    max_missed: tuple[tuple[str | None, float], ...] = ()
    """Largest fractions of the rows of a class at full depth that may get another answer, by class."""
    max_quality_loss: float | None = None
    """Largest loss of accuracy against full depth, by true labels."""
    confidence: float = CONFIDENCE
    """Probability with which all of these hold, over the calibration rows."""

    def missed_of(self, name: str) -> float | None:
        """Return the limit of a class; None if it has none."""
        by_name = dict(self.max_missed)
        return by_name.get(name, by_name.get(None))

    def to_json(self) -> dict[str, object]:
        """Lay it out as a manifest has it: what is asked for, with the confidence; {} where nothing is."""
        by_class = {name: limit for name, limit in self.max_missed if name is not None}
        asked: dict[str, object] = {
            "max_disagreement": self.max_disagreement,
            "max_missed": dict(self.max_missed).get(None),
            "max_missed_by_class": by_class or None,
            "max_quality_loss": self.max_quality_loss,
        }
        given = {name: value for name, value in asked.items() if value is not None}
        return given | {"confidence": self.confidence} if given else {}

    def describe(self) -> list[str]:
        """Return what is guaranteed, a clause for each: "at most 1% of all rows differ from full depth".

        It is guaranteed of rows drawn like those of the calibration, with the confidence, and all of it together.
        """
        clauses = []
        if self.max_disagreement is not None:
            clauses.append(f"at most {percent(self.max_disagreement)} of all rows differ from full depth")
        for name, limit in self.max_missed:
            of = "every class" + " not named" * (len(self.max_missed) > 1) if name is None else f"'{name}'"
            clauses.append(f"at most {percent(limit)} of the rows that full depth gives {of} get another answer")
        if self.max_quality_loss is not None:
            clauses.append(f"accuracy is at most {percent(self.max_quality_loss)} below that of full depth")
        return clauses

    @property
    def finer(self) -> bool:
        """Whether single classes have limits, or quality."""
        return bool(self.max_missed) or self.max_quality_loss is not None


def percent(fraction: float) -> str:
    """Write a fraction in percent, with as many digits as it was given: 0.995 is "99.5%"."""
    return f"{100 * fraction:.6g}%"
