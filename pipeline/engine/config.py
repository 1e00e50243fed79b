"""Settings of the engine."""

from dataclasses import dataclass, field

from models.exits.criterion import Criterion
from pipeline.errors import InputError

DTYPE_NAMES = ("auto", "fp32", "bf16", "int8")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How rows are run through a model.

    `dtype` and `token_budget` are fixed when the model is loaded; engines of one loaded model may differ in the rest.
    """

    criterion: Criterion = field(default_factory=Criterion)
    """When a row exits; the default runs every row at full depth."""
    exits: tuple[int, ...] | None = None
    """Layers whose exits are evaluated, beside the last; None is every layer with an exit head."""
    token_budget: int | None = None
    """Tokens in a micro-batch; None is what the device does best with (pipeline.engine.memory)."""
    resident_tokens: int | None = None
    """Tokens whose hidden states are held at once; None is what the device has memory for."""
    first_token_first: bool = True
    """With pooled heads, decide before the layer is run for all tokens. Off only to measure what that is worth."""
    dtype: str = "auto"
    """'fp32', 'bf16', 'int8' (CPUs only: feed-forward blocks in int8, the rest as with 'auto'), or 'auto': bf16 where the
    hardware multiplies it, else fp32."""

    def __post_init__(self) -> None:
        for name in ("token_budget", "resident_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(name, f"must be at least 1, not {value}")
        if self.dtype not in DTYPE_NAMES:
            raise InputError("dtype", f"must be one of {', '.join(DTYPE_NAMES)}, not '{self.dtype}'")
