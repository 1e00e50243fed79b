"""Settings of the training loop."""

from dataclasses import dataclass

from pipeline.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How to train; the same for fine-tuning and distillation."""

    epochs: int
    batch_rows: int
    """Rows in a step, over all workers."""
    learning_rate: float
    """Peak; of the backbone where `head_learning_rate` is given."""
    head_learning_rate: float | None = None
    """Peak rate of the heads, which start from nothing; None takes that of the backbone."""
    weight_decay: float = 0.01
    early_stopping: int | None = None
    """Epochs without a better dev score after which to stop; None never stops early."""
    seed: int = 0
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_rows", "learning_rate", "head_learning_rate", "early_stopping"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(name, f"must be above 0, not {value}")
