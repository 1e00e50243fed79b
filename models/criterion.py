"""Criterion: when a row may leave. Plain values, so that workers without a model need not load torch."""

from dataclasses import dataclass

CRITERIA = ("entropy", "confidence", "patience", "lte")


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """Which uncertainty decides, and how much of it lets a row leave.

    entropy     normalised entropy at most `speed` (FastBERT, DeeBERT)
    confidence  1 - highest probability at most `speed` (BERxiT)
    lte         1 - certainty that a learned head predicts at most `speed` (BERxiT's learning to exit); also for regression
    patience    `patience` exits in a row say the same as the one before, or move by less than `tolerance` (PABEE)
    """

    name: str = "entropy"
    speed: float = 0.0
    """Threshold in [0, 1] of the first three: 0 runs everything at full depth, 1 lets every row leave at the first exit."""
    patience: int = 1
    tolerance: float = 0.1
    """For regression, in units of the value."""

    def __post_init__(self) -> None:
        if self.name not in CRITERIA:
            raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}, not '{self.name}'")
        if not 0.0 <= self.speed <= 1.0:
            raise ValueError(f"speed must be in [0, 1], not {self.speed}")
        if self.patience < 1:
            raise ValueError(f"patience must be at least 1, not {self.patience}")
        if self.tolerance < 0:
            raise ValueError(f"tolerance must be at least 0, not {self.tolerance}")

    @property
    def full_depth(self) -> bool:
        """Whether no row leaves before the last layer, so that no exit needs to be looked at."""
        return self.name != "patience" and self.speed == 0.0

    def describe(self) -> str:
        """Name the criterion with its threshold."""
        if self.name == "patience":
            return f"patience {self.patience}, tolerance {self.tolerance:g}"
        return f"{self.name} {self.speed:g}"
