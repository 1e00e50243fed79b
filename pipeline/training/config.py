"""TrainingConfig: the settings of the training loop."""

from dataclasses import dataclass

from pipeline.errors import InputError

STRATEGIES = ("joint", "alternating")
"""Ways to train backbone and exits together; see training.recipes."""
FINETUNE_STRATEGIES = ("two-stage", *STRATEGIES)
"""Ways to train all exits from labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Settings of one call of `train`, for fine-tuning and for distillation."""

    epochs: int
    batch_rows: int
    """Rows in a step, over all workers."""
    learning_rate: float
    """Peak learning rate; that of the backbone alone where `head_learning_rate` is given."""
    head_learning_rate: float | None = None
    """Peak learning rate of the heads, which start from random weights; None takes the backbone's."""
    weight_decay: float = 0.01
    early_stopping: int | None = None
    """Epochs without a better dev score after which to stop; None never stops early."""
    seed: int = 0
    checkpoint_seconds: float = 60.0
    """Seconds between two checkpoints, which are written at the end of a chunk."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_rows", "learning_rate", "head_learning_rate", "early_stopping"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(name, f"must be above 0, not {value}")
