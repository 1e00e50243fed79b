"""Settings of the engine, of the audit and of the training loop."""

from dataclasses import dataclass, field

from models.criterion import Criterion

DTYPE_NAMES = ("auto", "fp32", "bf16", "int8")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How a corpus is run through a model."""

    criterion: Criterion = field(default_factory=Criterion)
    """When a row may leave; the default runs everything at full depth."""
    exits: tuple[int, ...] | None = None
    """Layers after which rows are looked at, beside the last; None is every layer with an exit head."""
    token_budget: int | None = None
    """Tokens in a micro-batch; None is `default_token_budget` of the device."""
    resident_tokens: int = 1 << 20
    """Tokens whose hidden states are held at once: 1.6 GB at hidden 768 in bf16."""
    first_token_first: bool = True
    """With pooled heads, decide before the layer is finished. Off only to measure what it is worth."""
    dtype: str = "auto"
    """'fp32', 'bf16', 'int8' (CPUs only: products in int8, the rest in bf16), or 'auto': bf16 where the hardware multiplies it,
    else fp32."""

    def __post_init__(self) -> None:
        for name in ("token_budget", "resident_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.dtype not in DTYPE_NAMES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPE_NAMES)}, not '{self.dtype}'")


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
                raise ValueError(f"{name} must be above 0, not {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSpec:
    """What an actor needs to know to audit its own answers (pipeline.audit)."""

    share: float
    """Of rows that go to full depth as well, in [0, 1]; with 0 nothing but lengths is counted."""
    uncertainty_edges: tuple[float, ...] = ()
    """Of the bins in which the audited rows' uncertainty at full depth is counted."""
